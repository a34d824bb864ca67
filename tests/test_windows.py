"""Layers that attend to a window or a chunk: every family's tokens are those of transformers' own generation."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import rsdbench
from rsdbench.backends import eager
from rsdbench.backends.aot import library
from rsdbench.backends.cuda_graphs import graphs
from rsdbench.backends.self_check import check_model
from rsdbench.decoding.forward import FULL, Rows, Window, attention_bias, prompt_rows, within
from rsdbench.models.layouts import windows_of
from rsdbench.pair import Pair

from .conftest import BASE, resembling
from .recordings import graphed, traced

SIZE = 8
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": SIZE}
FAMILIES = {
    "mistral": {"sliding_window": SIZE}, "mixtral": {"sliding_window": SIZE, "num_local_experts": 2},
    "phi3": {"sliding_window": SIZE}, "starcoder2": {"sliding_window": SIZE}, "gemma2": MIXED, "gemma3_text": MIXED,
    "qwen2": {**MIXED, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {**MIXED, "use_sliding_window": True, "max_window_layers": 1}, "cohere2": MIXED,
    "gpt_oss": {**MIXED, "num_local_experts": 2, "num_experts_per_tok": 1}, "olmo3": MIXED, "ministral": MIXED,
    "exaone4": MIXED, "smollm3": {**MIXED, "use_sliding_window": True, "no_rope_layers": [1, 1]},
    "llama4_text": {
        "attention_chunk_size": SIZE, "layer_types": ["chunked_attention", "full_attention"], "num_local_experts": 2,
        "intermediate_size_mlp": 48,
    },
}  # fmt: skip
PROMPTS = [[*range(3, 30)], [5, 6, 7], [*range(20, 60, 2)]]
METHODS = [("ar", "0"), ("sd", "6"), ("spectr", "3x2"), ("rsd_c", "2-2"), ("rsd_s", "3x2")]


def model_of(family):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(BASE | FAMILIES[family]))).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.3)
    return model


def generated(model, prompt, count):
    """The tokens of transformers' own greedy generation."""
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=count, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers_beyond_the_window(family):
    model = model_of(family)
    assert check_model(model, family) == 64
    pair = Pair(model, resembling(model, 1, 0.05))
    expected = [generated(model, prompt, 20) for prompt in PROMPTS]
    for method, structure in METHODS:
        assert rsdbench.generate(pair, PROMPTS, method, structure, 20, 0.0).tokens == expected, method


ELSEWHERE = [
    ("mistral", "recorded"),
    ("gemma3_text", "recorded"),
    ("llama4_text", "recorded"),
    ("gemma3_text", "compiled"),
    pytest.param("mistral", "compiled", marks=pytest.mark.slow),
    pytest.param("llama4_text", "compiled", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("family", "backend"), ELSEWHERE)
def test_other_backends_keep_to_the_window(request, monkeypatch, family, backend):
    model = model_of(family)
    expected = generated(model, PROMPTS[0], 20)
    pair = Pair(model, resembling(model, 1, 0.05))
    if backend == "compiled":
        request.getfixturevalue("compiled_cache")
        if not library.compiler_at_hand():
            pytest.skip("no C++ compiler")
        pair.compile()
    else:
        monkeypatch.setattr(graphs, "record", traced)
        pair = graphed(pair)
    for method, structure in (("ar", "0"), ("rsd_s", "3x2")):
        out = rsdbench.generate(pair, PROMPTS[:1], method, structure, 20, 0.0)
        assert (out.tokens, out.backend) == ([expected], pair.forward)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_without_its_window_is_refused(family, monkeypatch):
    monkeypatch.setattr(eager, "windows_of", lambda config: dict.fromkeys(windows_of(config), FULL))
    with pytest.raises(rsdbench.UsageError, match=f"its family \\({family}\\), with windows of 8 positions"):
        check_model(model_of(family), family)


@pytest.mark.parametrize("window", [Window(3), Window(4, chunk=True)])
def test_a_window_is_of_positions(window):
    """Of a row at position 9, with the prefix at 0 to 6, the root at 7 and its ancestor at 8."""
    rows = Rows(
        torch.zeros(1, 1), torch.tensor([2]), torch.tensor([[[True, False, True, False, True]]]), torch.tensor([7]),
        torch.arange(7), torch.tensor([5]),
    )  # fmt: skip
    seen = within(window, rows) & (attention_bias(rows, True, torch.float32)[0] == 0)
    places = torch.tensor([6, 7, 8, 8, 9, 9, *range(7)])[seen.flatten()].tolist()
    assert sorted(places) == ([7, 8, 9] if window == Window(3) else [8, 9])


def test_prompts_keep_to_the_window_too():
    rows = prompt_rows(torch.zeros(1, 6, dtype=torch.long), 2, 6, 4)
    seen = attention_bias(rows, False, torch.float32, Window(2))[0, 0] == 0
    assert [row.nonzero().flatten().tolist() for row in seen] == [[5, 6], [6, 7], [7, 8], [8, 9]], "slots from 4 on"
