"""Products of large models are oneDNN's, with weights where they lie; those of small ones are a part of other code."""

import io
import zipfile

import pytest
import torch

from rsdbench.backends.aot import gemm, library
from rsdbench.backends.aot.gemm import LARGE, is_small, large_linear, linear, summed_linear, summed_matmul
from rsdbench.backends.projections import join_projections
from rsdbench.models.loading import lay_out

from .conftest import make_pair, tiny_opt

pytestmark = pytest.mark.skipif(not gemm.onednn_at_hand(), reason="this build of torch has no oneDNN")
SHIM = b"aoti_torch_cpu__linear_pointwise"


def layers(inputs, outputs, by_input):
    torch.manual_seed(inputs)
    layer = torch.nn.Linear(inputs, outputs)
    if by_input:
        lay_out(layer)
    return layer


@pytest.mark.parametrize("by_input", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [(1,), (7,), (1, 31), (3, 5)])
def test_a_large_product_gives_the_same_numbers(rows, bias, by_input):
    layer = layers(320, 256, by_input)
    assert layer.weight.is_contiguous() != by_input
    x, bias = torch.randn(*rows, 320), layer.bias if bias else None
    with torch.inference_mode():
        ours, expected = linear(x, layer.weight, bias), torch.nn.functional.linear(x, layer.weight, bias)
    assert ours.shape == (*rows, 256)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_what_is_exported_has_the_shapes_of_what_runs():
    x, weight, bias = torch.randn(2, 3, 320), torch.randn(256, 320), torch.randn(256)
    torch.library.opcheck(large_linear, (x, weight, bias, "none", None, None))
    torch.library.opcheck(large_linear, (x, weight, None, "none", None, None))


@pytest.mark.skipif(not library.compiler_at_hand(), reason="no C++ compiler: apt-get install g++")
@pytest.mark.parametrize(("outputs", "calls"), [(LARGE // 256, True), (LARGE // 256 - 1, False)])
def test_compiled_code_calls_onednn_for_large_matrices_and_reads_them_where_they_lie(outputs, calls, compiled_cache):
    layer = layers(256, outputs, by_input=True)
    sizes = ({0: torch.export.Dim.DYNAMIC},)
    options = {"aot_inductor.package_constants_in_so": False}
    recipe = library.Recipe("layer", "layer", [outputs], layer, (torch.randn(3, 256),), sizes, options=options)
    built = recipe.library()
    own = built.weights
    assert {weight.data_ptr() for weight in own.values()} == {layer.weight.data_ptr(), layer.bias.data_ptr()}
    for rows in (1, 9):
        x = torch.randn(rows, 256)
        torch.testing.assert_close(built.run([x])[0], layer(x), rtol=1e-4, atol=1e-5)
    code = recipe.path.read_bytes()
    assert any(SHIM in part for part in unpacked(code, ".so")) == calls


def unpacked(package, suffix):
    """The parts of a library's file that end so."""
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        return [archive.read(name) for name in archive.namelist() if name.endswith(suffix)]


def test_weights_of_linear_layers_lie_by_input_and_are_the_same():
    model, plain = make_pair("opt").target, make_pair("opt").target
    lay_out(model)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            assert layer.weight.t().is_contiguous()
    assert model.lm_head.weight is model.get_input_embeddings().weight, "still tied"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    tokens = torch.tensor([[2, 5, 9]])
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens).logits, plain(tokens).logits, rtol=1e-4, atol=1e-4)


def test_weights_of_another_precision_stay_as_they_are():
    model = tiny_opt(1).half()
    before = [weight.data_ptr() for weight in model.parameters()]
    lay_out(model)
    assert [weight.data_ptr() for weight in model.parameters()] == before


@pytest.mark.parametrize("by_input", [False, True])
def test_joined_projections_lie_as_their_parts_did(by_input):
    model = make_pair("opt").target
    if by_input:
        lay_out(model)
    join_projections(model)
    joint = model.model.decoder.layers[0].self_attn.q_proj.joint
    assert (joint.weight.t() if by_input else joint.weight).is_contiguous()


@pytest.mark.parametrize("bias", [False, True])
def test_products_of_small_models_give_the_same_numbers(bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 40, bias)
    for rows in ((1,), (7,), (2, 31)):
        x = torch.randn(*rows, 24)
        torch.testing.assert_close(summed_linear(x, layer.weight, layer.bias), layer(x), rtol=1e-4, atol=1e-5)
    for left, right in (
        ((3, 5), (5, 4)),
        ((2, 3, 5), (2, 5, 4)),
        ((2, 1, 3, 5), (1, 6, 5, 4)),
        ((5,), (5, 4)),
        ((5,), (5,)),
    ):
        x, y = torch.randn(left), torch.randn(right)
        torch.testing.assert_close(summed_matmul(x, y), torch.matmul(x, y), rtol=1e-4, atol=1e-5)


def test_a_model_is_small_if_all_its_products_are():
    assert is_small(make_pair("opt").target)
    assert is_small(make_pair("llama").drafter)
    assert not is_small(make_pair("opt", vocabulary=LARGE // 16).drafter), "its head is large"
    assert not is_small(make_pair("opt").target.bfloat16())


@pytest.mark.skipif(not library.compiler_at_hand(), reason="no C++ compiler: apt-get install g++")
def test_a_small_model_calls_no_products(compiled_cache):
    layer = layers(16, 24, by_input=True)
    sizes = ({0: torch.export.Dim.DYNAMIC},)
    options = {"aot_inductor.package_constants_in_so": False}
    for small in (True, False):
        recipe = library.Recipe("small", "small", [], layer, (torch.randn(3, 16),), sizes, small, options)
        built = recipe.library()
        own = built.weights
        assert {weight.data_ptr() for weight in own.values()} == {layer.weight.data_ptr(), layer.bias.data_ptr()}
        for rows in (1, 9):
            x = torch.randn(rows, 16)
            torch.testing.assert_close(built.run([x])[0], layer(x), rtol=1e-4, atol=1e-5)
        code = recipe.path.read_bytes()
        assert any(b"aoti_torch_cpu_mm_out" in part for part in unpacked(code, ".so")) != small
