"""Weight-only quantisation of the target: what it costs in accuracy, what it may not change, where it is recorded."""

import pandas as pd
import pytest
import torch

import rsdbench
from rsdbench.models import quantization
from rsdbench.models.placement import bytes_of
from rsdbench.models.quantization import quantization_config, shrink
from rsdbench.pair import parameters
from rsdbench.runner.cells import RowJob
from rsdbench.runner.compose import check_sources, compose

from . import commands
from .conftest import resembling, tiny_opt

PROMPTS = [[2, 5, 6, 7], [2, 11], [3, 20, 21]]
PLANS = [("sd", "6"), ("spectr", "2x3"), ("rsd_c", "2-2"), ("rsd_s", "3x2")]
SMOKE = ["experiment=smoke", "drafter=opt-25k", "target=opt-2.6m", "dataset=wmt"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    target = tiny_opt(1, width=64, layers=3, std=0.15)
    target.save_pretrained(home / "target")
    resembling(target, 3, 0.01).save_pretrained(home / "drafter")
    return str(home / "target"), str(home / "drafter")


@pytest.fixture(params=["int8", "int4"])
def kind(request):
    pytest.importorskip("torchao")
    return request.param


def linear(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


def test_a_quantised_target_decodes_as_itself(folders, kind):
    plain = rsdbench.load_pair(*folders, device="cpu")
    pair = rsdbench.load_pair(*folders, device="cpu", quantization=kind)
    assert pair.quantization == kind
    packed = {name for name, layer in linear(pair.target).items() if type(layer.weight.data) is not torch.Tensor}
    assert packed == linear(pair.target).keys() - {"lm_head"}
    assert all(type(p.data) is torch.Tensor for p in pair.drafter.parameters()), "the drafter stays as it is"
    assert parameters(pair.target) == parameters(plain.target)
    assert pair.cost_ratio == plain.cost_ratio

    tokens = torch.tensor([[2, 5, 6, 7, 8, 9, 10, 11]])
    with torch.no_grad():
        ours, full = (p.target(tokens).logits for p in (pair, plain))
        for name in packed:
            linear(plain.target)[name].weight.copy_(linear(pair.target)[name].weight.dequantize())
        torch.testing.assert_close(ours, plain.target(tokens).logits, rtol=1e-3, atol=1e-4)
    error = float((ours - full).norm() / full.norm())
    assert 0 < error < {"int8": 0.02, "int4": 0.3}[kind]

    for temperature in (0.0, 1.0):
        ar = rsdbench.generate(pair, PROMPTS, "ar", None, 12, temperature)
        for method, structure in PLANS:
            out = rsdbench.generate(pair, PROMPTS, method, structure, 12, temperature)
            assert temperature or out.tokens == ar.tokens, method
            assert sum(out.blocks) < sum(ar.blocks)
    assert not pair.can_compile
    with pytest.raises(rsdbench.UsageError, match=f"does not go with quantization={kind}"):
        pair.compile()


def test_bfloat16_goes_too(folders, kind):
    pair = rsdbench.load_pair(*folders, device="cpu", dtype="bfloat16", quantization=kind)
    out = rsdbench.generate(pair, PROMPTS, "rsd_s", "3x2", 8, 0.3)
    assert [len(tokens) for tokens in out.tokens] == [8] * len(PROMPTS)


def test_on_a_gpu_int4_is_packed():
    pytest.importorskip("torchao")
    how = quantization_config("int4", on_gpu=True).quant_type
    assert (how.int4_packing_format, how.group_size) == ("tile_packed_to_4d", 32)
    assert type(quantization_config("int8", on_gpu=True).quant_type).__name__ == "Int8WeightOnlyConfig"


def test_sizes_are_known_before_anything_is_quantised():
    for kind, size in (("int8", 1), ("int4", 0.625)):
        model = tiny_opt(1, width=64, layers=3).to("meta").bfloat16()
        packed = sum(m.weight.numel() for name, m in linear(model).items() if name != "lm_head")
        before = bytes_of(model)
        shrink(model, kind)
        assert bytes_of(model) == before - packed * (2 - size)


def refusal(*arguments, **options):
    with pytest.raises(rsdbench.UsageError) as caught:
        rsdbench.load_pair(*arguments, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_quantised_is_refused(folders, monkeypatch):
    assert "unknown quantization 'int3': choose int8, int4 or null" in refusal(*folders, quantization="int3")
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    assert "pip install 'rsdbench[quantization]'" in refusal(*folders, quantization="int8")
    config, _ = compose([*SMOKE, "target.quantization=int4"])
    with pytest.raises(rsdbench.UsageError, match="needs the library torchao"):
        check_sources(config)
    monkeypatch.setattr(quantization, "find_spec", lambda name: name)
    assert "take bfloat16 or float32" in refusal(*folders, quantization="int8", dtype="float16")
    assert "loaded by its name" in refusal(tiny_opt(1), folders[1], quantization="int8")
    with pytest.raises(rsdbench.UsageError, match="take bfloat16"):
        quantization.check_dtype("int4", torch.float32, on_gpu=True)


def test_cells_are_named_by_it_and_by_nothing_new_without_it():
    plain, quantised, capped = (
        RowJob(compose([*SMOKE, *more])[0])
        for more in ([], ["target.quantization=int8"], ["max_memory={0:40GiB,cpu:200GiB}"])
    )
    assert not plain.content["target"].keys() - {"name", "contents"}
    assert "max_memory" not in plain.content
    assert quantised.content["target"] == {**plain.content["target"], "quantization": "int8"}
    assert capped.content["max_memory"] == {"0": "40GiB", "cpu": "200GiB"}
    assert len({row.cells[0].id for row in (plain, quantised, capped)}) == 3


def test_every_row_says_how_the_target_was_quantised(tmp_path):
    pytest.importorskip("torchao")
    for name, more in (("plain", []), ("int8", ["target.quantization=int8"])):
        _, err = commands.rsdbench("run", *commands.SMALL, *more, f"results={tmp_path / name}")
        assert "torchao" not in err
        found = pd.read_parquet(tmp_path / name / "cells")
        assert found.quantization.isna().all() if name == "plain" else set(found.quantization) == {"int8"}
