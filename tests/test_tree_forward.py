"""Tree attention and the cache: one tree forward equals plain forwards along every path, block after block."""

import pytest
import torch

from rsdbench.decoding import loop
from rsdbench.decoding.clock import Clock
from rsdbench.decoding.loop import Decoder
from rsdbench.decoding.methods import get_shape
from rsdbench.decoding.tree import row_depths
from rsdbench.sampling.distributions import Warp

from .conftest import PAIRS, all_structures

PROMPTS = [[2, 5, 9, 33, 12, 7], [2], [2, 40, 41, 3, 3, 3, 60, 9], [7, 8, 9], [2, 17]]
WARP = Warp(0.8)
BLOCKS = 4


def path_to(tree, sequence, node):
    """Tokens from the root's child down to a node (-1: the root itself)."""
    tokens = []
    while node >= 0:
        tokens.append(int(tree.tokens[sequence, node]))
        node = int(tree.parents[sequence, node])
    return tokens[::-1]


def plain_logits(model, lines):
    """Logits behind each line of tokens, without any cache of ours: lines of one length go together."""
    out = {}
    for length in {len(line) for line in lines}:
        own = [line for line in lines if len(line) == length]
        logits = model(input_ids=torch.tensor(own)).logits[:, -1]
        out.update(zip(map(tuple, own), logits, strict=True))
    return torch.stack([out[tuple(line)] for line in lines])


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize(("method", "structure", "budget"), [("ar", None, 0), *all_structures()])
def test_tree_rows_equal_plain_forwards(pairs, monkeypatch, kind, method, structure, budget):
    pair, seen, real = pairs[kind], [], loop.verify

    def spy(shape, tree, tempered, *rest):
        seen.append((tree, tempered))
        return real(shape, tree, tempered, *rest)

    monkeypatch.setattr(loop, "verify", spy)
    shape = get_shape(method, structure)
    with torch.inference_mode():
        # one sequence ends early, so that rows move in the middle of the run
        decoder = Decoder(pair, method, shape, WARP, PROMPTS, 40, 64, seed=3, eos_token_id=None)
        decoder.room[1] = 2
        decoder.prefill()
        for block in range(BLOCKS):
            prefixes = [PROMPTS[i] + decoder.out.tokens[i] for i in decoder.alive]
            decoder.block(Clock(decoder.device))
            tree, tempered = seen[-1]
            assert tree.tokens.shape == tree.parents.shape == tree.valid.shape == (len(prefixes), budget)
            depths = row_depths(shape, 1, budget, decoder.device)
            assert depths.tolist() == [len(path_to(tree, 0, n)) for n in range(budget)]
            assert tree.valid.all()
            if block not in (0, BLOCKS - 1):
                continue
            rows = range(-1, budget)
            lines = [prefix + path_to(tree, b, n) for b, prefix in enumerate(prefixes) for n in rows]
            expected = WARP.tempered(plain_logits(pair.target, lines))
            torch.testing.assert_close(tempered.flatten(0, 1), expected, rtol=1e-3, atol=1e-3)
            if budget:
                expanded = range(-1, shape.expanded)
                lines = [prefix + path_to(tree, b, n) for b, prefix in enumerate(prefixes) for n in expanded]
                laws = WARP.law(plain_logits(pair.drafter, lines))
                torch.testing.assert_close(tree.laws.exp().flatten(0, 1), laws, rtol=1e-3, atol=1e-3)
        assert len(decoder.alive) == len(PROMPTS) - 1


@pytest.mark.parametrize(("method", "structure", "budget"), all_structures((6, 14, 30)))
def test_siblings_are_distinct_and_in_draw_order(pairs, monkeypatch, method, structure, budget):
    """Without replacement: no two siblings alike. The order itself is what test_joint_law's mutant checks."""
    trees, real = [], loop.verify
    monkeypatch.setattr(loop, "verify", lambda shape, tree, *rest: trees.append(tree) or real(shape, tree, *rest))
    loop.generate(pairs["opt"], PROMPTS, method, structure, 12, temperature=1.5)
    for tree in trees:
        for b in range(len(tree.tokens)):
            families = {}
            for parent, token in zip(tree.parents[b].tolist(), tree.tokens[b].tolist(), strict=True):
                families.setdefault(parent, []).append(token)
            if method.startswith("rsd"):
                assert all(len(set(f)) == len(f) for f in families.values())
            assert sum(map(len, families.values())) == budget


def test_a_law_with_too_few_tokens_leaves_nodes_invalid(pairs, monkeypatch):
    trees, real = [], loop.verify
    monkeypatch.setattr(loop, "verify", lambda shape, tree, *rest: trees.append(tree) or real(shape, tree, *rest))
    for method, structure, budget in (("rsd_c", "3-2-2", 21), ("rsd_s", "7x3", 21)):
        trees.clear()
        loop.generate(pairs["opt"], PROMPTS, method, structure, 6, temperature=0)
        for tree in trees:
            assert tree.tokens.shape[1] == budget
            assert tree.valid.sum(1).tolist() == [3] * len(tree.tokens), "at temperature 0 one node a level is left"
            assert not tree.laws.isnan().any()
