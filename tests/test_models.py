"""Loading pairs from names, folders and objects, and refusing what cannot work."""

import time

import pytest
import torch
from transformers import AutoModelForCausalLM

import rsdbench
from rsdbench.models.checkpoints import MODELS, embedded_models, fingerprint, resolve_checkpoint
from rsdbench.pair import parameters

from .conftest import tiny_llama, tiny_opt

# parameters of the paper's models, and what the embedded ones stand for
PAPER = {"opt-125m": 125_239_296, "opt-350m": 331_196_416, "opt-13b": 12_853_473_280, "opt-30b": 29_974_540_288,
         "opt-66b": 65_719_701_504}  # fmt: skip
STANDINS = {"opt-125m": "opt-25k", "opt-350m": "opt-70k", "opt-13b": "opt-2.6m", "opt-30b": "opt-6m",
            "opt-66b": "opt-13.2m"}  # fmt: skip


@pytest.fixture(scope="module")
def embedded():
    return {name: AutoModelForCausalLM.from_pretrained(MODELS / name) for name in STANDINS.values()}


def test_all_embedded_models_are_there():
    assert embedded_models() == sorted(STANDINS.values())


@pytest.mark.parametrize("drafter", ["opt-125m", "opt-350m"])
@pytest.mark.parametrize("target", ["opt-13b", "opt-30b", "opt-66b"])
def test_cost_ratios_are_the_papers_within_ten_percent(embedded, drafter, target):
    ours = parameters(embedded[STANDINS[drafter]]) / parameters(embedded[STANDINS[target]])
    assert ours == pytest.approx(PAPER[drafter] / PAPER[target], rel=0.10)


def test_embedded_models_have_both_of_opts_architectures(embedded):
    for name, model in embedded.items():
        config = model.config
        post_norm = name == "opt-70k"  # as OPT-350M
        assert config.do_layer_norm_before is not post_norm
        assert (config.word_embed_proj_dim < config.hidden_size) is post_norm


def test_weights_are_light():
    sizes = [f.stat().st_size for f in MODELS.rglob("*") if f.is_file()]
    assert max(sizes) <= 20 * 2**20
    assert sum(sizes) <= 45 * 2**20


def test_embedded_pair_loads_by_name_as_float32():
    pair = rsdbench.load_pair("opt-2.6m", "opt-25k", device="cpu")
    assert pair.target.dtype == pair.drafter.dtype == torch.float32
    assert pair.cost_ratio == parameters(pair.drafter) / parameters(pair.target)
    prompt = pair.tokenizer("This package").input_ids
    assert prompt[0] == pair.tokenizer.bos_token_id
    out = rsdbench.generate(pair, [prompt], "rsd_s", "3x2", 16, temperature=0.3, eos_token_id=2)
    assert pair.tokenizer.decode(out.tokens[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize("make", [tiny_opt, tiny_llama])
def test_folders_and_loaded_models_give_the_same_tokens(tmp_path, make):
    target, drafter = make(1), make(2)
    target.save_pretrained(tmp_path / "target", max_shard_size="8KB")  # several shards and an index
    drafter.save_pretrained(tmp_path / "drafter")
    assert len(list((tmp_path / "target").glob("*.safetensors"))) > 1
    loaded = rsdbench.load_pair(str(tmp_path / "target"), str(tmp_path / "drafter"), device="cpu", dtype="float32")
    given = rsdbench.load_pair(target, drafter)
    assert loaded.tokenizer is given.tokenizer is None, "no tokenizer is made up for a folder without one"
    assert given.target is target
    assert given.drafter is drafter
    for temperature in (0, 1):
        runs = [rsdbench.generate(p, [[2, 5, 6]], "rsd_c", "2-2", 12, temperature) for p in (loaded, given)]
        assert runs[0].tokens == runs[1].tokens


def test_dtype_is_chosen(tmp_path):
    tiny_opt(1).save_pretrained(tmp_path)
    pair = rsdbench.load_pair(str(tmp_path), str(tmp_path), device="cpu", dtype="bfloat16")
    assert pair.target.dtype == torch.bfloat16


def refusal(*arguments, **options):
    with pytest.raises(rsdbench.UsageError) as caught:
        rsdbench.load_pair(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_different_vocabularies_are_refused():
    message = refusal(tiny_opt(1, 64), tiny_opt(2, 65))
    assert "64" in message
    assert "65" in message


def test_different_tokenizers_are_refused(tmp_path):
    import json
    import shutil

    shutil.copytree(MODELS / "opt-25k", tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    last, before = sorted(vocabulary, key=vocabulary.get)[-2:]
    vocabulary[last], vocabulary[before] = vocabulary[before], vocabulary[last]
    file.write_text(json.dumps(content))
    assert "different tokenizers" in refusal("opt-2.6m", str(tmp_path / "other"))


@pytest.mark.parametrize("name", ["no-such-model", "/no/such/folder", "./nowhere", "someone/something"])
def test_a_model_that_is_nowhere_is_refused_within_seconds(name):
    start = time.monotonic()
    message = refusal("opt-2.6m", name)
    assert name in message
    assert time.monotonic() - start < 5


def test_unreachable_hub_is_one_line_too(monkeypatch):
    """Not offline by choice: the hub's address leads nowhere."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    assert "cannot be reached" in refusal("opt-2.6m", "someone/something")
    assert time.monotonic() - start < 5


def test_a_folder_without_a_model_is_refused(tmp_path):
    assert "no config.json" in refusal(str(tmp_path), "opt-25k")
    tiny_opt(1).config.save_pretrained(tmp_path)
    assert "cannot be loaded" in refusal(str(tmp_path), str(tmp_path))


def test_unknown_device_and_dtype_are_refused():
    assert "unknown device 'gpu'" in refusal("opt-2.6m", "opt-25k", device="gpu")
    absent = "xpu" if torch.cuda.is_available() else "cuda"
    assert f"device '{absent}' is not available here" in refusal("opt-2.6m", "opt-25k", device=absent)
    assert "unknown dtype 'int4'" in refusal("opt-2.6m", "opt-25k", dtype="int4")


def test_fingerprint_follows_the_contents(tmp_path):
    tiny_opt(1).save_pretrained(tmp_path / "a")
    tiny_opt(1).save_pretrained(tmp_path / "b")
    tiny_opt(2).save_pretrained(tmp_path / "c")
    a, b, c = (fingerprint(str(tmp_path / x)) for x in "abc")
    assert a == b != c
    assert fingerprint("someone/something") == ""
    assert resolve_checkpoint("opt-25k") == str(MODELS / "opt-25k")
