"""Prompts computed once and decoded again: the same tokens, within a limit of memory."""

import pytest
import torch

import rsdbench
from rsdbench.backends.eager import EagerBackend
from rsdbench.models.prefixes import Prefixes

from .commands import SMALL, tokens
from .commands import rsdbench as command
from .conftest import all_structures, make_pair

PROMPTS = [[2, 5, 6, 7, 8, 9], [2, 11], [3], [2, 20, 21, 22], [2, 11]]


@pytest.fixture
def forwarded(monkeypatch):
    """Shapes of the prompts that go through a model."""
    shapes, real = [], EagerBackend.forward_prompts
    monkeypatch.setattr(
        EagerBackend, "forward_prompts", lambda own, lm, t: shapes.append(tuple(t.shape)) or real(own, lm, t)
    )
    return shapes


@pytest.mark.parametrize("kind", ["opt", "mixed", "llama"])
def test_every_method_goes_on_from_what_another_one_has_left(kind, forwarded):
    pair, plain = make_pair(kind), make_pair(kind)
    pair.engine.prefixes = Prefixes(2**20)
    runs = [("ar", None, 0), *all_structures((6, 10))]
    for method, structure, seed in runs:
        settings = (method, structure, 12, 1.0)
        kept = rsdbench.generate(pair, PROMPTS, *settings, seed=seed)
        own = rsdbench.generate(plain, PROMPTS, *settings, seed=seed)
        assert (kept.tokens, kept.blocks) == (own.tokens, own.blocks)
    # of the kept ones a forward of each model, of the others one or two in every run
    assert len(forwarded) == 2 + 1 + 2 * (len(runs) - 1)


def test_other_prompts_and_other_batches_are_others(forwarded):
    pair = make_pair("opt")
    pair.engine.prefixes = Prefixes(2**20)
    for prompts in (PROMPTS, PROMPTS[:2], PROMPTS[1::-1], PROMPTS):
        rsdbench.generate(pair, prompts, "ar", None, 4)
    assert forwarded == [(4, 5), (2, 5), (2, 5)]


def test_memory_is_limited_and_what_came_first_stays(forwarded):
    pair = make_pair("opt")
    rows = PROMPTS[0][:-1]
    config = pair.target.config
    one = config.num_hidden_layers * 2 * config.hidden_size * len(rows) * 4
    pair.engine.prefixes = Prefixes(2 * one)
    prompts = [[*rows, last] for last in (9, 10, 11)]
    for _ in range(3):
        for prompt in prompts:
            rsdbench.generate(pair, [prompt], "ar", None, 4)
    prefixes = pair.engine.prefixes
    assert prefixes.size == sum(part.nbytes for kept in prefixes.kept.values() for part in kept) == 2 * one
    assert len(forwarded) == 3 + 1 + 1


def test_decoding_does_not_change_what_is_kept():
    pair = make_pair("opt")
    pair.engine.prefixes = Prefixes(2**20)
    for method in ("ar", "rsd_s", "sd"):
        rsdbench.generate(pair, PROMPTS, method, None if method == "ar" else "2x3" if method == "rsd_s" else "6", 12)
        kept = {key: [part.clone() for part in parts] for key, parts in pair.engine.prefixes.kept.items()}
        rsdbench.generate(pair, PROMPTS, "spectr", "3x2", 12)
        for key, value in kept.items():
            torch.testing.assert_close(pair.engine.prefixes.kept[key], value, rtol=0, atol=0)


def test_nothing_is_kept_unless_asked_for():
    pair = make_pair("opt")
    rsdbench.generate(pair, PROMPTS, "rsd_s", "2x3", 4)
    assert not pair.engine.prefixes.kept


def test_a_run_gives_the_same_tokens_with_and_without(tmp_path):
    for name, memory in (("with", 1.0), ("without", 0)):
        command("run", *SMALL, f"results={tmp_path / name}", f"prefix_memory={memory}")
    assert tokens(tmp_path / "with") == tokens(tmp_path / "without")


@pytest.mark.parametrize(("value", "message"), [("-1", "at least 0, not -1"), ("much", "must be a number, not 'much'")])
def test_a_limit_that_is_none_is_refused(tmp_path, value, message):
    _, err = command("run", *SMALL, f"results={tmp_path}", f"prefix_memory={value}", code=2)
    assert message in err
