"""Compiled code: kept on disk, shared by models of one architecture, one line where it cannot be had."""

from dataclasses import replace
from functools import partial

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import rsdbench
from rsdbench.backends import eager
from rsdbench.backends.aot import library
from rsdbench.backends.aot.engine import AOTEngine
from rsdbench.backends.aot.library import SMALL_VOCABULARY
from rsdbench.backends.aot.recipes import DYNAMIC, forward_recipe, verify_recipe
from rsdbench.backends.choice import COMPILED, EAGER
from rsdbench.backends.projections import join_projections
from rsdbench.decoding.strategies import Sequences
from rsdbench.methods import METHODS
from rsdbench.models.loading import lay_out
from rsdbench.sampling.distributions import Sampling
from rsdbench.verification.k_seq import k_seq
from rsdbench.verification.lift import lift
from rsdbench.verification.recursive_rejection import recursive_rejection

from .commands import LONG_ENOUGH, SMALL, Command, cells
from .commands import rsdbench as command
from .conftest import make_pair

pytestmark = pytest.mark.skipif(not library.compiler_at_hand(), reason="no C++ compiler: apt-get install g++")
PROMPTS = [[2, 5, 6, 7, 8, 9], [2, 11], [3], [2, 20, 21, 22]]


@pytest.fixture(scope="module")
def cache(compiled_cache):
    return compiled_cache


@pytest.fixture(scope="module")
def pair(cache):
    pair = make_pair("mixed")
    pair.compile()
    return pair


class Rest(torch.nn.Module):
    """What a rule does with two distributions of which one was cut a moment ago."""

    def __init__(self, sampling):
        super().__init__()
        self.truncate = sampling.truncate

    def forward(self, log_p, log_q):
        rest = (self.truncate(log_p).exp() - log_q.exp()).relu()
        return rest, rest.sum(-1, keepdim=True)


@pytest.mark.parametrize("sampling", [Sampling.at(0), Sampling.at(1, 0.6)], ids=["greedy", "top-p"])
def test_a_cut_distribution_is_whole_when_it_is_read(cache, sampling):
    """Scattered into its place it was read unwritten: zeros, or what lay in memory."""
    module, inputs = Rest(sampling), torch.randn(2, 5, 7, 11).log_softmax(-1).unbind()
    sizes = ({0: DYNAMIC, 1: DYNAMIC, 2: DYNAMIC},) * 2
    found = library.Recipe("a test", "rest", ("rest", sampling), module, inputs, sizes).library().run(list(inputs))
    torch.testing.assert_close(found, list(module(*inputs)))


class Scaled:
    """A rule with a number of its own."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, p, q, drafts, present):
        return recursive_rejection(p, self.factor * q, drafts, present)


class ScaledTwice(Scaled):
    pass


def scaled(factor):
    return lambda p, q, drafts, present: recursive_rejection(p, factor * q, drafts, present)


def test_rules_that_differ_in_anything_have_libraries_of_their_own():
    def other(p, q, drafts, present, factor=2.0):
        return recursive_rejection(p, factor * q, drafts, present)

    rules = [
        recursive_rejection, other, Scaled(1.0), Scaled(2.0), ScaledTwice(2.0), scaled(1.0), scaled(2.0),
        partial(other, factor=1.0), partial(other, factor=3.0), partial(k_seq), Scaled(torch.tensor([1.0])),
        Scaled(torch.tensor([2.0])),
    ]  # fmt: skip
    paths = [verify_recipe(lift(rule), 8, 64, (False, False)).path for rule in rules]
    assert len(set(paths)) == len(rules)
    again = verify_recipe(lift(partial(other, factor=3.0)), 8, 64, (False, False)).path
    assert again == paths[8], "and the same rule has the same one"


class DependsOnData(Sequences):
    """A newcomer's, which cannot be exported."""

    @staticmethod
    def expand(above, log_q, noise, width):
        assert float(log_q.max()) <= 0
        return Sequences.expand(above, log_q, noise, width)


