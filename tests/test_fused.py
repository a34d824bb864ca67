"""Functions that `torch.compile` fuses, and layers that use our kernels, while a block is recorded."""

import gc
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

import rsdbench
from rsdbench.backends.cuda_graphs import fused, graphs, row_layers
from rsdbench.backends.cuda_graphs.engine import CudaGraphsBackend
from rsdbench.backends.cuda_graphs.fused import fused as fuse
from rsdbench.backends.cuda_graphs.graphs import is_recording, recording
from rsdbench.backends.cuda_graphs.row_layers import RowLayerNorm, RowLinear, use_row_layers
from rsdbench.backends.projections import join_projections
from rsdbench.pair import parameters

from .conftest import PAIRS, make_pair
from .recordings import graphed

PROMPT = [2, 5, 9, 33, 12, 7]
functional = torch.nn.functional


@pytest.fixture
def traced(monkeypatch):
    """As while recording, with graphs that are traced in one piece and run as they are: each of them is counted."""
    graphs = []
    monkeypatch.setattr(fused, "is_recording", lambda: True)
    monkeypatch.setattr(fused, "fusing_is_possible", lambda: True)
    backend = partial(torch.compile, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    monkeypatch.setattr(torch, "compile", backend)
    torch._dynamo.reset()
    fused.compiled.cache_clear()
    yield graphs
    fused.compiled.cache_clear()
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("method", "structure", "warp"),
    [("ar", "0", (1.0, 1.0)), ("sd", "6", (0.0, 1.0)), ("spectr", "2x3", (1.0, 1.0)), ("rsd_c", "2-2", (0.7, 0.9)),
     ("rsd_s", "3x2", (1.0, 1.0))],
)  # fmt: skip
def test_what_is_fused_gives_the_same_tokens(traced, monkeypatch, method, structure, warp):
    monkeypatch.setattr(CudaGraphsBackend, "phase", lambda backend, function, *inputs: function(*inputs))
    pair = graphed(make_pair("opt"))
    ours = [rsdbench.generate(pair, [PROMPT], method, structure, 16, *warp, seed=seed).tokens for seed in range(3)]
    count = len(traced)
    monkeypatch.setattr(fused, "is_recording", lambda: False)
    assert ours == [rsdbench.generate(pair, [PROMPT], method, structure, 16, *warp, seed=s).tokens for s in range(3)]
    assert 2 <= count == len(traced) < fused.VARIANTS


def test_only_what_is_recorded_is_fused(monkeypatch):
    monkeypatch.setattr(fused, "fusing_is_possible", lambda: True)
    monkeypatch.setattr(fused, "compiled", lambda function: lambda x: ("fused", function(x)))
    double = fuse(lambda x: 2 * x)
    assert not is_recording()
    assert double(3) == 6
    with recording():
        assert double(3) == ("fused", 6)
        monkeypatch.setattr(fused, "fusing_is_possible", lambda: False)
        assert double(3) == 6
    assert not is_recording()


def test_fusing_needs_a_gpu_triton_and_a_compiler(monkeypatch):
    def possible(gpu, triton, compiler):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(fused, "find_spec", lambda name: triton)
        monkeypatch.setattr(fused.shutil, "which", lambda name: compiler)
        return fused.fusing_is_possible.__wrapped__()

    assert possible(True, "triton", "/usr/bin/gcc")
    assert not possible(False, "triton", "/usr/bin/gcc")
    assert not possible(True, None, "/usr/bin/gcc")
    assert not possible(True, "triton", None)


@pytest.fixture
def stand_ins(monkeypatch):
    """The library's functions in the place of our kernels; shapes of what they were given."""
    seen = {"linear": [], "norm": []}

    def row_linear(x, weight, bias):
        seen["linear"].append(x.shape)
        return functional.linear(x, weight, bias)

    def layer_norm(x, weight, bias, eps):
        seen["norm"].append(x.shape)
        return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)

    kernels = SimpleNamespace(row_linear=row_linear, layer_norm=layer_norm, LONGEST=2**14)
    monkeypatch.setattr(row_layers, "kernels", lambda: kernels)
    monkeypatch.setattr(row_layers, "fusing_is_possible", lambda: True)
    return seen


