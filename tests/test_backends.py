"""The contract of a backend: whatever executes the phases, the same numbers give the same trees and the same tokens."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import rsdbench
from rsdbench.backends.aot import library
from rsdbench.backends.cuda_graphs import graphs
from rsdbench.methods import METHODS
from rsdbench.sampling.distributions import Sampling

from .blocks import blocks, job_of, path_to
from .conftest import PAIRS, all_structures, make_pair
from .recordings import graphed, traced

PROMPTS = [[2, 5, 9, 33, 12, 7], [2], [2, 40, 41, 3, 3, 3, 60, 9], [7, 8, 9], [2, 17]]
FEW = [("ar", "0"), *((m, x.structures[min(x.structures)][-1]) for m, x in METHODS.items() if x.structures)]
EVERY = [("ar", "0"), *((m, s) for m, s, _ in all_structures())]
BACKENDS = ("compiled", "recorded")


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(graphs, "record", traced)


@pytest.fixture(scope="module")
def compiled_pairs(compiled_cache):
    if not library.compiler_at_hand():
        pytest.skip("no C++ compiler: apt-get install g++")
    pairs = {kind: make_pair(kind) for kind in ("mixed", "llama")}
    for pair in pairs.values():
        assert (pair.can_compile, pair.forward) == (True, "eager")
        pair.compile()
        assert pair.forward == "compiled"
    return pairs


def pair_on(request, backend, kind="mixed"):
    if backend == "recorded":
        request.getfixturevalue("recorded")
        return graphed(make_pair(kind))
    return request.getfixturevalue("compiled_pairs")[kind] if backend == "compiled" else make_pair(kind)


def plain_logits(model, lines):
    """Logits behind each line of tokens, without any cache of ours: lines of one length go together."""
    out = {}
    for length in {len(line) for line in lines}:
        own = [line for line in lines if len(line) == length]
        logits = model(input_ids=torch.tensor(own)).logits[:, -1]
        out.update(zip(map(tuple, own), logits, strict=True))
    return torch.stack([out[tuple(line)] for line in lines])


@torch.inference_mode()
def check_blocks(pair, method, structure, prompts, temperature, top_p=1.0):
    """Every number of a tree equals that of a plain forward along its path; some sequences end before others."""
    room = [16 - 3 * i for i in range(len(prompts))]
    job = job_of(pair, method, structure, prompts, temperature, top_p, room, seed=3)
    sampling, shape = Sampling.at(temperature, top_p), job.shape
    for number, block in enumerate(blocks(pair, job)):
        tree, rows = block.tree, range(-1, shape.budget)
        assert tree.parents.shape[1] == shape.budget
        assert all(len(path_to(tree, 0, n)) == shape.depths[2 + n] for n in range(shape.budget))
        if number % 2:
            continue
        lines = [prefix + path_to(tree, b, n) for b, prefix in enumerate(block.prefixes) for n in rows]
        if max(map(len, lines)) >= 64:
            break
        expected = sampling.log_probs(plain_logits(pair.target, lines))
        torch.testing.assert_close(block.log_p.flatten(0, 1), expected, rtol=1e-3, atol=1e-3)
        if shape.depth:
            expanded = range(-1, shape.expanded)
            lines = [prefix + path_to(tree, b, n) for b, prefix in enumerate(block.prefixes) for n in expanded]
            q = sampling.truncate(sampling.log_probs(plain_logits(pair.drafter, lines))).exp()
            torch.testing.assert_close(tree.log_q.exp().flatten(0, 1), q, rtol=1e-3, atol=1e-3)
    assert number > 1


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize(("method", "structure"), EVERY)
def test_tree_rows_equal_plain_forwards(kind, method, structure):
    check_blocks(make_pair(kind), method, structure, PROMPTS, 0.8)


@pytest.mark.parametrize(("method", "structure"), FEW)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tree_rows_equal_plain_forwards_on_other_backends(request, backend, method, structure):
    prompts = PROMPTS[:1] if backend == "recorded" else PROMPTS
    check_blocks(pair_on(request, backend), method, structure, prompts, 0.8)


def decoded(pair, prompts, method, structure, *settings, seed=4):
    out = rsdbench.generate(pair, prompts, method, structure, 14, *settings, seed=seed)
    return out.tokens, out.blocks, out.accepted_by_depth


@pytest.mark.parametrize(("method", "structure"), FEW)
@pytest.mark.parametrize("settings", [(1.0, 1.0), (0.0, 1.0), pytest.param((0.7, 0.9), marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_numbers_give_the_same_tokens(request, backend, settings, method, structure):
    """Of 40 prompts, two may differ: rounding decides a draw in a thousand."""
    pair, plain = pair_on(request, backend), make_pair("mixed")
    many = [[2, *range(i, i + 6)] for i in range(3, 40)]
    batches = [[p] for p in PROMPTS] if backend == "recorded" else [PROMPTS, many]
    for prompts in batches:
        ours, theirs = (decoded(p, prompts, method, structure, *settings)[0] for p in (pair, plain))
        assert sum(a != b for a, b in zip(ours, theirs, strict=True)) <= (2 if len(prompts) > 20 else 0)
    out = rsdbench.generate(pair, batches[0], method, structure, 4, *settings)
    assert out.backend == pair.forward, "and it is that backend which decoded them"


@pytest.mark.parametrize(("method", "structure", "budget"), all_structures((6, 14, 30)))
def test_siblings_are_distinct(method, structure, budget):
    """Without replacement no two siblings are alike. Their order is what the certificate's mutants check."""
    pair = make_pair("opt")
    for block in blocks(pair, job_of(pair, method, structure, PROMPTS, 1.5)):
        for b, parents in enumerate(block.tree.parents.tolist()):
            families = {}
            for parent, token in zip(parents, block.tree.tokens[b, 2:].tolist(), strict=True):
                families.setdefault(parent, []).append(token)
            if method.startswith("rsd"):
                assert all(len(set(f)) == len(f) for f in families.values())
            assert sum(map(len, families.values())) == budget