def depends_on_data(p, q, drafts, present):
    """As recursive rejection, if it can be exported."""
    if p.sum() < 0:
        raise AssertionError
    return recursive_rejection(p, q, drafts, present)


@pytest.mark.parametrize("broken", [{"strategy": DependsOnData}, {"rule": depends_on_data}])
def test_a_method_that_cannot_be_compiled_runs_eagerly_and_says_so(pair, monkeypatch, capsys, broken):
    expected = rsdbench.generate(pair, PROMPTS, "sd", "6", 12, 0.5)
    monkeypatch.setitem(METHODS, "sd", replace(METHODS["sd"], **broken))
    out = rsdbench.generate(pair, PROMPTS, "sd", "6", 12, 0.5)
    assert (out.tokens, out.backend) == (expected.tokens, EAGER)
    assert out.fallbacks in (("draft",), ("verify",))
    assert rsdbench.generate(pair, PROMPTS, "ar", "0", 4, 0.5).backend == COMPILED


def test_a_graph_is_compiled_once_for_an_architecture_and_keeps_no_weights(pair, cache, monkeypatch):
    def refuse(*_):
        raise AssertionError("it is there already")

    expected = rsdbench.generate(pair, PROMPTS, "sd", "6", 12, 0.0)
    files = {f.name: f.stat().st_mtime_ns for f in cache.iterdir()}
    assert all(name.endswith(".pt2") for name in files), "nothing half written stays"
    monkeypatch.setattr(library.Recipe, "compile", refuse)
    other = make_pair("mixed", noise=0.3)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in other.target.parameters():
            p.add_(0.1 * torch.randn_like(p))
    plain = rsdbench.generate(other, PROMPTS, "sd", "6", 12, 0.0)
    other.compile()
    assert rsdbench.generate(other, PROMPTS, "sd", "6", 12, 0.0).tokens == plain.tokens != expected.tokens
    assert {f.name: f.stat().st_mtime_ns for f in cache.iterdir()} == files


def test_a_library_reads_the_weights_where_they_lie(pair):
    own = {p.data_ptr() for p in pair.target.parameters()}
    read = pair.engine.library((forward_recipe, pair.target, True)).weights.values()
    assert {weight.data_ptr() for weight in read} <= own, "no copies"


def file_of(model):
    return forward_recipe(model, True).path


def test_another_architecture_has_another_graph(pair):
    models = [make_pair("mixed", **other).target for other in ({}, {"vocabulary": 65}, {"positions": 65})]
    assert file_of(models[0]) != file_of(pair.target), "its projections are not joined"
    for model in models:
        join_projections(model)
    files = [file_of(model) for model in models]
    assert len(set(files)) == 3
    assert files[0] == file_of(pair.target)
    lay_out(models[0])
    assert file_of(models[0]) != files[0], "weights lie in another way"
    assert file_of(models[0].half()) != files[0]


