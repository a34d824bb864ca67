"""Joined projections: the same numbers from one product, with the model's names and weights as they were."""

import copy

import pytest
import torch

import rsdbench
from rsdbench.backends.projections import Part, join_projections
from rsdbench.pair import parameters

from .conftest import PAIRS, make_pair

PROMPTS = [[2, 5, 9, 33, 12, 7], [2, 40]]


def parts(model):
    return [m for m in model.modules() if isinstance(m, Part)]


@pytest.mark.parametrize("kind", PAIRS)
def test_tokens_and_weights_are_the_same(kind):
    pair, plain = make_pair(kind), make_pair(kind)
    for model in (pair.target, pair.drafter):
        join_projections(model)
        assert len(parts(model)) == 3 * model.config.num_hidden_layers
    assert parameters(pair.target) == parameters(plain.target)
    for ours, theirs in ((pair.target, plain.target), (pair.drafter, plain.drafter)):
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    for method, structure in (("ar", "0"), ("sd", "6"), ("rsd_s", "3x2")):
        ours, theirs = (rsdbench.generate(p, PROMPTS, method, structure, 16, 0.0) for p in (pair, plain))
        assert ours.tokens == theirs.tokens


def test_weights_lie_in_one_piece_and_a_second_call_changes_nothing():
    model = make_pair("llama").target
    join_projections(model)
    before = parts(model)
    for part in before:
        assert part.weight.untyped_storage().data_ptr() == part.joint.weight.untyped_storage().data_ptr()
    join_projections(model)
    assert all(a is b for a, b in zip(parts(model), before, strict=True))


def test_a_part_alone_gives_its_own_output():
    """Layers that are asked for different inputs, or in another order, give what they gave before."""
    plain = make_pair("opt").target.model.decoder.layers[0].self_attn
    joined = make_pair("opt").target
    join_projections(joined)
    joined = joined.model.decoder.layers[0].self_attn
    x, y = torch.randn(2, 1, 3, 16)
    for name, inputs in (("v_proj", x), ("q_proj", x), ("k_proj", y), ("k_proj", x), ("q_proj", y), ("v_proj", y)):
        torch.testing.assert_close(getattr(joined, name)(inputs), getattr(plain, name)(inputs))


def test_a_copy_has_weights_of_its_own():
    model = make_pair("opt").target
    join_projections(model)
    x = torch.tensor([PROMPTS[0]])
    other, expected = copy.deepcopy(model), model(x).logits
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.zero_()
    assert torch.equal(other(x).logits, expected)
    assert not torch.equal(model(x).logits, expected)


def test_what_cannot_be_joined_stays():
    model = make_pair("opt").target
    attention = model.model.decoder.layers[0].self_attn
    attention.k_proj = torch.nn.Linear(16, 16, bias=False)
    model.model.decoder.layers[1].self_attn.v_proj._hf_hook = object()  # as accelerate's, of a layer that is lent
    join_projections(model)
    assert not parts(model)


def test_quantised_layers_stay():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = make_pair("opt").target
    quantize_(model, Int8WeightOnlyConfig())
    join_projections(model)
    assert not parts(model)
