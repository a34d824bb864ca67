"""Compiled steps of drafting and verification: the same numbers as the functions that they are made of."""

from dataclasses import replace

import pytest
import torch

import rsdbench
from rsdbench.backends.aot import library, steps
from rsdbench.backends.aot.calls import calls_of
from rsdbench.backends.aot.steps import PLAIN
from rsdbench.decoding import descent
from rsdbench.decoding.cache import TreeCache, accept
from rsdbench.decoding.descent import slots_of
from rsdbench.decoding.methods import METHODS, get_shape
from rsdbench.decoding.tree import DraftTree
from rsdbench.decoding.verify import verify
from rsdbench.models.pair import Pair
from rsdbench.sampling.distributions import Warp
from rsdbench.sampling.gumbel import group_size, to_gumbel
from rsdbench.verification.recursive_rejection import recursive_rejection

from .conftest import all_structures, make_pair

pytestmark = pytest.mark.skipif(not library.compiler_at_hand(), reason="no C++ compiler: apt-get install g++")
WORDS = 19


@pytest.fixture(autouse=True)
def cache(compiled_cache):
    return compiled_cache


def places(shape):
    """Drafts below a node that a structure's verification is compiled for."""
    fanout = max(shape.fanouts)
    return fanout if fanout == 1 else slots_of(fanout)


def random_law(*shape):
    return (2 * torch.randn(*shape, WORDS)).log_softmax(-1)


def random_tree(shape, batch):
    """A tree, the target's laws of it, and what its verification takes: uniforms, those for noise, and roots."""
    tokens = torch.rand(batch, WORDS).argsort(1)[:, torch.arange(shape.budget) % WORDS]  # siblings are distinct
    parents = torch.tensor([shape.parents], dtype=torch.long).expand(batch, -1)
    valid = torch.rand(tokens.shape) < 0.9
    tree = DraftTree(tokens, parents, valid, random_law(batch, 1 + shape.expanded), None)
    slots = slots_of(max(shape.fanouts, default=1))
    uniforms = torch.rand(batch, shape.depth, slots) ** 3  # often accepted
    tempered, noise = random_law(batch, 1 + shape.budget), torch.rand(batch, 2, group_size(WORDS))
    return tree, tempered, uniforms, noise, torch.randint(WORDS, (batch, 1))


