"""Verification of all nodes at once, as on a GPU: the tokens of the walk, for every structure and law."""

import pytest
import torch

import rsdbench
from rsdbench.decoding import loop, verify
from rsdbench.decoding.descent import Drafts
from rsdbench.decoding.methods import get_shape
from rsdbench.decoding.nodes import judge, same_prefix
from rsdbench.decoding.tree import fixed_ancestors, node_depths
from rsdbench.sampling.distributions import Warp
from rsdbench.verification.k_seq import k_seq

from .conftest import all_structures

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
            for module in (loop, verify):
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
