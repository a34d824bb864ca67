"""What the check at loading lets pass and what it refuses; each model is tiny, random and of a real family."""

from contextlib import suppress

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import rsdbench
from rsdbench.backends import eager, self_check
from rsdbench.backends.self_check import check_model, smallest_window
from rsdbench.decoding.forward import FULL

from . import commands
from .conftest import BASE, resembling, tiny_llama, tiny_opt

WINDOW = 8
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
NEO = {
    "vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48, "window_size": 256,
    "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
MPT = {
    "vocab_size": 64,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "max_seq_len": 64,
    "expansion_ratio": 2,
    "initializer_range": 0.3,
}
GOOD = {"gpt2": GPT2, "qwen3": BASE, "gpt_neox": BASE | {"rotary_pct": 1.0}, "mistral": BASE | {"sliding_window": None}}
WRONG = {
    "gpt_neo": NEO,  # weighs by column, whatever its window
    "mpt": MPT,  # biases by column
    "mamba": BASE | {"state_size": 8, "conv_kernel": 4, "expand": 2},  # a state that cannot be rolled back
    "recurrent_gemma": BASE | {"lru_width": 32, "attention_window_size": 64, "block_types": ["recurrent", "attention"]},
}


def model_of(family, settings, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.3)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", GOOD)
def test_plain_attention_passes_in_every_precision(family, dtype):
    assert check_model(model_of(family, GOOD[family], dtype), family) == 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", WRONG)
def test_what_would_be_decoded_wrongly_is_refused_in_a_line(family, dtype):
    target = model_of(family, WRONG[family], dtype)
    with pytest.raises(rsdbench.UsageError, match=f"its family \\({family}\\)") as refused:
        rsdbench.load_pair(target, resembling(target, 1, 0.01), device="cpu")
    assert "\n" not in str(refused.value)


def test_the_drafter_is_checked_too():
    with pytest.raises(rsdbench.UsageError, match="model 'drafter' would be decoded wrongly"):
        rsdbench.load_pair(tiny_opt(1), model_of("gpt_neo", NEO), device="cpu")


@pytest.mark.parametrize("make", [tiny_opt, tiny_llama])
def test_a_visible_rejected_branch_is_noticed(make, monkeypatch):
    assert check_model(make(1), "a")

    def all_visible(parents):
        return torch.ones(1 + len(parents), 1 + len(parents), dtype=torch.bool).tril()

    monkeypatch.setattr(self_check, "ancestors_of", all_visible)
    with pytest.raises(rsdbench.UsageError, match="does not keep to the mask"):
        check_model(make(1), "a")


def test_a_window_that_no_text_fills_does_no_harm_and_longer_texts_are_refused():
    target = model_of("mistral", BASE | {"sliding_window": 32})
    pair = rsdbench.load_pair(target, resembling(target, 1, 0.01), device="cpu", max_length=32)
    prompt = list(range(3, 20))
    out = rsdbench.generate(pair, [prompt], "rsd_s", "3x2", 8, temperature=0)
    own = target.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
    assert out.tokens[0][: len(own)] == own
    with pytest.raises(rsdbench.UsageError, match="these models decode 32 positions"):
        rsdbench.generate(pair, [list(range(3, 40))], "rsd_s", "3x2", 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("beyond", [1, 3])
def test_texts_that_hardly_outgrow_their_window_are_not_let_through(beyond, dtype, monkeypatch):
    """One masked token in a window is covered by rounding: the check takes a text that cannot be overlooked."""
    monkeypatch.setattr(eager, "windows_of", lambda config: {"full_attention": FULL})
    wide = model_of("mistral", BASE | {"sliding_window": 32, "max_position_embeddings": 256}, dtype)
    with pytest.raises(rsdbench.UsageError, match="would be decoded wrongly"):
        check_model(wide, "wide", max_length=32 + beyond)
    narrow = model_of("mistral", BASE | {"sliding_window": 60, "max_position_embeddings": 60 + beyond}, dtype)
    with suppress(rsdbench.UsageError):  # in float32 one token is noticed
        assert check_model(narrow, "narrow") == 60, "where the model has no longer ones, its window is the limit"


def test_it_can_be_skipped():
    target = model_of("gpt_neo", NEO)
    assert not rsdbench.load_pair(target, target, device="cpu", check=False).checked
    assert rsdbench.load_pair(tiny_opt(1), tiny_opt(2), device="cpu").checked


def test_windows_are_read_from_the_configuration():
    unused = BASE | {"max_window_layers": 2, "use_sliding_window": False}
    sizes = {
        "mistral": (BASE | {"sliding_window": WINDOW}, WINDOW),
        "qwen2": (unused, 0),
        "gpt_neo": (NEO, 256),
        "gpt2": (GPT2, 0),
    }
    assert {f: smallest_window(AutoConfig.for_model(f, **own)) for f, (own, _) in sizes.items()} == {
        family: size for family, (_, size) in sizes.items()
    }


def test_a_run_refuses_the_pair_and_records_say_what_was_skipped(tmp_path):
    from transformers import AutoTokenizer

    from rsdbench.models.checkpoints import MODELS
    from rsdbench.results.collect import collect

    model = model_of("gpt_neo", NEO | {"vocab_size": 1024, "max_position_embeddings": 512})
    for name in ("target", "drafter"):
        model.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(MODELS / "opt-25k").save_pretrained(tmp_path / name)
    run = [
        "run", *commands.SMALL, f"target.path={tmp_path}/target", f"drafter.path={tmp_path}/drafter",
        "compile=false", f"results={tmp_path}/out",
    ]  # fmt: skip
    _, err = commands.rsdbench(*run, code=2)
    assert "would be decoded wrongly: its family (gpt_neo), with windows of 256 positions" in err
    commands.rsdbench(*run, "check=false")
    origins = collect(tmp_path / "out").origins
    assert {origin["self_check"] for origin in origins} == {"skipped"}
