"""Checkpoints on disk as the hub's users have them: files of every kind, tokenizers, the layout of the hub's cache."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from .conftest import resembling, tiny_llama

TEXT = [
    "This package contains the shared library and the documentation of the program.",
    "Das Paket enthält die Bibliothek und die Dokumentation des Programms.",
    "The documentation is in another package, which this one suggests.",
]
TOKENS, VOCABULARY = 300, 304  # as the paper's: the model's vocabulary is a little larger than the tokenizer's
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]

# what the paper's models have in their config.json, but for their sizes
OPT = {
    "_remove_final_layer_norm": False, "activation_dropout": 0.0, "activation_function": "relu",
    "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2, "do_layer_norm_before": True,
    "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 64, "hidden_size": 32, "init_std": 0.3, "layerdrop": 0.0,
    "max_position_embeddings": 64, "model_type": "opt", "num_attention_heads": 4, "num_hidden_layers": 3,
    "pad_token_id": 1, "prefix": "</s>", "torch_dtype": "float16", "transformers_version": "4.21.0.dev0",
    "use_cache": True, "vocab_size": VOCABULARY, "word_embed_proj_dim": 32,
}  # fmt: skip
POST_NORM = {"do_layer_norm_before": False, "word_embed_proj_dim": 16}


def opt(folder, files, seed=1, drafter_of=None, **changes):
    """Write an OPT checkpoint with weights of a kind: safetensors, sharded, float16.bin or sharded.bin."""
    folder.mkdir(parents=True)
    config = {**OPT, **changes}
    torch.manual_seed(seed)
    model = OPTForCausalLM(OPTConfig(**config)).eval() if drafter_of is None else resembling(drafter_of, seed, 0.02)
    weights = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    if files == "float16.bin":
        torch.save({k: v.half() for k, v in model.state_dict().items()}, folder / "pytorch_model.bin")
    elif files == "sharded.bin":  # and without the prefix, as the larger ones were saved
        write_bin_shards(folder, {k.removeprefix("model."): v.half() for k, v in weights.items()})
    else:
        model.save_pretrained(folder, max_shard_size="16KB" if files == "sharded" else "1GB")
    (folder / "config.json").write_text(json.dumps(config))
    opt_tokenizer(folder)
    return model


def write_bin_shards(folder, weights):
    names = sorted(weights)
    halves = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, own in halves.items():
        torch.save({name: weights[name] for name in own}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": {name: file for file, own in halves.items() for name in own}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def byte_level_bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=TOKENS, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False,
    ))  # fmt: skip
    return tokenizer


def opt_tokenizer(folder):
    """GPT-2's files and OPT's settings: no tokenizer.json, one token for both ends of a text, put first."""
    byte_level_bpe().model.save(str(folder))

    def added(text):
        return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False,
                "single_word": False}  # fmt: skip

    tokens = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "errors": "replace", **{key: added(text) for key, text in tokens.items()}, "add_prefix_space": False,
        "add_bos_token": True, "special_tokens_map_file": None, "name_or_path": "someone/opt",
        "tokenizer_class": "GPT2Tokenizer",
    }))  # fmt: skip


def llama(folder, drafter_of=None):
    """A Llama-type checkpoint: untied head, grouped-query attention, tokenizer.json."""
    model = tiny_llama(1, VOCABULARY) if drafter_of is None else resembling(drafter_of, 3, 0.02)
    model.save_pretrained(folder, max_shard_size="16KB")
    tokenizer = byte_level_bpe()
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return model


def publish(cache, name, folder, commit, ref="main"):
    """Put a folder into a hub cache as a download does: files named by their hashes, a snapshot of links, a ref."""
    home = Path(cache) / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    for made in (home / "blobs", home / "refs", snapshot):
        made.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    (home / "refs" / ref).write_text(commit)
    return snapshot