@pytest.mark.parametrize("kind", PAIRS)
def test_layers_keep_their_weights_and_tokens_are_the_same(stand_ins, kind):
    pair, plain = make_pair(kind), make_pair(kind)
    for model in (pair.target, pair.drafter):
        join_projections(model)
        use_row_layers(model)
    assert parameters(pair.target) == parameters(plain.target)
    assert list(pair.target.state_dict()) == list(plain.target.state_dict())
    expected = rsdbench.generate(plain, [PROMPT], "sd", "6", 16, 0.0).tokens
    assert rsdbench.generate(pair, [PROMPT], "sd", "6", 16, 0.0).tokens == expected
    assert not any(stand_ins.values()), "nothing is recorded"
    with recording():
        assert rsdbench.generate(pair, [PROMPT], "sd", "6", 16, 0.0).tokens == expected
    assert stand_ins["linear"]
    assert {shape.numel() // shape[-1] for shape in stand_ins["linear"]} == {1}
    has_norms = any(isinstance(module, RowLayerNorm) for module in pair.target.modules())
    assert bool(stand_ins["norm"]) == has_norms == (kind != "llama")


def test_layers_that_are_not_plain_stay(stand_ins, monkeypatch):
    model = make_pair("opt").target
    first, second = model.model.decoder.layers[:2]
    first.fc1._hf_hook = object()  # as accelerate's, of a layer that is lent
    second.final_layer_norm = torch.nn.LayerNorm((2, 16))
    use_row_layers(model)
    assert type(first.fc1) is torch.nn.Linear
    assert type(second.final_layer_norm) is torch.nn.LayerNorm
    assert type(first.fc2) is RowLinear
    assert type(first.final_layer_norm) is RowLayerNorm
    plain = make_pair("opt").target
    monkeypatch.setattr(row_layers, "fusing_is_possible", lambda: False)
    use_row_layers(plain)
    assert not any(isinstance(module, RowLinear) for module in plain.modules())


def test_what_our_kernels_do_not_take_goes_the_librarys_way(stand_ins):
    x = torch.randn(1, 2, 16)[:, ::2]
    weight = torch.randn(8, 16)
    with recording():
        row_layers.linear(torch.randn(1, 2, 16), weight, None)  # two rows
        row_layers.linear(x, weight.t().contiguous().t(), None)  # by input
        row_layers.linear(x.double(), weight.double(), None)  # a precision that they would lose
        norm = torch.nn.LayerNorm(16, dtype=torch.float64)
        norm.__class__ = RowLayerNorm
        norm(x.double())
        assert not any(stand_ins.values())
        row_layers.linear(x, weight, None)
    assert stand_ins["linear"] == [(1, 1, 16)]


INTERPRETED = """
import torch
from rsdbench.backends.cuda_graphs.row_kernels import layer_norm, row_linear
functional = torch.nn.functional
torch.manual_seed(0)
for dtype, within in ((torch.float32, 1e-5), (torch.float16, 1e-2)):
    for outputs, width in ((8, 16), (13, 96), (5, 1025), (3, 5000)):
        x, bias = torch.randn(1, 1, width, dtype=dtype), torch.randn(outputs, dtype=dtype)
        weight = torch.randn(outputs, width, dtype=dtype) / width**0.5
        for shift in (None, bias):
            expected = functional.linear(x.double(), weight.double(), None if shift is None else shift.double())
            torch.testing.assert_close(row_linear(x, weight, shift).double(), expected, atol=within, rtol=within)
        rows, scale, shift = torch.randn(1, 3, width, dtype=dtype), *torch.randn(2, width, dtype=dtype)
        expected = functional.layer_norm(rows.double(), (width,), scale.double(), shift.double(), 1e-5)
        torch.testing.assert_close(layer_norm(rows, scale, shift, 1e-5).double(), expected, atol=within, rtol=within)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with torch's builds for GPUs")
def test_kernels_give_what_the_library_gives(monkeypatch):
    """By Triton's interpreter, which needs no GPU; on one, `scripts/gpu_check.sh` compares tokens."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, timeout=300)


def test_a_recording_is_known_to_be_under_way_and_collects_no_garbage():
    with recording(), recording():
        assert graphs.is_recording()
        assert not gc.isenabled()
    with pytest.raises(ZeroDivisionError), recording():
        raise ZeroDivisionError
    assert not graphs.is_recording()
    assert gc.isenabled()
    gc.disable()
    try:
        with recording():
            pass
        assert not gc.isenabled(), "as it was"
    finally:
        gc.enable()
