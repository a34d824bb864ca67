"""Compiled steps of drafting and verification: the same numbers as the functions that they are made of."""

import pytest
import torch

from rsdbench.engine import ahead, compiled_steps, walk
from rsdbench.engine.cache import TreeCache, accept
from rsdbench.engine.compiled_steps import PLAIN, Steps
from rsdbench.engine.methods import METHODS, get_shape
from rsdbench.engine.tree import DraftTree
from rsdbench.engine.verify import verify
from rsdbench.engine.walk import slots_of
from rsdbench.rules.recursive_rejection import recursive_rejection
from rsdbench.sampling.gumbel import gumbel_noise

pytestmark = pytest.mark.skipif(not ahead.compiler_at_hand(), reason="no C++ compiler: apt-get install g++")
WORDS = 19


@pytest.fixture(autouse=True)
def cache(compiled_cache):
    return compiled_cache


def random_law(*shape):
    return (2 * torch.randn(*shape, WORDS)).log_softmax(-1)


def equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def random_tree(shape, batch):
    """A tree, the target's laws of it, and the uniforms, noise and roots that its verification takes."""
    tokens = torch.rand(batch, WORDS).argsort(1)[:, torch.arange(shape.budget) % WORDS]  # siblings are distinct
    parents = torch.tensor([shape.parents], dtype=torch.long).expand(batch, -1)
    valid = torch.rand(tokens.shape) < 0.9
    tree = DraftTree(tokens, parents, valid, random_law(batch, 1 + shape.expanded), None)
    slots = slots_of(max(shape.fanouts, default=1))
    uniforms = torch.rand(batch, shape.depth, slots) ** 3  # often accepted
    noise = gumbel_noise((batch, WORDS), torch.Generator().manual_seed(1))
    return tree, random_law(batch, 1 + shape.budget), uniforms, noise, torch.randint(WORDS, (batch, 1))


@pytest.mark.parametrize(
    ("method", "structure"),
    [("ar", None), ("sd", "6"), ("spectr", "2x3"), ("spectr", "5x2"), ("spectr", "17x2"), ("rsd_c", "3-2-2")],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_verification_goes_the_same_way(method, structure, batch):
    torch.manual_seed(batch)
    shape, rule = get_shape(method, structure), METHODS[method].rule
    steps = Steps(rule, WORDS, None)
    accepted = 0
    for _ in range(40):
        tree, tempered, *numbers = random_tree(shape, batch)
        ours = verify(shape, tree, tempered, rule, PLAIN, *numbers, steps)
        theirs = verify(shape, tree, tempered, rule, PLAIN, *numbers)
        assert torch.equal(ours.accepted, theirs.accepted)
        assert torch.equal(ours.rows, theirs.rows)
        assert torch.equal(ours.last_two, theirs.last_two)
        for row, kept in enumerate(ours.accepted.tolist()):  # what is behind the last token is undefined
            assert torch.equal(ours.report[row, : kept + 2], theirs.report[row, : kept + 2])
        accepted += int(ours.accepted.sum())
    if shape.depth:
        assert 0 < accepted < 40 * batch * shape.depth
        assert compiled_steps.compiled_verify(rule, slots_of(max(shape.fanouts)), WORDS) is not None
    else:
        assert compiled_steps.compiled_finish(WORDS) is not None


def random_caches(lanes):
    """Of a target and a drafter, for four sequences and trees of six nodes: the same at each call."""
    generator = torch.Generator().manual_seed(0)
    caches = [TreeCache([torch.device("cpu")] * layers, 4, 6, 20) for layers in (3, 1)[:lanes]]
    for heads, cache in zip((4, 2), caches, strict=False):
        cache.allocate(torch.zeros(4, heads, 1, 5))
        cache.storage[0].normal_(generator=generator)
    return caches


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("lanes", [1, 2])
def test_accepted_rows_move_the_same_way(lanes, batch, rows):
    torch.manual_seed(rows)
    accepted_rows = torch.stack([torch.cat([torch.zeros(1), torch.randperm(6)[: rows - 1] + 1]) for _ in range(batch)])
    accepted, length = torch.randint(rows, (batch,)), torch.randint(1, 9, (batch,))
    ours, theirs, before = (random_caches(lanes) for _ in range(3))
    steps = Steps(METHODS["sd"].rule, WORDS, None)
    assert compiled_steps.compiled_accept(lanes) is not None
    found = steps.accept(ours, accepted_rows.long(), accepted, length)
    assert torch.equal(found, accept(theirs, accepted_rows.long(), accepted, length))
    assert torch.equal(found, length + accepted + 1)
    for a, b, c in zip(ours, theirs, before, strict=True):
        assert torch.equal(a.storage[0], b.storage[0])
        assert not torch.equal(a.storage[0], c.storage[0])


def test_a_few_libraries_serve_all_structures_and_vocabularies(cache):
    for method in METHODS.values():
        for structures in method.drafting.structures.values():
            for structure in structures:
                assert {slots_of(f) for f in method.drafting.shape(structure).fanouts} <= {1, 2, 4, 8}
    rule, files = METHODS["rsd_s"].rule, []
    for words in (WORDS, WORDS + 4):
        assert None not in (compiled_steps.compiled_verify(rule, 2, words), compiled_steps.compiled_finish(words))
        files.append({f.name for f in cache.iterdir()})
    assert files[0] == files[1]


def a_new_rule(p, q, drafts, present):
    """A newcomer's: as recursive rejection, if it can be exported."""
    if p.sum() < 0:  # depends on the data
        raise AssertionError
    return recursive_rejection(p, q, drafts, present)


def test_a_rule_that_cannot_be_compiled_runs_as_it_is():
    torch.manual_seed(0)
    shape = get_shape("rsd_c", "2-2")
    tree, tempered, *numbers = random_tree(shape, 3)
    expected = verify(shape, tree, tempered, recursive_rejection, PLAIN, *numbers)
    equal(verify(shape, tree, tempered, a_new_rule, PLAIN, *numbers, Steps(a_new_rule, WORDS, None)), expected)
    assert compiled_steps.compiled_verify(a_new_rule, 2, WORDS) is None


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_first_true_entries_of_each_row(count):
    torch.manual_seed(count)
    for width in (1, 5, 31):
        mask = torch.rand(50, width) < torch.rand(50, 1)
        indices, found = walk.first_true(mask, count)
        for row, ours, there in zip(mask, indices, found, strict=True):
            expected = row.nonzero().flatten().tolist()[:count]
            assert ours[there].tolist() == expected
            assert there.tolist() == [True] * len(expected) + [False] * (count - len(expected))
            assert not ours[~there].any()
