"""Pairs whose vocabularies differ in padding, and what a checkpoint's own files say of its tokens."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

import rsdbench
from rsdbench.backends.aot import library
from rsdbench.decoding.forward import over_vocabulary
from rsdbench.models.checkpoints import MODELS
from rsdbench.models.vocabularies import check_tokenizers, check_vocabularies, common_tokens
from rsdbench.pair import Pair
from rsdbench.tasks.examples import stop_tokens

from .blocks import blocks, job_of
from .conftest import all_structures, resembling, tiny_opt

PROMPTS = [[2, 5, 9, 33, 12, 7], [2], [7, 8, 9]]


def padded(model, rows):
    """The same model with another number of rows; new ones have random weights."""
    torch.manual_seed(0)
    model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def pair_of(rows):
    target = tiny_opt(1)
    return Pair(target, padded(resembling(target, 3, 0.1), rows))


@pytest.mark.parametrize("rows", [60, 64, 72])
@pytest.mark.parametrize(("method", "structure", "budget"), all_structures((6,)))
def test_a_drafter_with_more_or_fewer_rows_is_lossless_at_temperature_0(rows, method, structure, budget):
    pair = pair_of(rows)
    expected = rsdbench.generate(pair_of(64), PROMPTS, "ar", "0", 16, 0.0).tokens
    assert rsdbench.generate(pair, PROMPTS, method, structure, 16, 0.0).tokens == expected
    for block in blocks(pair, job_of(pair, method, structure, [[2, 63, 62]])):
        q = block.tree.log_q.exp()
        torch.testing.assert_close(q.sum(-1), torch.ones(q.shape[:2]))
        assert (q[..., rows:] == 0).all(), "missing rows have no probability"


def test_surplus_rows_go_before_anything_is_normalised():
    logits = torch.tensor([[1.0, 2.0, 9.0]])
    assert over_vocabulary(logits, 2).tolist() == [[1.0, 2.0]]
    assert over_vocabulary(logits, 4).tolist() == [[1.0, 2.0, 9.0, float("-inf")]]
    assert over_vocabulary(logits, 3) is logits


@pytest.mark.parametrize("rows", [60, pytest.param(72, marks=pytest.mark.slow)])
def test_compiled_code_gives_the_same_tokens(compiled_cache, rows):
    if not library.compiler_at_hand():
        pytest.skip("no C++ compiler")
    eager, compiled = pair_of(rows), pair_of(rows)
    compiled.compile()
    for method, structure in (("sd", "6"), ("rsd_s", "3x2")):
        ours, theirs = (rsdbench.generate(p, PROMPTS, method, structure, 16, seed=5) for p in (compiled, eager))
        assert (ours.tokens, ours.backend) == (theirs.tokens, "compiled")


def test_first_token_of_a_padded_pair_has_the_targets_distribution():
    """Chi-square of 20,000 draws with 63 degrees of freedom: 130 is exceeded once in 10^6."""
    pair, prompt, count = pair_of(72), [2, 5, 9], 20_000
    law = pair.target(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1).detach()
    out = rsdbench.generate(pair, [prompt] * count, "rsd_c", "2-2", 1, seed=1)
    found = torch.bincount(torch.tensor(out.tokens).flatten(), minlength=64)
    assert float(((found - law * count) ** 2 / (law * count)).sum()) < 130


def tokenizer(**tokens):
    return SimpleNamespace(get_vocab=lambda: tokens)


def test_tokenizers_may_have_tokens_of_their_own():
    check_tokenizers(tokenizer(a=0, b=1), tokenizer(a=0, b=1, pad=2))
    assert common_tokens(tokenizer(a=0, b=1), tokenizer(a=0, b=1, pad=2)) == 2
    for other in (tokenizer(a=1, b=0), tokenizer(a=0, c=1), tokenizer(a=0, b=2)):
        with pytest.raises(rsdbench.UsageError, match="different tokenizers: draft tokens would mean different text"):
            check_tokenizers(tokenizer(a=0, b=1), other)


def test_vocabularies_must_reach_the_tokens_that_both_have():
    check_vocabularies(152_064, 151_936, common=151_643)
    for common in (None, 151_999):
        with pytest.raises(rsdbench.UsageError, match="target has a vocabulary of 152064 tokens and drafter one of"):
            check_vocabularies(152_064, 151_936, common)


@pytest.fixture
def target(tmp_path):
    return shutil.copytree(MODELS / "opt-2.6m", tmp_path / "target")


def test_a_padded_checkpoint_is_loaded(target):
    model = AutoModelForCausalLM.from_pretrained(target)
    model.resize_token_embeddings(1152, mean_resizing=False)
    model.save_pretrained(target)
    pair = rsdbench.load_pair(str(target), "opt-25k")
    prompt = pair.tokenizer("A tool").input_ids
    tokens = {
        tuple(rsdbench.generate(pair, [prompt], m, s, 8, 0.0).tokens[0]) for m, s in (("ar", "0"), ("rsd_s", "3x2"))
    }
    assert len(tokens) == 1


def test_a_tokenizer_that_cannot_be_loaded_is_not_replaced(target):
    text = (target / "tokenizer.json").read_text()
    (target / "tokenizer.json").write_text(text[: len(text) // 2])
    with pytest.raises(rsdbench.UsageError, match=r"the tokenizer of model '.*target' cannot be loaded \("):
        rsdbench.load_pair(str(target), "opt-25k")


def test_no_tokenizer_at_all_leaves_the_drafters(target):
    for file in target.glob("tokenizer*"):
        file.unlink()
    assert rsdbench.load_pair(str(target), "opt-25k").tokenizer is not None


@pytest.mark.parametrize(("named", "ends"), [([2, 17], [2, 17]), (17, [2, 17]), (None, [2])])
def test_all_ends_that_a_checkpoint_names_end_an_answer(target, named, ends):
    settings = json.loads((target / "generation_config.json").read_text()) | {"eos_token_id": named}
    (target / "generation_config.json").write_text(json.dumps(settings))
    model = AutoModelForCausalLM.from_pretrained(target)
    own = AutoTokenizer.from_pretrained(target)
    assert stop_tokens(OmegaConf.create({"stop": "eos"}), own, model) == ends


def test_a_checkpoint_that_is_quantised_already_is_recorded_as_that(target):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig())
    AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, quantization_config=config).save_pretrained(
        target
    )
    pair = rsdbench.load_pair(str(target), "opt-25k", device="cpu")
    assert (pair.quantization, pair.can_compile) == ("torchao", False)
    out = [rsdbench.generate(pair, [[2, 5, 6]], m, s, 8, 0.0).tokens for m, s in (("ar", "0"), ("sd", "6"))]
    assert out[0] == out[1]
