"""Verification of all nodes at once, as on a GPU: the tokens of the walk, for every structure and law."""

import pytest
import torch

import rsdbench
from rsdbench.engine import decode, verify
from rsdbench.engine.judge import judge, same_prefix
from rsdbench.engine.methods import get_shape
from rsdbench.engine.tree import fixed_ancestors, node_depths
from rsdbench.engine.walk import Drafts
from rsdbench.rules.k_seq import k_seq
from rsdbench.sampling import gumbel
from rsdbench.sampling.gumbel import LONG, PARTS, draw, largest_in_parts
from rsdbench.sampling.laws import Warp

from .conftest import all_structures, gumbel_noise

PROMPT = [2, 5, 9, 33, 12, 7]
CPU = torch.device("cpu")


def decoded(pair, method, structure, warp, seed):
    out = rsdbench.generate(pair, [PROMPT], method, structure, 40, *warp, seed=seed)
    return out.tokens, out.blocks, out.accepted_by_depth


@pytest.mark.parametrize(
    ("kind", "warp", "budgets"),
    [
        ("opt", (1.0, 1.0), (6, 14, 30)),
        ("opt", (0.3, 0.9), (6,)),
        ("opt", (0.0, 1.0), (6,)),
        ("mixed", (1.0, 1.0), (6,)),
    ],
)
def test_every_structure_gives_the_walks_tokens(pairs, monkeypatch, kind, warp, budgets):
    real, calls = verify.judge, []
    monkeypatch.setattr(verify, "judge", lambda *inputs: calls.append(1) or real(*inputs))
    for seed, (method, structure, _) in enumerate(all_structures(budgets)):
        expected = decoded(pairs[kind], method, structure, warp, seed)
        assert not calls
        with monkeypatch.context() as patch:
            for module in (decode, verify):
                patch.setattr(module, "reading_is_free", lambda device: False)  # as on an accelerator
            assert decoded(pairs[kind], method, structure, warp, seed) == expected, (method, structure)
        assert len(calls) == sum(expected[1])
        calls.clear()


def test_equal_sequences_are_judged_together():
    """Two of three sequences begin alike: below either node both of their second tokens are candidates."""
    shape = get_shape("spectr", "3x2")
    tokens = torch.tensor([[7, 3, 7, 1, 2, 4]])  # levels (7, 3, 7) and (1, 2, 4): paths 7-1, 3-2, 7-4
    parents = torch.tensor([shape.parents])
    ancestors, depths = fixed_ancestors(shape, CPU), node_depths(shape, CPU)[1:]
    same = same_prefix(tokens, ancestors, depths, shape.depth)[0]
    expected = torch.eye(7, dtype=torch.bool)
    expected[1, 3] = expected[3, 1] = True
    assert torch.equal(same, expected)

    laws = torch.full((1, 7, 8), 1 / 8).log()
    drafts = Drafts(laws, laws[:, : 1 + shape.expanded], tokens, parents, torch.ones(1, 6, dtype=torch.bool))
    numbers, rule = [], k_seq

    def counting(p, q, drafts, present):
        numbers.append(present.sum(1).tolist())
        return rule(p, q, drafts, present)

    below = judge(counting, Warp(1.0), drafts, torch.zeros(1, 4, 3), ancestors, depths, shape.depth).below
    assert numbers == [[3, 2, 1, 2]], "drafts below the root and below each node of the first level"
    assert below.tolist() == [[1, 4, 5, 4]], "the first candidate, which may be another sequence's"


def test_a_draft_that_is_not_there_is_never_accepted():
    shape = get_shape("rsd_c", "2-2")
    tokens, parents = torch.tensor([[0, 1, 2, 3, 4, 5]]), torch.tensor([shape.parents])
    valid = torch.tensor([[False, True, False, False, False, False]])
    laws = torch.full((1, 7, 8), 1 / 8).log()
    drafts = Drafts(laws, laws[:, :3], tokens, parents, valid)
    ancestors, depths = fixed_ancestors(shape, CPU), node_depths(shape, CPU)[1:]
    found = judge(k_seq, Warp(1.0), drafts, torch.zeros(1, 3, 2), ancestors, depths, shape.depth)
    assert found.below.tolist() == [[2, 0, 0]]
    torch.testing.assert_close(found.residual[:, 1:], laws[:, 1:3].exp())


@pytest.mark.parametrize("words", [LONG, 50_272, LONG + 7])
@pytest.mark.parametrize("k", [1, 5])
def test_the_largest_in_parts_are_the_largest(words, k):
    scores = gumbel_noise((2, 3, words), torch.Generator().manual_seed(words))
    scores[0, 0, : words // PARTS] += 20  # all in one part
    values, indices = largest_in_parts(scores, k)
    assert torch.equal(values, scores.topk(k).values)
    assert torch.equal(scores.gather(-1, indices), values)
    assert (indices.sort().values.diff() > 0).all(), "equal scores are different tokens"
    scores[1, 1] = float("-inf")
    scores[1, 1, words - 1] = 0.0
    values, indices = largest_in_parts(scores, k)
    assert (values[1, 1, 0], indices[1, 1, 0]) == (0, words - 1)
    assert (values[1, 1, 1:] == float("-inf")).all()


@pytest.mark.parametrize("words", [64, 50])
def test_a_draw_from_a_long_row_is_the_same_draw(words, monkeypatch):
    """Even where all but one token have probability zero, and parts are filled up."""
    log_p = torch.randn(5, words, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    log_p[1, :-1] = float("-inf")
    noise = gumbel_noise((5, words), torch.Generator().manual_seed(1))
    expected = draw(log_p, noise)
    monkeypatch.setattr(gumbel, "is_long", lambda scores, k: True)
    assert torch.equal(draw(log_p, noise), expected)
    assert expected[1] == words - 1
