"""Checkpoints in the hub's layout on disk: each kind decodes as transformers itself does, what is broken is named."""

import json
import shutil

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

import rsdbench
from rsdbench.models.checkpoints import hub_commit, is_truncated, load_source, require_hub, weights_problem

from . import checkpoints, commands
from .checkpoints import POST_NORM, publish

PLANS = [("ar", None), ("sd", "6"), ("spectr", "2x3"), ("rsd_c", "2-2"), ("rsd_s", "3x2")]
A, B = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, which the hub's library takes for the user's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    require_hub.cache_clear()
    return tmp_path / "hub"


def published(cache, tmp_path, kind):
    """A target and its drafter in the cache; returns the target's folder."""
    if kind == "llama":
        model = checkpoints.llama(tmp_path / "target")
        checkpoints.llama(tmp_path / "drafter", drafter_of=model)
    else:
        changes = POST_NORM if kind == "post-norm" else {}
        files = kind if kind in ("sharded", "float16.bin", "sharded.bin") else "safetensors"
        model = checkpoints.opt(tmp_path / "target", files, **changes)
        checkpoints.opt(tmp_path / "drafter", "safetensors", 2, drafter_of=model, **changes)
    publish(cache, "someone/drafter", tmp_path / "drafter", B)
    return publish(cache, "someone/target", tmp_path / "target", A)


@pytest.mark.parametrize("kind", ["pre-norm", "post-norm", "sharded", "float16.bin", "sharded.bin", "llama"])
def test_a_hub_ids_greedy_output_is_transformers_own(cache, tmp_path, kind):
    snapshot = published(cache, tmp_path, kind)
    pair = rsdbench.load_pair("someone/target", "someone/drafter", device="cpu")
    assert pair.target.dtype == pair.drafter.dtype == torch.float32, "whatever the checkpoint's own"
    prompts = [pair.tokenizer(text).input_ids for text in ("This package contains", "Das Paket")]
    own = AutoModelForCausalLM.from_pretrained(snapshot, dtype=torch.float32)
    limits = {"max_new_tokens": 12, "do_sample": False}
    expected = [own.generate(torch.tensor([p]), **limits)[0, len(p) :].tolist() for p in prompts]
    for method, structure in PLANS:
        out = rsdbench.generate(pair, prompts, method, structure, 12, temperature=0, eos_token_id=2)
        assert out.tokens == expected, method
    assert any(sum(depths) for depths in out.accepted_by_depth), "the drafter is of use"


def test_opts_tokenizer_puts_its_one_end_token_first(cache, tmp_path):
    published(cache, tmp_path, "pre-norm")
    tokenizer = rsdbench.load_pair("someone/target", "someone/drafter", device="cpu").tokenizer
    ids = tokenizer(checkpoints.TEXT[1]).input_ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2, 1)
    assert ids == [2, *checkpoints.byte_level_bpe().encode(checkpoints.TEXT[1]).ids]
    assert tokenizer.decode(ids, skip_special_tokens=True) == checkpoints.TEXT[1]
    assert len(tokenizer) == checkpoints.TOKENS < checkpoints.VOCABULARY


def test_the_pinned_revision_is_what_is_loaded(cache, tmp_path):
    made = {}
    for seed, (commit, ref) in enumerate([(A, "main"), (B, "v1")]):
        made[ref] = checkpoints.opt(tmp_path / ref, "safetensors", seed)
        publish(cache, "someone/model", tmp_path / ref, commit, ref)
    for revision, ref in ((None, "main"), ("v1", "v1"), (B, "v1"), (A, "main")):
        pair = rsdbench.load_pair("someone/model", "someone/model", device="cpu", target_revision=revision)
        ours, theirs = (m.get_input_embeddings().weight for m in (pair.target, made[ref]))
        assert torch.equal(ours, theirs)
        assert hub_commit("someone/model", revision) == {"main": A, "v1": B}[ref]
    assert "not in revision 'v2' (there: " in refusal("someone/model", target_revision="v2")
    assert hub_commit("opt-25k") is None


def test_dtypes(cache, tmp_path):
    checkpoints.opt(tmp_path / "model", "float16.bin")
    publish(cache, "someone/model", tmp_path / "model", A)
    for name in ("bfloat16", "float16", "float32"):
        pair = rsdbench.load_pair("someone/model", "someone/model", device="cpu", dtype=name)
        assert pair.target.dtype == pair.drafter.dtype == getattr(torch, name)


def refusal(target, drafter="opt-25k", **options):
    with pytest.raises(rsdbench.UsageError) as caught:
        rsdbench.load_pair(target, drafter, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def break_file(file, how):
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100])


BROKEN = [
    ("sharded", "missing", "model-00002-of-"), ("sharded", "truncated", "model-00002-of-"),
    ("safetensors", "truncated", "model.safetensors"), ("float16.bin", "truncated", "pytorch_model.bin"),
    ("sharded.bin", "missing", "pytorch_model-00002-of-"), ("sharded.bin", "truncated", "pytorch_model-00002-of-"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "how", "name"), BROKEN)
