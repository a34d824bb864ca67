"""Compiled steps of drafting and verification: the same numbers as the functions that they are made of."""

from dataclasses import replace

import pytest
import torch

import rsdbench
from rsdbench.engine import ahead, compiled_steps, walk
from rsdbench.engine.compiled_steps import PLAIN, Steps
from rsdbench.engine.methods import METHODS, get_shape
from rsdbench.engine.tree import level_rows, own_rows
from rsdbench.engine.verify import below
from rsdbench.engine.walk import Drafts
from rsdbench.rules.recursive_rejection import recursive_rejection
from rsdbench.sampling.gumbel import gumbel_noise

from .conftest import make_pair

pytestmark = pytest.mark.skipif(not ahead.compiler_at_hand(), reason="no C++ compiler: apt-get install g++")
WORDS = 19


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of libraries that no earlier run has filled."""
    made = (compiled_steps.compiled_descend, compiled_steps.compiled_finish, compiled_steps.compiled_expand)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for function in made:
            function.cache_clear()
        yield ahead.cache_folder()
    for function in made:
        function.cache_clear()


def random_law(*shape):
    return (2 * torch.randn(*shape, WORDS)).log_softmax(-1)


def equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


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
        tokens = torch.randint(WORDS, (batch, shape.budget))
        parents = torch.tensor([shape.parents]).expand(batch, -1)
        laws = random_law(batch, 1 + shape.expanded)
        tempered = random_law(batch, 1 + shape.budget)
        drafts = Drafts(tempered, laws.exp(), tokens, parents, torch.rand(tokens.shape) < 0.9)
        ours = theirs = walk.start(batch, shape.depth, WORDS, torch.device("cpu"))
        for depth, fanout in enumerate(shape.fanouts, 1):
            uniforms = torch.rand(batch, fanout) ** 3  # often accepted
            level = below(shape, depth, torch.device("cpu"))
            ours, theirs = (
                steps.descend(drafts, level, uniforms, ours),
                walk.descend(own.rule, PLAIN, drafts, level, uniforms, theirs),
            )
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


def test_a_few_libraries_serve_all_structures(cache):
    names = sorted(f.name.split("-")[0] for f in cache.iterdir())
    assert names == ["descend"] * 3 + ["expand", "finish"], "recursive rejection of one draft and of several, K-SEQ"


def a_new_rule(p, q, drafts, present):
    """A newcomer's: as recursive rejection, if it can be exported."""
    if p.sum() < 0:  # depends on the data
        raise AssertionError
    return recursive_rejection(p, q, drafts, present)


def test_a_rule_that_cannot_be_compiled_runs_as_it_is(monkeypatch):
    monkeypatch.setitem(METHODS, "rsd_c", replace(METHODS["rsd_c"], rule=a_new_rule))
    pair = make_pair("opt")
    prompts = [[2, 5, 6], [2, 7]]
    expected = rsdbench.generate(pair, prompts, "rsd_c", "2-2", 12, 1.0)
    pair.compile()
    assert rsdbench.generate(pair, prompts, "rsd_c", "2-2", 12, 1.0).tokens == expected.tokens
    assert compiled_steps.compiled_descend(a_new_rule, 8, 64) is None
