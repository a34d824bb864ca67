"""The engine against transformers' own greedy decoding and against its own counters."""

import pytest
import torch

import rsdbench
from rsdbench.backends import eager
from rsdbench.backends.eager import EagerBackend
from rsdbench.methods import METHODS, get_shape
from rsdbench.pair import Pair

from .conftest import PAIRS, all_structures, make_pair, resembling, tiny_llama, tiny_opt

PROMPTS = [[2, 5, 9, 33, 12, 7], [2], [2, 40, 41, 3, 3, 3, 3, 3, 3, 3, 60, 9], [7, 8, 9], [2, 17]]


def greedy(model, prompt, new_tokens, eos=None):
    """transformers' own greedy decoding."""
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        max_new_tokens=new_tokens, eos_token_id=eos, pad_token_id=1,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def references(pairs):
    return {kind: [greedy(pair.target, p, 20) for p in PROMPTS] for kind, pair in pairs.items()}


@pytest.mark.parametrize("kind", PAIRS)
def test_ar_at_temperature_zero_is_transformers_greedy(pairs, references, kind):
    out = rsdbench.generate(pairs[kind], PROMPTS, "ar", max_new_tokens=20, temperature=0)
    assert out.tokens == references[kind]
    assert out.blocks == [20] * len(PROMPTS)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize(("method", "structure", "budget"), all_structures())
def test_every_structure_at_temperature_zero_is_greedy(pairs, references, kind, method, structure, budget):
    assert get_shape(method, structure).budget == budget
    out = rsdbench.generate(pairs[kind], PROMPTS, method, structure, max_new_tokens=20, temperature=0)
    assert out.tokens == references[kind]
    if kind != "mixed":
        assert sum(out.blocks) < 20 * len(PROMPTS), "a resembling drafter must save some target calls"


@pytest.mark.parametrize("method", [m for m in METHODS if m != "ar"])
def test_a_perfect_drafter_is_always_accepted(method):
    target = tiny_opt(5)
    structure = METHODS[method].structures[6][0]
    depth = get_shape(method, structure).depth
    out = rsdbench.generate(Pair(target, target), PROMPTS, method, structure, 3 * (depth + 1), temperature=1.0)
    assert out.blocks == [3] * len(PROMPTS)
    assert out.accepted_by_depth == [[3] * depth] * len(PROMPTS)


@pytest.mark.parametrize(("method", "structure", "budget"), [("ar", None, 0), *all_structures((6, 21))])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_counters_agree_with_tokens(pairs, method, structure, budget, temperature):
    eos = 11
    out = rsdbench.generate(
        pairs["opt"], PROMPTS * 3, method, structure, 17, temperature=temperature, seed=4, eos_token_id=eos
    )
    for tokens, blocks, accepted in zip(out.tokens, out.blocks, out.accepted_by_depth, strict=True):
        assert 1 <= len(tokens) <= 17
        assert eos not in tokens[:-1]
        assert len(tokens) == 17 or tokens[-1] == eos
        # every block adds one token behind its accepted drafts, unless the end came among them
        assert sum(accepted) + blocks - 1 <= len(tokens) <= sum(accepted) + blocks
        assert accepted == sorted(accepted, reverse=True)
        assert all(a <= blocks for a in accepted)


def test_end_of_sequence_is_exact_to_the_token(pairs):
    whole = rsdbench.generate(pairs["opt"], PROMPTS, "ar", max_new_tokens=20, temperature=0).tokens
    eos = whole[0][7]
    expected = [t[: t.index(eos) + 1] if eos in t else t for t in whole]
    assert any(len(t) < 20 for t in expected)
    for method, structure, _ in all_structures((30,)):
        out = rsdbench.generate(pairs["opt"], PROMPTS, method, structure, 20, temperature=0, eos_token_id=eos)
        assert out.tokens == expected


def test_a_sequence_ends_with_any_of_several_tokens(pairs):
    whole = rsdbench.generate(pairs["opt"], PROMPTS, "ar", max_new_tokens=20, temperature=0).tokens
    ends = {whole[0][7], whole[1][3]}
    expected = [t[: min((i for i, x in enumerate(t) if x in ends), default=19) + 1] for t in whole]
    assert len({t[-1] for t in expected} & ends) == 2
    for method, structure in (("ar", None), ("sd", "6"), ("rsd_s", "2x3")):
        out = rsdbench.generate(pairs["opt"], PROMPTS, method, structure, 20, temperature=0, eos_token_id=sorted(ends))
        assert out.tokens == expected


@pytest.mark.parametrize("new_tokens", [1, 2, 5])
def test_length_limit_is_exact_to_the_token(pairs, new_tokens):
    for method, structure, _ in all_structures((14,)):
        out = rsdbench.generate(pairs["opt"], PROMPTS, method, structure, new_tokens, temperature=0.5)
        assert [len(t) for t in out.tokens] == [new_tokens] * len(PROMPTS)


