"""Train the embedded tokenizer and the five OPT models on the corpus of `scripts/build_corpus.py`.

    python scripts/train_standins.py                      # everything that is not finished yet
    python scripts/train_standins.py --models opt-25k     # one of them
    python scripts/train_standins.py --tokens 20e6        # a longer training of the same models

Sizes are 1/5000 of OPT-125M/350M (drafters) and OPT-13B/30B/66B (targets), so that the cost ratios are the paper's.
A killed run goes on from its last checkpoint (every two minutes). Held-out losses, tokens and seconds go to
`build/training/NAME.json`, weights are written as float16 safetensors in Hugging Face layout.
`scripts/evaluate_standins.py` draws the learning curves and scores what came out.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy

from rsdbench.files import whole_file
from rsdbench.tasks.prompts import encode_prompt

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "rsdbench" / "assets" / "models"
TEMPLATES = {"de_en": "German: {source}\nEnglish:", "synopsis": "{source}\nSummary:"}
VOCABULARY, POSITIONS, PROMPT_TOKENS, EXAMPLE_TOKENS = 1024, 256, 160, 240
PAD, EOS = 1, 2  # OPT's own ids; "</s>" also begins every text
BATCH_TOKENS = 2048  # a step
PROMPT_WEIGHT = 0.3  # of the loss on prompt tokens; answers count 1
SHARD = "12MB"  # no file in the repository above 20 MiB
EVALUATE_EVERY = 500_000  # tokens between two points of a learning curve
SAVE_EVERY = 120.0  # seconds between two checkpoints


@dataclass(frozen=True)
class Recipe:
    """One model: OPT's configuration, its peak learning rate, and how many tokens it sees by default."""

    shape: dict
    learning_rate: float
    tokens: float
    init_std: float = 0.02
    extra: dict = field(default_factory=dict)

    def config(self) -> transformers.OPTConfig:
        """The model's configuration."""
        width, layers, heads, ffn = (self.shape[k] for k in ("width", "layers", "heads", "ffn"))
        return transformers.OPTConfig(
            vocab_size=VOCABULARY, hidden_size=width, word_embed_proj_dim=self.extra.get("embedding", width),
            num_hidden_layers=layers, num_attention_heads=heads, ffn_dim=ffn, max_position_embeddings=POSITIONS,
            do_layer_norm_before=self.extra.get("pre_norm", True), dropout=0.0, init_std=self.init_std,
            pad_token_id=PAD, bos_token_id=EOS, eos_token_id=EOS,
        )  # fmt: skip


RECIPES = {
    "opt-25k": Recipe({"width": 16, "layers": 2, "heads": 2, "ffn": 32}, 1e-2, 30e6, 0.1),
    # post-norm with a narrow embedding, as OPT-350M
    "opt-70k": Recipe({"width": 40, "layers": 2, "heads": 4, "ffn": 120}, 5e-3, 30e6, 0.08,
                      extra={"embedding": 24, "pre_norm": False}),
    "opt-2.6m": Recipe({"width": 192, "layers": 5, "heads": 4, "ffn": 832}, 2.5e-3, 12e6, 0.04),
    "opt-6m": Recipe({"width": 288, "layers": 6, "heads": 6, "ffn": 1056}, 2e-3, 12e6, 0.03),
    "opt-13.2m": Recipe({"width": 384, "layers": 7, "heads": 6, "ffn": 1600}, 1.5e-3, 14e6, 0.03),
}  # fmt: skip


def train_tokenizer(texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE with OPT's special tokens at OPT's ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", EOS)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=POSITIONS,
    )  # fmt: skip


