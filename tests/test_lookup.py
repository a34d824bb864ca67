"""Prompt lookup: what it finds, that its drafts are verified exactly, and that no other method is drawn from it."""

import pytest
import torch

import rsdbench
from rsdbench.backends.aot import library
from rsdbench.backends.cuda_graphs import graphs
from rsdbench.methods import METHODS, get_shape
from rsdbench.models.lookup import Lookup, continuations, fill
from rsdbench.pair import Pair
from rsdbench.verification.sample_and_match import sample_and_match

from .commands import SMALL
from .commands import rsdbench as command
from .conftest import make_pair
from .recordings import graphed, traced

PROMPTS = [[2, 5, 9, 33, 5, 9], [7, 8, 7, 8, 7, 8], [2], [3, 4, 5]]


def test_the_longest_suffix_is_found_the_latest_place_first():
    assert continuations([1, 2, 3, 4, 2, 3, 5, 2, 3], 3) == [[5, 2, 3], [4, 2, 3]]
    assert continuations([9, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 2) == [[5, 1]], "1 2 3, though 2 3 is there twice"
    assert continuations([1, 2, 3], 3) == continuations([4], 3) == []
    assert continuations([7] * 5, 3) == [[7]], "what follows may be short"


def test_lines_that_begin_alike_share_their_nodes():
    shape = get_shape("rsd_c", "2-2")  # 0 1 below the root, 2 3 below 0, 4 5 below 1
    assert fill([[1, 2], [1, 3], [4, 5], [6, 7]], shape) == {0: 1, 2: 2, 3: 3, 1: 4, 4: 5}
    assert fill([[1, 2, 3]], get_shape("sd", "2")) == {0: 1, 1: 2}


def test_a_tree_of_three_tokens():
    """p = (.5, .3, .2), drafts b and a: b is accepted with .3, and once it is rejected a with .5 / .7."""
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    verdict = sample_and_match(p, torch.zeros_like(p), torch.tensor([[1, 0]]), torch.ones(1, 2).bool())
    torch.testing.assert_close(verdict.accept, torch.tensor([[0.3, 5 / 7]], dtype=torch.float64))
    torch.testing.assert_close(verdict.residual, torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))


def lookup_pair(backend="eager", request=None):
    pair = make_pair("opt")
    pair = Pair(pair.target, Lookup())
    if backend == "compiled":
        request.getfixturevalue("compiled_cache")
        if not library.compiler_at_hand():
            pytest.skip("no C++ compiler")
        pair.compile()
    if backend == "recorded":
        request.getfixturevalue("monkeypatch").setattr(graphs, "record", traced)
        pair = graphed(pair)
    return pair


FITTING = [("sd", "6"), ("rsd_c", "2-2"), ("rsd_c", "2-1-1")]


@pytest.mark.parametrize(("method", "structure"), FITTING)
@pytest.mark.parametrize("backend", ["eager", "compiled", "recorded"])
def test_greedy_tokens_are_the_targets_and_seeds_decide_the_others(request, backend, method, structure):
    pair, plain = lookup_pair(backend, request), make_pair("opt")
    for prompts in [PROMPTS] if backend != "recorded" else [[p] for p in PROMPTS]:
        expected = rsdbench.generate(plain, prompts, "ar", "0", 20, 0.0).tokens
        found = rsdbench.generate(pair, prompts, method, structure, 20, 0.0)
        assert found.tokens == expected
        assert found.backend == pair.forward
        eager = rsdbench.generate(lookup_pair(), prompts, method, structure, 20, 1.0, seed=3)
        assert rsdbench.generate(pair, prompts, method, structure, 20, 1.0, seed=3).tokens == eager.tokens


def test_a_text_that_repeats_itself_takes_few_calls():
    pair = lookup_pair()
    out = rsdbench.generate(pair, [[5, 6, 7] * 8], "sd", "6", 24, 0.0)
    assert out.blocks[0] <= 24
    assert sum(out.accepted_by_depth[0]) == len(out.tokens[0]) - out.blocks[0]


@pytest.mark.parametrize(("method", "structure"), FITTING)
def test_the_joint_law_of_two_tokens_is_the_targets(method, structure):
    """Chi-square of 20,000 draws; by the seed, fails with a probability of 1e-4 for a right rule."""
    pair = lookup_pair()
    prompt, count, words = [3, 4, 3, 4, 3], 20_000, 64
    with torch.no_grad():
        first = pair.target(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
        rows = torch.cat([torch.tensor([prompt]).expand(words, -1), torch.arange(words).unsqueeze(1)], 1)
        law = (first.unsqueeze(1) * pair.target(input_ids=rows).logits[:, -1].softmax(-1)).flatten()
    found = torch.zeros(words * words)
    for batch in range(10):
        out = rsdbench.generate(pair, [prompt] * (count // 10), method, structure, 2, seed=batch)
        found += torch.bincount(torch.tensor(out.tokens) @ torch.tensor([words, 1]), minlength=words * words)
    common = law * count >= 10
    expected = torch.cat([law[common], law[~common].sum().view(1)]) * count
    seen = torch.cat([found[common], found[~common].sum().view(1)])
    statistic, freedom = float(((seen - expected) ** 2 / expected).sum()), int(common.sum())
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5 + 10


@pytest.mark.parametrize("method", [m for m, own in METHODS.items() if own.drafts and not own.certain_rule])
def test_methods_that_need_a_distribution_say_so(method):
    with pytest.raises(rsdbench.UsageError, match=f"method '{method}' draws its drafts from a distribution, and"):
        rsdbench.generate(lookup_pair(), PROMPTS, method, None)


def test_run_takes_the_methods_that_make_sense(tmp_path):
    settings = [o for o in SMALL if not o.startswith(("methods", "drafter"))]
    _, err = command("run", *settings, "drafter=lookup", f"results={tmp_path}/r", "max_structures=1")
    assert "without spectr, rsd_s: drafter 'lookup' has no distribution to draw from" in err
    found = rsdbench.load_results(tmp_path / "r")
    assert set(found.records.method) == {"ar", "sd", "rsd_c"}
    points = found.points.pivot_table(index="method", columns="metric", values="value")
    assert (points["MBSU"] == points["block efficiency"]).all(), "a draft costs nothing"
    _, err = command("run", *settings, "drafter=lookup", "methods=[spectr]", f"results={tmp_path}/r", code=2)
    assert "method 'spectr' draws its drafts from a distribution" in err.strip().splitlines()[-1]


def test_plan_and_doctor_know_that_there_is_no_model():
    out, _ = command("plan", "experiment=paper", "drafter=lookup", "target=opt-13b", "hardware=h100-80gb")
    assert "LOOKUP-OPT-13B" in out
    out, _ = command("doctor", "experiment=smoke", "drafter=lookup", "target=opt-2.6m", "dataset=wmt")
    assert "drafter lookup" not in out
