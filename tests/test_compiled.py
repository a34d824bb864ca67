"""Compiled forwards: the same tokens as the models' own, kept on disk, one line where there is no compiler."""

from dataclasses import replace

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import rsdbench
from rsdbench.backends.aot import forwards, library
from rsdbench.backends.aot.calls import grower
from rsdbench.backends.aot.forwards import CompiledForward, Drafted, DraftStep, Growth, Rows, Step, examples
from rsdbench.backends.aot.gemm import FUSED, lay_out
from rsdbench.backends.aot.library import SMALL_VOCABULARY
from rsdbench.backends.projections import join_projections
from rsdbench.decoding import forward
from rsdbench.decoding.drafting import Level, Sequences
from rsdbench.decoding.forward import Lane
from rsdbench.decoding.methods import METHODS, get_shape
from rsdbench.decoding.tree import level_rows
from rsdbench.models.pair import COMPILED, EAGER
from rsdbench.sampling.distributions import Warp
from rsdbench.sampling.gumbel import group_size, to_gumbel

from .commands import LONG_ENOUGH, SMALL, Command, cells
from .commands import rsdbench as command
from .conftest import all_structures, make_pair

pytestmark = pytest.mark.skipif(not library.compiler_at_hand(), reason="no C++ compiler: apt-get install g++")
PROMPTS = [[2, 5, 6, 7, 8, 9], [2, 11], [3], [2, 20, 21, 22]]
KINDS = ("mixed", "llama")  # OPT with both of its architectures; rotary positions and grouped queries


@pytest.fixture(scope="module")
def cache(compiled_cache):
    return compiled_cache


@pytest.fixture(scope="module")
def compiled_pairs(cache):
    pairs = {kind: make_pair(kind) for kind in KINDS}
    for pair in pairs.values():
        assert pair.can_compile
        assert pair.forward == EAGER
        pair.compile()
        assert pair.forward == COMPILED
    return pairs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("previous", [0, 1])