def test_without_a_compiler_it_is_one_line_or_eager(tmp_path):
    environment = {"CXX": "/nowhere/c++", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    _, err = command("run", *SMALL, "compile=true", f"results={tmp_path / 'a'}", code=2, **environment)
    assert err == "rsdbench: compile=true needs a C++ compiler: install g++, or set $CXX: take compile=false\n"
    command("run", *SMALL, "compile=auto", f"results={tmp_path / 'b'}", **environment)
    assert {forward_of(f) for f in cells(tmp_path / "b")} == {EAGER}
    _, err = command("run", *SMALL, "compile=maybe", f"results={tmp_path / 'c'}", code=2)
    assert err == "rsdbench: unknown compile 'maybe': choose auto, true or false\n"


def forward_of(file):
    return pq.read_schema(file).metadata[b"rsdbench.forward"].decode()


def test_a_run_compiles_and_its_records_say_so(cache, tmp_path):
    environment = {"XDG_CACHE_HOME": str(cache.parents[1])}
    compiling = Command("run", *SMALL, "compile=auto", f"results={tmp_path / 'results'}", **environment)
    compiling.wait(seconds=4 * LONG_ENOUGH)  # for half a dozen graphs, one after another
    assert {forward_of(f) for f in cells(tmp_path / "results")} == {COMPILED}
    frame = pd.concat(pd.read_parquet(f) for f in cells(tmp_path / "results"))
    assert (frame.blocks > 0).all()


def test_a_damaged_graph_is_compiled_anew(pair, cache, monkeypatch):
    builds = []

    def build(_, path):
        builds.append(path)
        path.write_bytes(file_of(pair.target).read_bytes()[: -2 - library.DIGEST] + bytes(2))
        return path

    model = make_pair("mixed", vocabulary=66).target
    join_projections(model)
    file_of(model).write_bytes(b"half of a file")
    monkeypatch.setattr(library.Recipe, "compile", build)
    forward_recipe(model, True).library()
    assert len(builds) == 1
    assert file_of(model).read_bytes() != b"half of a file"
    file_of(model).unlink()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "rsdbench").write_text("a file, where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(rsdbench.UsageError, match=r"^compiled code cannot be kept in '.*' \(Not a directory\)"):
        AOTEngine(*(getattr(make_pair("mixed"), role) for role in ("target", "drafter")))


def test_a_model_that_cannot_be_exported_is_one_line(cache, monkeypatch):
    pair = make_pair("mixed", vocabulary=67)

    def broken(*_, **__):
        raise RuntimeError("data-dependent control flow\nand pages more")

    monkeypatch.setattr(torch.export, "export", broken)
    message = r"^OPTForCausalLM-forward cannot be compiled \(data-dependent control flow\)"
    with pytest.raises(rsdbench.UsageError, match=message):
        pair.compile()
    assert not [f for f in cache.iterdir() if f.suffix != ".pt2"]


def test_what_cannot_be_compiled_at_all_is_said():
    pair = make_pair("opt")
    pair.target.double()
    assert not pair.can_compile
    with pytest.raises(rsdbench.UsageError, match="compile=true is not for models in double precision"):
        pair.compile()
    pair.target = pair.target.to("meta")
    with pytest.raises(rsdbench.UsageError, match="both models on a CPU or on a GPU, not cpu and meta"):
        pair.compile()


@pytest.mark.slow
def test_numbers_of_a_large_vocabulary_take_the_place_of_the_logits(monkeypatch):
    pair = make_pair("opt", vocabulary=SMALL_VOCABULARY + 8)
    prompts = [[2, *range(i + 3, i + 9)] for i in range(10)]
    expected = rsdbench.generate(pair, prompts, "sd", "3", 10, 0.7, seed=7)
    pair.compile()
    monkeypatch.setattr(eager, "PIECE", 2**16)
    ours = rsdbench.generate(pair, prompts, "sd", "3", 10, 0.7, seed=7)
    assert ours.backend == COMPILED
    assert sum(a != b for a, b in zip(ours.tokens, expected.tokens, strict=True)) <= 1  # rounding decides one or none


@pytest.mark.slow
@pytest.mark.parametrize(("method", "structure"), [("ar", "0"), ("rsd_c", "2-2")])
def test_models_in_bfloat16_decode_as_eagerly(method, structure):
    """Drafts come from a forward that is compiled with what follows: rounding decides a prompt or two."""
    pair, plain, prompts = make_pair("mixed"), make_pair("mixed"), [[2, *range(i + 3, i + 9)] for i in range(20)]
    for model in (pair.target, pair.drafter, plain.target, plain.drafter):
        model.bfloat16()
    pair.compile()
    ours, theirs = (rsdbench.generate(p, prompts, method, structure, 12, 0.7, seed=4) for p in (pair, plain))
    assert ours.backend == COMPILED
    assert sum(a != b for a, b in zip(ours.tokens, theirs.tokens, strict=True)) <= 3


def test_the_compiler_is_found_where_cxx_says(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    assert not library.compiler_at_hand()
    (tmp_path / "c++").write_text("#!/bin/sh\n")
    (tmp_path / "c++").chmod(0o755)
    assert library.compiler_at_hand()