@pytest.mark.parametrize("make", [tiny_opt, tiny_llama])
def test_trees_are_capped_at_the_last_position(make):
    target = make(1, positions=24)
    pair = Pair(target, resembling(target, 3, 0.02))
    prompts = [[2, *range(3, 3 + n)] for n in (2, 9, 14, 22)]
    reference = [greedy(target, p, 24 - len(p)) for p in prompts]
    for method, structure, _ in [("ar", None, 0), *all_structures((6, 30))]:
        out = rsdbench.generate(pair, prompts, method, structure, max_new_tokens=50, temperature=0)
        assert out.tokens == reference, (method, structure)


def test_a_batch_gives_what_single_prompts_give_at_temperature_zero(pairs):
    for method, structure, _ in all_structures((10,)):
        batch = rsdbench.generate(pairs["llama"], PROMPTS, method, structure, 12, temperature=0)
        single = [rsdbench.generate(pairs["llama"], [p], method, structure, 12, temperature=0) for p in PROMPTS]
        assert batch.tokens == [s.tokens[0] for s in single]
        assert batch.blocks == [s.blocks[0] for s in single]


@pytest.mark.parametrize(("method", "structure", "budget"), [("ar", None, 0), *all_structures((6,))])
def test_a_seed_fixes_the_tokens(pairs, method, structure, budget):
    def run(seed):
        return rsdbench.generate(pairs["opt"], PROMPTS, method, structure, 20, temperature=1.0, seed=seed)

    first, again, other = run(1), run(1), run(2)
    assert first.tokens == again.tokens
    assert first.blocks == again.blocks
    assert first.tokens != other.tokens


@pytest.mark.parametrize(("method", "structure", "budget"), [("ar", None, 0), *all_structures((6, 30))])
@pytest.mark.parametrize("warp", [(0.0, 1.0), (0.7, 1.0), (0.7, 0.9)])
def test_large_laws_go_in_parts_and_stay_the_same(pairs, monkeypatch, method, structure, budget, warp):
    """What vocabularies of 50,000 tokens take, forced upon one of 64."""
    expected = rsdbench.generate(pairs["mixed"], PROMPTS, method, structure, 10, *warp, seed=1)
    monkeypatch.setattr(eager, "PIECE", 64)
    assert rsdbench.generate(pairs["mixed"], PROMPTS, method, structure, 10, *warp, seed=1).tokens == expected.tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_decode(dtype):
    pair = make_pair("opt")
    pair.target.to(dtype)
    pair.drafter.to(dtype)
    for method, structure, _ in [("ar", None, 0), *all_structures((10,))]:
        out = rsdbench.generate(pair, PROMPTS, method, structure, 8, temperature=0.7, top_p=0.9)
        assert [len(t) for t in out.tokens] == [8] * len(PROMPTS)


def test_no_prompts_give_no_tokens(pairs):
    assert rsdbench.generate(pairs["opt"], [], "sd", "6").tokens == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "medusa"}, "unknown method 'medusa': choose from ar, sd, .*rsd_s"),
        ({"structure": "3-2"}, "structure '3-2' is not of the form '2x3'"),
        ({"structure": 2.5}, "needs a structure of the form '2x3'"),
        ({"structure": "0x3"}, "not of the form"),
        ({"temperature": -0.1}, "temperature must be a number >= 0"),
        ({"temperature": float("nan")}, "temperature must be a number >= 0"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p must lie in \(0, 1\]"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens must be at least 1"),
        ({"prompts": [2, 3]}, "prompts must be a list of lists"),
        ({"prompts": [[2, 3], []]}, "prompt 1 is empty"),
        ({"prompts": [[2] * 64]}, "prompt 0 has 64 tokens, but these models decode 64 positions"),
        ({"prompts": [[2, 64]]}, "outside the vocabulary of 64"),
    ],
)
def test_bad_input_is_one_documented_exception(pairs, change, message):
    arguments = {"prompts": PROMPTS, "method": "rsd_s", "structure": "2x3", **change}
    with pytest.raises(rsdbench.UsageError, match=message) as caught:
        rsdbench.generate(pairs["opt"], **arguments)
    assert "\n" not in str(caught.value)


def test_equal_prompts_are_prefilled_once_and_decoded_each(pairs, monkeypatch):
    prefilled, real = [], EagerBackend.forward_prompts
    monkeypatch.setattr(
        EagerBackend, "forward_prompts", lambda own, lm, t: prefilled.append(t.shape[0]) or real(own, lm, t)
    )
    prompts = [PROMPTS[i] for i in (0, 2, 0, 1, 2, 2)]
    for method, structure, _ in [("ar", None, 0), *all_structures((6,))]:
        prefilled.clear()
        repeated = rsdbench.generate(pairs["opt"], prompts, method, structure, 12, temperature=0)
        assert set(prefilled) == {3}
        single = [rsdbench.generate(pairs["opt"], [p], method, structure, 12, temperature=0) for p in prompts]
        assert repeated.tokens == [s.tokens[0] for s in single]
        assert repeated.blocks == [s.blocks[0] for s in single]
    out = rsdbench.generate(pairs["opt"], [PROMPTS[0]] * 50, "rsd_s", "2x3", 12, temperature=1.0)
    assert len({tuple(t) for t in out.tokens}) > 40, "each copy draws its own tokens"
