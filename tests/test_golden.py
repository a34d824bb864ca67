"""Tokens of all structures, recorded once: whatever becomes of the code, the same seeds give the same tokens.

Recorded anew, when a change of the law of random numbers is meant: python -m tests.test_golden
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch

import rsdbench
from rsdbench.backends.aot import library
from rsdbench.backends.cuda_graphs import graphs

from .conftest import all_structures, make_pair
from .recordings import graphed, traced

FILE = Path(__file__).with_suffix(".json")
EVERY = [("ar", "0", 0), *all_structures()]
TEMPERATURES = (0.0, 0.3, 1.0)
BATCHES = {"one": [[2, 5, 9, 33, 12, 7]], "four": [[2, 5, 6, 7, 8, 9], [2, 11], [3], [2, 20, 21, 22]]}
NEW_TOKENS = 20
GOLDEN = json.loads(FILE.read_text()) if FILE.exists() else {}
STRUCTURES = [x for x in EVERY if f"{x[0]} {x[1]} T=0.0 one" in GOLDEN]  # a method may be younger than the record


def name(method, structure, temperature, batch):
    return f"{method} {structure} T={temperature} {batch}"


def digest(pair, method, structure, temperature, batch):
    out = rsdbench.generate(pair, BATCHES[batch], method, structure, NEW_TOKENS, temperature, seed=7)
    counted = json.dumps([out.tokens, out.blocks, out.accepted_by_depth])
    return hashlib.sha256(counted.encode()).hexdigest()[:16]


@pytest.fixture(scope="module")
def eager():
    return make_pair("mixed")


@pytest.fixture(scope="module")
def compiled(compiled_cache):
    if not library.compiler_at_hand():
        pytest.skip("no C++ compiler")
    pair = make_pair("mixed")
    pair.compile()
    return pair


def test_every_structure_is_recorded():
    names = {name(m, s, t, b) for m, s, _ in STRUCTURES for t in TEMPERATURES for b in BATCHES}
    assert names == set(GOLDEN)
    assert len(set(GOLDEN.values())) > 0.6 * len(names), "most structures have tokens or blocks of their own"


@pytest.mark.parametrize(
    ("forwards", "temperature"),
    [
        *(("eager", temperature) for temperature in TEMPERATURES),
        pytest.param("compiled", 0.0, marks=pytest.mark.slow),  # compiles anew: of some structures, test_backends does
        *(("compiled", temperature) for temperature in TEMPERATURES[1:]),
    ],
)
def test_the_recorded_tokens_come_again(request, forwards, temperature):
    pair = request.getfixturevalue(forwards)
    for method, structure, _ in STRUCTURES:
        for batch in BATCHES:
            found = digest(pair, method, structure, temperature, batch)
            assert found == GOLDEN[name(method, structure, temperature, batch)], (method, structure, batch)


FEW = {("ar", "0"), ("sd", "6"), ("sd_bv", "6"), ("spectr", "3x2"), ("rsd_c", "2-2"), ("rsd_s", "3x2")}
RECORDED = [
    pytest.param(m, s, marks=() if (m, s) in FEW else pytest.mark.slow, id=f"{m}-{s}") for m, s, _ in STRUCTURES
]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("method", "structure"), RECORDED)
def test_recorded_graphs_give_the_recorded_tokens(monkeypatch, method, structure, temperature):
    monkeypatch.setattr(graphs, "record", traced)
    pair = graphed(make_pair("mixed"))
    assert digest(pair, method, structure, temperature, "one") == GOLDEN[name(method, structure, temperature, "one")]


def record():
    """Write the file anew, from the models' own forwards."""
    pair = make_pair("mixed")
    torch.set_num_threads(1)
    found = {name(m, s, t, b): digest(pair, m, s, t, b) for m, s, _ in EVERY for t in TEMPERATURES for b in BATCHES}
    FILE.write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    record()