@pytest.mark.parametrize(
    ("batch", "rows", "nodes", "end"),
    [(1, 1, 0, 6), (1, 1, 0, 1), (1, 2, 1, 0), (1, 9, 8, 10), (3, 1, 4, 14), (3, 9, 9, 3)],
)
def test_laws_and_cache_are_the_models_own(compiled_pairs, kind, previous, batch, rows, nodes, end):
    torch.manual_seed(batch * rows + nodes)
    target = compiled_pairs[kind].target
    storage = examples(target)[1]
    _, heads, _, size = storage[0].shape
    ancestors = torch.rand(batch, rows, 1 + nodes) < 0.5
    ancestors[..., 0] = True  # every row sees something
    inputs = Rows(
        torch.randint(64, (batch, rows)), torch.randint(9, (rows,)), ancestors, torch.randint(end + 1, (batch,)),
        torch.arange(end), torch.tensor(previous), torch.randperm(20)[:rows].sort().values, torch.tensor(0.0),
    )  # fmt: skip
    storages = [[torch.randn(5, heads, 20, size)[:batch] for _ in storage]]
    storages.append([x.clone() for x in storages[0]])
    with torch.inference_mode():
        logits = compiled_pairs[kind].target_forward(inputs, storages[0])
        own_logits = forwards.Step(target)(inputs, storages[1])
        laws = compiled_pairs[kind].target_forward(inputs._replace(temperature=torch.tensor(0.7)), storages[0])
    torch.testing.assert_close(logits, own_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(laws, Warp(0.7).log_law(logits), rtol=1e-4, atol=2e-4)
    for ours, theirs in zip(*storages, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [forward.PART, 3 * 4 * 64])
@pytest.mark.parametrize("width", [1, 9])
def test_a_compiled_prefill_fills_the_same_cache(compiled_pairs, kind, part, width):
    """Also in pieces of four tokens of three prompts."""
    pair, generator = compiled_pairs[kind], torch.Generator().manual_seed(width)
    tokens = torch.randint(3, 64, (3, width), generator=generator)
    for model, own_forward, previous in (
        (pair.target, pair.target_forward, False),
        (pair.drafter, pair.levels(), True),
    ):
        lanes = [Lane(model, get_shape("sd", "3"), Warp(0.7), 3, 16, previous, own) for own in (None, own_forward)]
        for own in lanes:
            own.part = part
            with torch.inference_mode():
                own.prefill(tokens)
        plain, ours = (own.cache.prefix(16)[0] for own in lanes)
        assert not (plain[:, :, :, :, :width] == 0).all(-1).any()
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


DRAFTINGS = {name: METHODS[name].drafting for name in ("sd", "rsd_c", "rsd_s")}
# drafting, nodes above, nodes, rows before these: the root comes with the token before it
LEVELS = [
    ("sd", 1, 1, 1), ("sd", 1, 5, 1), ("sd", 1, 1, 0), ("sd", 5, 5, 0), ("rsd_c", 1, 7, 1),
    ("rsd_c", 7, 7, 0), ("rsd_c", 2, 6, 0), ("rsd_s", 1, 5, 1), ("rsd_s", 5, 5, 0),
]  # fmt: skip
# a library takes half a minute: of Llama's, the default run makes that of the longest drafting
DRAFTED = [pytest.param(kind, *level, marks=pytest.mark.slow if kind == "llama" and level[0] != "rsd_s" else ())
           for kind in KINDS for level in LEVELS]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "above", "width", "before"), DRAFTED)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_level_is_drafted_the_same_way(compiled_pairs, kind, batch, name, above, width, before):
    torch.manual_seed(above + width)
    pair, drafting, rows, end, nodes = compiled_pairs[kind], DRAFTINGS[name], above + before, 9, 14
    storage = [torch.randn(batch, *x.shape[1:2], 30, x.shape[3]) for x in examples(pair.drafter)[1]]
    first = 1 - before  # the column of the first row: the token before the root, the root or the first node
    columns, depth = torch.arange(rows) + first + (0 if before else 1), 0 if before else 2
    filled, there = torch.arange(width) + int(columns[-1]) - 1, columns[before:]
    length, limit = torch.randint(3, end + 1, (batch,)), end + rows
    numbers = torch.tensor([depth, 1, 0.7, limit], dtype=torch.float64)
    noise = torch.rand(batch, drafting.noise_rows(above, width), group_size(64))  # the uniforms that it is made of
    valid, scores = torch.rand(batch, above) < 0.8, torch.randn(2, batch, above) - 2
    state = torch.cat([valid[None].float(), scores])
    growth = Growth(columns, filled, numbers, length, torch.arange(end), noise, state)
    tree = Drafted(
        torch.randint(64, (batch, 2 + nodes)), torch.rand(batch, 2 + nodes, 1 + nodes) < 0.5,
        torch.full((batch, nodes), -9), torch.ones(batch, nodes).bool(), torch.full((batch, 1 + nodes, 64), -9.0),
    )  # fmt: skip
    tree.ancestors[..., 0] = True
    asked = Rows(
        tree.tokens[:, columns], torch.tensor([depth - 1] * before + [depth] * above), tree.ancestors[:, columns],
        length, growth.steps, torch.tensor(1), columns, torch.tensor(0.7),
    )  # fmt: skip
    copies = [tuple(x.clone() for x in tree), [x.clone() for x in storage]]
    with torch.inference_mode():
        laws = Step(pair.drafter)(asked, [x.clone() for x in storage])[:, before:]
        theirs = DraftStep(pair.drafter, drafting)(growth, *copies)
        (ours,) = grower(pair, drafting).library.run([*growth, *tree, *storage])
    for found, expected in zip((ours, *tree), (theirs, *copies[0]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)

    plain = drafting.expand(Level(tree.tokens[:, there], None, valid, *scores), laws, to_gumbel(noise), width)
    for found, expected in zip(ours, plain[2:], strict=True):
        expected = torch.zeros(batch, width) if expected is None else expected.float()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(tree.tokens[:, filled + 2], plain.tokens)
    assert torch.equal(tree.parents[:, filled], plain.parents + int(there[0]) - 2)
    assert torch.equal(tree.valid[:, filled], plain.valid & (length.unsqueeze(1) + depth + 1 < limit))
    own = (filled.unsqueeze(1) + 1 == torch.arange(1 + nodes)).unsqueeze(0)
    assert torch.equal(tree.ancestors[:, filled + 2], level_rows(asked.ancestors[:, before:], plain.parents, own))
    torch.testing.assert_close(tree.laws[:, there - 1], laws, rtol=1e-3, atol=1e-3)
    left = torch.ones(nodes).bool()
    left[filled] = False
    assert (tree.parents[:, left] == -9).all(), "nothing else is written"


def test_a_drafting_that_cannot_be_compiled_runs_as_it_is(compiled_pairs, monkeypatch):
    class Newcomers(Sequences):
        def expand(self, above, log_q, noise, width):
            assert float(log_q.max()) <= 0  # depends on the data
            return super().expand(above, log_q, noise, width)

    honest = METHODS["sd"]
    drafting = Newcomers(honest.drafting.form, honest.drafting.pattern, honest.drafting.structures)
    expected = rsdbench.generate(compiled_pairs["mixed"], PROMPTS, "sd", "6", 12, 0.5)
    monkeypatch.setitem(METHODS, "sd", replace(honest, drafting=drafting))
    assert rsdbench.generate(compiled_pairs["mixed"], PROMPTS, "sd", "6", 12, 0.5).tokens == expected.tokens
    assert compiled_pairs["mixed"].growers[drafting] is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_of_one_token_starts_with_an_empty_prefix(compiled_pairs, kind):
    pair = compiled_pairs[kind]
    plain = replace(pair, target_forward=None, drafter_forward=None)
    for method, structure in (("ar", "0"), ("sd", "6"), ("rsd_s", "3x2")):
        ours, theirs = (rsdbench.generate(p, [[3]], method, structure, 12, 0.0) for p in (pair, plain))
        assert ours.tokens == theirs.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_every_structure_gives_the_same_greedy_tokens(compiled_pairs, kind):
    pair = compiled_pairs[kind]
    plain = replace(pair, target_forward=None, drafter_forward=None)
    expected = rsdbench.generate(plain, PROMPTS, "ar", "0", 12, 0.0)
    for method, structure, _ in [("ar", "0", 0), *all_structures()]:
        out = rsdbench.generate(pair, PROMPTS, method, structure, 12, 0.0)
        assert out.tokens == expected.tokens, (method, structure)


@pytest.mark.parametrize(
    ("kind", "methods"),
    [
        ("mixed", [("sd", "6"), ("spectr", "3x2"), ("rsd_c", "2-2"), ("rsd_c", "3-2-2"), ("rsd_s", "3x2")]),
        ("llama", [("rsd_s", "3x2")]),
        pytest.param(
            "llama", [("sd", "6"), ("spectr", "3x2"), ("rsd_c", "2-2"), ("rsd_c", "3-2-2")], marks=pytest.mark.slow
        ),
    ],
)
def test_block_efficiency_at_temperature_one_is_the_same(compiled_pairs, kind, methods):
    """The same noise, so the same tokens but where rounding decides: at most one prompt in twenty here."""
    pair = compiled_pairs[kind]
    plain = replace(pair, target_forward=None, drafter_forward=None)
    prompts = [[2, *range(i + 3, i + 9)] for i in range(40)]
    for method, structure in methods:
        ours, theirs = (rsdbench.generate(p, prompts, method, structure, 10, 1.0, seed=4) for p in (pair, plain))
        assert sum(a != b for a, b in zip(ours.tokens, theirs.tokens, strict=True)) <= 2


def test_a_graph_is_compiled_once_for_an_architecture_and_keeps_no_weights(compiled_pairs, cache, monkeypatch):
    def refuse(*_):
        raise AssertionError("it is there already")

    files = {f.name: f.stat().st_mtime_ns for f in cache.iterdir()}
    names = {file_of(pair.target).name for pair in compiled_pairs.values()}
    for pair in compiled_pairs.values():
        with forwards.attention(pair.drafter):
            names.add(file_of(pair.drafter, True).name)
    assert names <= set(files)
    assert len(names) == 4, "targets and drafters, which attend in another way, of OPT and of Llama"
    assert all(name.endswith(".pt2") for name in files), "nothing half written stays"
    monkeypatch.setattr(library.Recipe, "compile", refuse)
    other = make_pair("mixed", noise=0.3)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in other.target.parameters():
            p.add_(0.1 * torch.randn_like(p))
    expected = rsdbench.generate(other, PROMPTS, "sd", "6", 12, 0.0)
    other.compile()
    assert rsdbench.generate(other, PROMPTS, "sd", "6", 12, 0.0).tokens == expected.tokens
    assert expected.tokens != rsdbench.generate(compiled_pairs["mixed"], PROMPTS, "sd", "6", 12, 0.0).tokens
    assert {f.name: f.stat().st_mtime_ns for f in cache.iterdir()} == files


def file_of(model, drafts=False):
    options = forwards.WITHOUT_WEIGHTS | (FUSED if drafts else {})  # the drafters here are small ones
    return library.file_of(type(model).__name__, forwards.parts(model), options)


def test_another_architecture_has_another_graph(compiled_pairs):
    models = [make_pair("mixed", **other).target for other in ({}, {"vocabulary": 65}, {"positions": 65})]
    assert file_of(models[0]) != file_of(compiled_pairs["mixed"].target), "its projections are not joined"
    for model in models:
        join_projections(model)
    files = [file_of(model) for model in models]
    assert len(set(files)) == 3
    assert files[0] == file_of(compiled_pairs["mixed"].target)
    lay_out(models[0])
    assert file_of(models[0]) != files[0], "weights lie in another way"
    assert file_of(models[0].half()) != files[0]


def test_without_a_compiler_it_is_one_line_or_the_models_own_forward(tmp_path):
    environment = {"CXX": "/nowhere/c++", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    _, err = command("run", *SMALL, "compile=true", f"results={tmp_path / 'a'}", code=2, **environment)
    assert err == "rsdbench: compile=true needs a C++ compiler: install g++, set $CXX, or take compile=false\n"
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


def test_a_damaged_graph_is_compiled_anew(compiled_pairs, cache, monkeypatch):
    builds = []

    def build(_, path):
        builds.append(path)
        path.write_bytes(file_of(compiled_pairs["mixed"].target).read_bytes()[: -2 - library.DIGEST] + bytes(2))
        return path

    model = make_pair("mixed", vocabulary=66).target
    join_projections(model)
    file_of(model).write_bytes(b"half of a file")
    monkeypatch.setattr(library.Recipe, "compile", build)
    CompiledForward(model)
    assert len(builds) == 1
    assert file_of(model).read_bytes() != b"half of a file"
    file_of(model).unlink()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "rsdbench").write_text("a file, where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(rsdbench.UsageError, match=r"^compiled code cannot be kept in '.*' \(Not a directory\)"):
        CompiledForward(make_pair("mixed").target)


def test_the_graph_holds_the_weights_that_it_reads(compiled_pairs):
    pair = make_pair("mixed")
    pair.compile()
    expected = rsdbench.generate(pair, PROMPTS, "ar", "0", 8, 0.0).tokens
    own = {name: p.data_ptr() for name, p in pair.target.named_parameters()}
    assert {w.data_ptr() for w in pair.target_forward.weights.values()} <= set(own.values()), "no copies"
    assert expected == rsdbench.generate(compiled_pairs["mixed"], PROMPTS, "ar", "0", 8, 0.0).tokens


def test_laws_of_a_large_vocabulary_take_the_place_of_the_logits(monkeypatch):
    pair = make_pair("opt", vocabulary=SMALL_VOCABULARY + 8)
    prompts = [[2, *range(i + 3, i + 9)] for i in range(10)]
    expected = rsdbench.generate(pair, prompts, "sd", "3", 10, 0.7, seed=7)
    pair.compile()
    assert not pair.target_forward.tempered
    in_place, real = [], Lane.tempered

    def tempered(target, logits):
        laws = real(target, logits)
        in_place.append((logits.numel() > forward.PART, laws.data_ptr() == logits.data_ptr()))
        return laws

    monkeypatch.setattr(forward, "PART", 2**16)
    monkeypatch.setattr(Lane, "tempered", tempered)
    ours = rsdbench.generate(pair, prompts, "sd", "3", 10, 0.7, seed=7)
    assert sum(a != b for a, b in zip(ours.tokens, expected.tokens, strict=True)) <= 1  # rounding decides one or none
    assert set(in_place) == {(True, True), (False, False)}, "laws of many sequences, but not those of the last one"


def test_a_model_that_cannot_be_exported_is_one_line(cache, monkeypatch):
    pair = make_pair("mixed", vocabulary=67)

    def broken(*_, **__):
        raise RuntimeError("data-dependent control flow\nand pages more")

    monkeypatch.setattr(torch.export, "export", broken)
    with pytest.raises(
        rsdbench.UsageError, match=r"^OPTForCausalLM cannot be compiled \(data-dependent control flow\)"
    ):
        CompiledForward(pair.target)
    assert not [f for f in cache.iterdir() if f.suffix != ".pt2"]


def test_the_compiler_is_found_where_cxx_says(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    assert not library.compiler_at_hand()
    (tmp_path / "c++").write_text("#!/bin/sh\n")
    (tmp_path / "c++").chmod(0o755)
    assert library.compiler_at_hand()