@pytest.mark.parametrize(
    ("method", "structure"),
    [
        ("ar", None),
        ("sd", "6"),
        ("sd", "1"),
        ("spectr", "1x4"),
        ("spectr", "2x3"),
        ("spectr", "5x2"),
        ("spectr", "17x2"),
        ("rsd_c", "3-2-2"),
    ],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_verification_goes_the_same_way(method, structure, batch):
    torch.manual_seed(batch)
    shape, rule = get_shape(method, structure), METHODS[method].rule
    accepted = 0
    for _ in range(40):
        tree, tempered, uniforms, noise, root = random_tree(shape, batch)
        theirs = verify(shape, tree, tempered, rule, PLAIN, uniforms, to_gumbel(noise.clone()), root)
        tokens = torch.cat([torch.zeros_like(root), root, tree.tokens], 1)
        if shape.depth:
            library = steps.library_of(steps.verify_recipe, rule, places(shape), WORDS)
            inputs = uniforms, noise, tokens, tempered, tree.laws, tree.parents.contiguous(), tree.valid
        else:
            library, inputs = steps.library_of(steps.finish_recipe, WORDS), (noise, tokens, tempered)
        report, rows, kept = library.run(list(inputs))
        assert torch.equal(kept, theirs.accepted)
        assert torch.equal(rows, theirs.rows)
        assert torch.equal(tokens, torch.cat([theirs.last_two, tree.tokens], 1))
        for row, count in enumerate(kept.tolist()):  # what is behind the last token is undefined
            assert torch.equal(report[row, : count + 2], theirs.report[row, : count + 2])
        accepted += int(kept.sum())
    if shape.depth:
        assert 0 < accepted < 40 * batch * shape.depth


def random_caches(dtypes):
    """Of a target and a drafter, for four sequences and trees of six nodes: the same at each call."""
    generator = torch.Generator().manual_seed(0)
    caches = [TreeCache([torch.device("cpu")] * layers, 4, 6, 20) for layers in (3, 1)[: len(dtypes)]]
    for heads, dtype, cache in zip((4, 2), dtypes, caches, strict=False):
        cache.allocate(torch.zeros(4, heads, 1, 5, dtype=dtype))
        cache.storage[0].normal_(generator=generator)
    return caches


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_accepted_rows_move_the_same_way(dtypes, batch, rows):
    torch.manual_seed(rows)
    accepted_rows = torch.stack([torch.cat([torch.zeros(1), torch.randperm(6)[: rows - 1] + 1]) for _ in range(batch)])
    accepted, length = torch.randint(rows, (batch,)), torch.randint(1, 9, (batch,))
    ours, theirs, before = (random_caches(dtypes) for _ in range(3))
    found, storages = length.clone(), [cache.storage[0] for cache in ours]
    library = steps.library_of(steps.accept_recipe, *dtypes)
    library.run([accepted_rows.long(), accepted, found, ours[0].first, *storages])
    assert torch.equal(found, accept(theirs, accepted_rows.long(), accepted, length))
    assert torch.equal(found, length + accepted + 1)
    for a, b, c in zip(ours, theirs, before, strict=True):
        assert torch.equal(a.storage[0], b.storage[0])
        assert not torch.equal(a.storage[0], c.storage[0])


def test_a_few_libraries_serve_all_structures_and_vocabularies(cache):
    shapes = [get_shape(method, structure) for method, structure, _ in all_structures()]
    assert {places(shape) for shape in shapes} == {1, 8}, "a library each"
    rule, files = METHODS["rsd_s"].rule, []
    for words in (WORDS, WORDS + 4):
        assert steps.library_of(steps.verify_recipe, rule, 2, words) is not None
        assert steps.library_of(steps.finish_recipe, words) is not None
        files.append({f.name for f in cache.iterdir()})
    assert files[0] == files[1]


def a_new_rule(p, q, drafts, present):
    """A newcomer's: as recursive rejection, if it can be exported."""
    if p.sum() < 0:  # depends on the data
        raise AssertionError
    return recursive_rejection(p, q, drafts, present)


def test_a_rule_that_cannot_be_compiled_runs_as_it_is(monkeypatch):
    pair, prompts = make_pair("mixed"), [[2, 5, 6, 7], [3, 8]]
    expected = rsdbench.generate(pair, prompts, "rsd_c", "2-2", 12, 0.7)
    pair.compile()
    method = METHODS["rsd_c"]
    assert calls_of(pair, method.drafting, method.rule, Warp(0.7), 2) is not None
    assert calls_of(pair, method.drafting, a_new_rule, Warp(0.7), 2) is None
    assert steps.library_of(steps.verify_recipe, a_new_rule, 2, 64) is None
    monkeypatch.setitem(METHODS, "rsd_c", replace(method, rule=a_new_rule))
    assert rsdbench.generate(pair, prompts, "rsd_c", "2-2", 12, 0.7).tokens == expected.tokens


def test_laws_that_compiled_calls_do_not_know_take_the_functions_as_they_are():
    pair = make_pair("mixed")
    pair.compile()
    method = METHODS["sd"]
    assert calls_of(pair, method.drafting, method.rule, Warp(0.0), 1) is None
    assert calls_of(pair, method.drafting, method.rule, Warp(0.7, 0.9), 1) is None
    pair.target.double()
    assert calls_of(pair, method.drafting, method.rule, Warp(0.7), 1) is None


@pytest.mark.slow
@pytest.mark.parametrize(("method", "structure"), [("ar", "0"), ("rsd_c", "2-2")])
def test_models_in_bfloat16_decode_as_with_the_functions_as_they_are(method, structure, monkeypatch):
    """The forwards are the same, a drafter's is compiled with what follows: rounding decides a prompt or two."""
    pair, prompts = make_pair("mixed"), [[2, *range(i + 3, i + 9)] for i in range(20)]
    for model in (pair.target, pair.drafter):
        model.bfloat16()
    pair.compile()
    assert calls_of(pair, METHODS[method].drafting, METHODS[method].rule, Warp(0.7), 2) is not None
    ours = rsdbench.generate(pair, prompts, method, structure, 12, 0.7, seed=4)
    monkeypatch.setattr(Pair, "calls", lambda *_: None)
    theirs = rsdbench.generate(pair, prompts, method, structure, 12, 0.7, seed=4)
    assert sum(a != b for a, b in zip(ours.tokens, theirs.tokens, strict=True)) <= (2 if method == "rsd_c" else 0)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_first_true_entries_of_each_row(count):
    torch.manual_seed(count)
    for width in (1, 5, 31):
        mask = torch.rand(50, width) < torch.rand(50, 1)
        indices, found = descent.first_true(mask, count)
        for row, ours, there in zip(mask, indices, found, strict=True):
            expected = row.nonzero().flatten().tolist()[:count]
            assert ours[there].tolist() == expected
            assert there.tolist() == [True] * len(expected) + [False] * (count - len(expected))
            assert not ours[~there].any()