def test_a_broken_file_is_named_before_anything_is_loaded(cache, tmp_path, monkeypatch, files, how, name):
    checkpoints.opt(tmp_path / "model", files)
    (file,) = (f for f in (tmp_path / "model").iterdir() if f.name.startswith(name) and f.suffix != ".json")
    monkeypatch.setattr("rsdbench.pair.load_model", None)
    break_file(file, how)
    publish(cache, "someone/model", tmp_path / "model", A)
    for path in ("someone/model", str(tmp_path / "model")):
        message = refusal(path)
        assert file.name in message
        assert ("missing" if how == "missing" else "truncated") in message


def test_a_broken_file_ends_a_run_before_it_begins(tmp_path):
    checkpoints.opt(tmp_path / "model", "sharded")
    for file in list((tmp_path / "model").glob("model-00002*")):
        file.unlink()
    _, err = commands.rsdbench(
        "run", *commands.SMALL, f"target.path={tmp_path}/model", f"results={tmp_path}/out", code=2
    )
    assert err.count("\n") == 1
    assert "is missing" in err
    assert not (tmp_path / "out").exists()


def test_whole_files_have_no_problem(tmp_path):
    for files in ("safetensors", "sharded", "float16.bin", "sharded.bin"):
        checkpoints.opt(tmp_path / files, files)
        assert weights_problem(tmp_path / files) is None
    old = tmp_path / "old.bin"
    torch.save({"x": torch.zeros(3)}, old, _use_new_zipfile_serialization=False)
    assert not is_truncated(old)
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n"):
        for file in (tmp_path / "pointer.bin", tmp_path / "pointer.safetensors"):
            file.write_bytes(content)
            assert is_truncated(file)


def test_weights_that_do_not_cover_the_model_are_refused(tmp_path):
    model = checkpoints.opt(tmp_path / "model", "float16.bin")
    weights = {k: v for k, v in model.state_dict().items() if "layers.1.fc1.bias" not in k}
    torch.save(weights, tmp_path / "model" / "pytorch_model.bin")
    message = refusal(str(tmp_path / "model"), str(tmp_path / "model"))
    assert "lack 1 of its weights, such as model.decoder.layers.1.fc1.bias" in message


@pytest.mark.parametrize("architecture", ["unknown", "opt"])
def test_code_of_a_checkpoint_is_never_run(tmp_path, architecture, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody is asked either"))
    folder = tmp_path / "model"
    checkpoints.opt(folder, "safetensors")
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config["model_type"] = "someones_own" if architecture == "unknown" else "opt"
    (folder / "config.json").write_text(json.dumps(config))
    if architecture == "unknown":
        assert "needs code of its own" in refusal(str(folder))
    else:
        assert rsdbench.load_pair(str(folder), str(folder), device="cpu").target is not None
    assert not ran.exists()


def test_a_tokenizer_that_is_not_the_targets_is_refused(tmp_path):
    for name in "ab":
        checkpoints.opt(tmp_path / name, "safetensors")
    file = tmp_path / "b" / "vocab.json"
    vocabulary = json.loads(file.read_text())
    first, second = sorted(vocabulary, key=vocabulary.get)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(vocabulary))
    assert "different tokenizers" in refusal(str(tmp_path / "a"), str(tmp_path / "b"))


def test_a_snapshot_without_weights_is_not_taken_for_a_model(cache, tmp_path):
    checkpoints.opt(tmp_path / "model", "safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    publish(cache, "someone/model", tmp_path / "model", A)
    message = refusal("someone/model")
    assert "not whole on disk (it has no weights" in message
    assert "HF_HUB_OFFLINE is set" in message


def test_a_run_takes_models_from_the_users_cache(tmp_path, monkeypatch):
    """In a process of its own, which finds the cache as its user has set it."""
    for name in ("opt-2.6m", "opt-25k"):
        shutil.copytree(rsdbench.models.checkpoints.MODELS / name, tmp_path / name)
        publish(tmp_path / "hub", f"someone/{name}", tmp_path / name, A)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    models = ["target.path=someone/opt-2.6m", "drafter.path=someone/opt-25k"]
    commands.shell("run", *commands.SMALL, *models, f"results={tmp_path}/out")
    records = pd.read_parquet(tmp_path / "out" / "cells")
    assert set(records.method) == {"ar", "sd"}
    file = commands.cells(tmp_path / "out")[0]
    from rsdbench.results.records import read_file

    assert read_file(file).metadata["target_commit"] == A
    assert read_file(file).cell["target"]["contents"] == {
        "name": "opt-2.6m", "path": "someone/opt-2.6m", "revision": None
    }  # fmt: skip


def test_what_transformers_is_given(cache, tmp_path):
    published(cache, tmp_path, "pre-norm")
    assert load_source("someone/target") == (str(cache / "models--someone--target" / "snapshots" / A), "main")
    assert load_source("opt-25k") == (str(rsdbench.models.checkpoints.MODELS / "opt-25k"), "main")
    assert load_source(str(tmp_path / "target")) == (str(tmp_path / "target"), "main")