@pytest.mark.parametrize(("method", "structure", "budget"), [("rsd_c", "3-2-2", 21), ("rsd_s", "7x3", 21)])
def test_a_distribution_with_too_few_tokens_leaves_nodes_invalid(method, structure, budget):
    pair = make_pair("opt")
    for block in blocks(pair, job_of(pair, method, structure, PROMPTS, temperature=0.0, room=[6] * 5)):
        assert block.tree.valid.shape[1] == budget
        assert block.tree.valid.sum(1).tolist() == [3] * len(block.prefixes), "greedy: one node a level is left"
        assert not block.tree.log_q.isnan().any()


SYNCHRONISING = {"_local_scalar_dense", "nonzero", "masked_select", "item", "is_nonzero", "equal", "_unique2"}


class Reads(TorchDispatchMode):
    """Names of the operators that make a host wait for its accelerator."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        boolean_index = name in ("index", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1] if i is not None
        )
        if name in SYNCHRONISING or boolean_index:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("method", "structure"), [("ar", "0"), *((m, s) for m, s, _ in all_structures((6, 30)))])
@pytest.mark.parametrize("settings", [(0.0, 1.0), (0.3, 0.9)], ids=["T=0", "T=0.3,top_p=0.9"])
def test_what_is_recorded_reads_nothing_on_the_host(monkeypatch, method, structure, settings):
    found = []

    def watched(function, inputs, restore):
        with Reads() as reads:
            outputs = tuple(function(*inputs))
        found.append(reads.found)
        return outputs, lambda: None

    monkeypatch.setattr(graphs, "record", watched)
    pair = graphed(make_pair("opt"))
    rsdbench.generate(pair, [PROMPTS[0]], method, structure, 2, *settings)
    assert len(found) == (3 if method == "ar" else 4)
    assert not any(found)


def test_the_watch_sees_a_hidden_read():
    with Reads() as reads:
        x = torch.ones(3)
        x[x > 0].sum().item()
    assert reads.found