def load_tokenizer(train: pd.DataFrame, out: Path) -> transformers.PreTrainedTokenizerFast:
    """The tokenizer of the models in `out`, trained first if there is none."""
    folder = out / "opt-25k"
    if not (folder / "tokenizer.json").exists():
        train_tokenizer([*train.source, *train.reference]).save_pretrained(folder)
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def encode(frame: pd.DataFrame, tokenizer: transformers.PreTrainedTokenizerFast) -> list[tuple[np.ndarray, int, str]]:
    """(token ids of prompt + answer + </s>, length of the prompt, task) of each example that fits."""
    encoded = []
    for row in frame.itertuples():
        prompt, _ = encode_prompt(
            lambda text: tokenizer(text).input_ids, TEMPLATES[row.task], row.source, PROMPT_TOKENS
        )
        answer = [*tokenizer(" " + row.reference, add_special_tokens=False).input_ids, EOS]
        if len(prompt) + len(answer) <= EXAMPLE_TOKENS:
            encoded.append((np.array(prompt + answer, dtype=np.int64), len(prompt), row.task))
    return encoded


def batches(data: list, epoch: int, batch_tokens: int = 4096) -> list[list[int]]:
    """Indices of `data` in batches of about `batch_tokens`, lengths alike inside a batch, order fixed by `epoch`."""
    rng = np.random.default_rng(epoch)
    order = rng.permutation(len(data))
    out = []
    for window in np.array_split(order, max(1, len(order) // 2048)):
        window = sorted(window, key=lambda i: len(data[i][0]))
        batch: list[int] = []
        for i in window:
            if batch and (len(batch) + 1) * len(data[i][0]) > batch_tokens:
                out.append(batch)
                batch = []
            batch.append(int(i))
        out.append(batch)
    return [out[i] for i in rng.permutation(len(out))]


def tensors(data: list, batch: list[int], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [B, T], padded, and weights [B, T] of each position's own token in the loss."""
    width = max(len(data[i][0]) for i in batch)
    ids = torch.full((len(batch), width), PAD)
    weights = torch.zeros(len(batch), width)
    for row, i in enumerate(batch):
        tokens, prompt, _ = data[i]
        ids[row, : len(tokens)] = torch.from_numpy(tokens)
        weights[row, 1:prompt] = PROMPT_WEIGHT
        weights[row, prompt : len(tokens)] = 1.0
    return ids.to(device), weights.to(device)


def token_losses(model: transformers.OPTForCausalLM, ids: torch.Tensor, autocast: bool) -> torch.Tensor:
    """Cross-entropy of every token but the first, [B, T-1], in nats. Padding is on the right: causality hides it."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids, use_cache=False).logits
    return cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")


@torch.no_grad()
def evaluate(model: transformers.OPTForCausalLM, data: list, device: str) -> dict[str, float]:
    """Mean loss of the answers' tokens, by task, in nats a token."""
    total: dict[str, float] = {}
    count: dict[str, float] = {}
    for task in TEMPLATES:
        own = [d for d in data if d[2] == task]
        for batch in batches(own, 0):
            ids, weights = tensors(own, batch, device)
            answer = (weights == 1.0).float()[:, 1:]
            total[task] = total.get(task, 0.0) + float((token_losses(model, ids, False) * answer).sum())
            count[task] = count.get(task, 0.0) + float(answer.sum())
    return {task: round(total[task] / count[task], 4) for task in total}


def train(
    name: str, recipe: Recipe, data: list, held_out: list, work: Path, tokens: float, device: str
) -> tuple[transformers.OPTForCausalLM, dict]:
    """Train one model to `tokens` seen tokens, from its last checkpoint if there is one; returns it and its log."""
    torch.manual_seed(0)
    model = transformers.OPTForCausalLM(recipe.config()).to(device)
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip
    autocast = sum(p.numel() for p in model.parameters()) > 1e6  # below that it costs more than it saves
    state = {"seen": 0, "epoch": 0, "position": 0, "seconds": 0.0, "curve": []}
    checkpoint = work / f"{name}.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]

    def report() -> None:
        state["curve"].append([state["seen"], evaluate(model, held_out, device)])
        left = (tokens - state["seen"]) * (time.perf_counter() - started) / (state["seen"] - first)
        print(
            f"{name}: {state['seen']:,} tokens, {state['seconds']:.0f} s, held-out {state['curve'][-1][1]}"
            + (f", about {left / 60:.0f} minutes left" if left > 0 else ""),
            flush=True,
        )

    def save() -> None:
        content = io.BytesIO()  # torch reports a full disk in words of its own
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}, content)
        with whole_file(checkpoint) as stream:
            stream.write(content.getbuffer())

    order = batches(data, state["epoch"], BATCH_TOKENS)
    warmup, first = min(0.05 * tokens, 3e5), state["seen"]
    started = saved_at = time.perf_counter()
    while state["seen"] < tokens:
        if state["position"] == len(order):
            state["epoch"], state["position"] = state["epoch"] + 1, 0
            order = batches(data, state["epoch"], BATCH_TOKENS)
        start = time.perf_counter()
        ids, weights = tensors(data, order[state["position"]], device)
        progress = state["seen"] / tokens
        rate = min(1.0, (state["seen"] + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate
        loss = (token_losses(model, ids, autocast) * weights[:, 1:]).sum() / weights[:, 1:].sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        state["position"] += 1
        before = state["seen"]
        state["seen"] += int((weights > 0).sum())
        state["seconds"] += time.perf_counter() - start
        if state["seen"] >= tokens or state["seen"] // EVALUATE_EVERY > before // EVALUATE_EVERY:
            report()
        if state["seen"] >= tokens or time.perf_counter() - saved_at > SAVE_EVERY:
            save()
            saved_at = time.perf_counter()
    return model, {"parameters": sum(p.numel() for p in model.parameters()), **state}


def publish(model: transformers.OPTForCausalLM, tokenizer: transformers.PreTrainedTokenizerFast, folder: Path) -> None:
    """Put float16 weights and tokenizer into a folder, in place of what is there, once they are written whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial") as fresh:
        model.half().save_pretrained(fresh, max_shard_size=SHARD)
        tokenizer.save_pretrained(fresh)
        for old in folder.glob("*.safetensors*"):  # there may have been another number of shards
            old.unlink()
        for file in Path(fresh).iterdir():
            file.replace(folder / file.name)


def main() -> None:
    """Train what is not finished yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--tokens", type=float, help="tokens each model sees (default: the recipe's own number)")
    parser.add_argument("--corpus", type=Path, default=ROOT / "build" / "corpus")
    parser.add_argument("--out", type=Path, default=ASSETS, help="the models' folder; its tokenizer is kept")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "training", help="checkpoints and logs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if not (args.corpus / "train.parquet").exists():
        refuse(f"no corpus in '{args.corpus}': run `python scripts/build_corpus.py` first")
    args.work.mkdir(parents=True, exist_ok=True)

    frame = pd.read_parquet(args.corpus / "train.parquet")
    tokenizer = load_tokenizer(frame, args.out)
    german = frame[frame.task == "de_en"]  # the smaller task, shown twice an epoch
    data = encode(pd.concat([frame, german]), tokenizer)
    held_out = encode(pd.read_parquet(args.corpus / "validation.parquet"), tokenizer)
    print(f"{len(data):,} examples, {sum(len(d[0]) for d in data):,} tokens an epoch", flush=True)
    for name in args.models:
        log_file = args.work / f"{name}.json"
        tokens = args.tokens or RECIPES[name].tokens
        if log_file.exists() and json.loads(log_file.read_text())["target_tokens"] == tokens:
            continue
        model, log = train(name, RECIPES[name], data, held_out, args.work, tokens, args.device)
        publish(model, tokenizer, args.out / name)
        with whole_file(log_file) as stream:
            stream.write(json.dumps({"target_tokens": tokens, **log}).encode())


def refuse(reason: str) -> NoReturn:
    """End with one line and exit code 2."""
    print(f"train_standins: {reason}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    try:
        main()
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        refuse(f"{reason}: free some space or give other folders with --work and --out; a rerun goes on from here")
