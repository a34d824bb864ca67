"""Compiled steps of drafting and verification: the same numbers as the functions that they are made of."""

import pytest
import torch

import rsdbench
from rsdbench.engine import ahead, compiled_steps, walk
from rsdbench.engine.cache import TreeCache, accept
from rsdbench.engine.compiled_steps import PLAIN, Steps
from rsdbench.engine.methods import METHODS, get_shape
from rsdbench.engine.tree import level_rows, own_rows
from rsdbench.engine.verify import below
from rsdbench.engine.walk import Drafts, slots_of
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


@pytest.mark.parametrize(
    ("method", "structure"), [("sd", "6"), ("spectr", "2x3"), ("spectr", "5x2"), ("rsd_c", "3-2-2")]
)
@pytest.mark.parametrize("batch", [1, 5])
def test_verification_goes_the_same_way(method, structure, batch):
    torch.manual_seed(batch)
    shape, own = get_shape(method, structure), METHODS[method]
    steps = Steps(own.drafting, own.rule, WORDS)
    accepted = 0
    for _ in range(20):
        tokens = torch.rand(batch, WORDS).argsort(1)[:, torch.arange(shape.budget) % WORDS]  # siblings are distinct
        parents = torch.tensor([shape.parents]).expand(batch, -1)
        laws = random_law(batch, 1 + shape.expanded)
        tempered = random_law(batch, 1 + shape.budget)
        drafts = Drafts(tempered, laws, tokens, parents, torch.rand(tokens.shape) < 0.9)
        ours = theirs = walk.start(batch, shape.depth, WORDS, torch.device("cpu"))
        for depth, fanout in enumerate(shape.fanouts, 1):
            uniforms = torch.rand(batch, slots_of(fanout)) ** 3  # often accepted
            level = below(shape, depth, torch.device("cpu"))
            ours = steps.descend(drafts, level, uniforms, ours)
            theirs = walk.descend(own.rule, PLAIN, drafts, level, uniforms[:, :fanout], theirs)
            equal(ours, theirs)
        root, noise = torch.randint(WORDS, (batch, 1)), gumbel_noise((batch, WORDS), torch.Generator().manual_seed(1))
        ends = steps.finish(tempered, root, noise, ours), walk.finish(PLAIN, tempered, root, noise, theirs)
        equal(*ends)
        accepted += int(ends[0].accepted.sum())
    assert 0 < accepted < 20 * batch * shape.depth


@pytest.mark.parametrize("beam", [2, 3, 7])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_beam_grows_the_same_way(beam, batch):
    own = METHODS["rsd_s"]
    shape = get_shape("rsd_s", f"{beam}x3")
    steps = Steps(own.drafting, own.rule, WORDS)
    level = rsdbench.engine.drafting.root_level(batch, torch.device("cpu"))
    rows = own_rows(shape, 0, torch.device("cpu")).expand(batch, -1, -1)
    for depth in range(1, 4):
        width = level.tokens.shape[1]
        log_q = random_law(batch, width)
        noise = gumbel_noise((batch, width, WORDS), torch.Generator().manual_seed(depth))
        mine = own_rows(shape, depth, torch.device("cpu"))
        ours, our_rows = steps.expand(level, log_q, noise, rows, mine)
        theirs = own.drafting.expand(level, log_q, noise, beam)
        rows = level_rows(rows, theirs.parents, mine)
        equal(ours, theirs)
        assert torch.equal(our_rows, rows)
        level = theirs


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
    steps = Steps(METHODS["sd"].drafting, METHODS["sd"].rule, WORDS)
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
                assert {walk.slots_of(f) for f in method.drafting.shape(structure).fanouts} <= {1, 2, 4, 8}
    rule, drafting = METHODS["rsd_s"].rule, METHODS["rsd_s"].drafting
    files = []
    for words in (WORDS, WORDS + 4):
        made = compiled_steps.compiled_descend(rule, 2, words), compiled_steps.compiled_finish(words)
        assert None not in (*made, compiled_steps.compiled_expand(drafting, words))
        files.append({f.name for f in cache.iterdir()})
    assert files[0] == files[1]


def a_new_rule(p, q, drafts, present):
    """A newcomer's: as recursive rejection, if it can be exported."""
    if p.sum() < 0:  # depends on the data
        raise AssertionError
    return recursive_rejection(p, q, drafts, present)


def test_a_rule_that_cannot_be_compiled_runs_as_it_is():
    own = METHODS["rsd_c"]
    shape, steps = get_shape("rsd_c", "2-2"), Steps(own.drafting, a_new_rule, WORDS)
    drafts = Drafts(
        random_law(1, 7), random_law(1, 3), torch.arange(6).unsqueeze(0), torch.tensor([shape.parents]),
        torch.ones(1, 6, dtype=torch.bool),
    )  # fmt: skip
    start, level = walk.start(1, 2, WORDS, torch.device("cpu")), below(shape, 1, torch.device("cpu"))
    uniforms = torch.tensor([[0.1, 0.9]])
    expected = walk.descend(own.rule, PLAIN, drafts, level, uniforms, start)
    equal(steps.descend(drafts, level, uniforms, start), expected)
    assert compiled_steps.compiled_descend(a_new_rule, 2, WORDS) is None
