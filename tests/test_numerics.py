"""Extreme laws: rules and draws stay sound at vocabularies, logits, temperatures and precisions that models have."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rsdbench
from rsdbench.decoding import loop
from rsdbench.decoding.drafting import root_level
from rsdbench.decoding.methods import METHODS
from rsdbench.sampling.distributions import Warp
from rsdbench.sampling.gumbel import conditioned_scores, draw, group_size
from rsdbench.verification.k_seq import at_least_one

from .conftest import all_structures, gumbel_noise, make_pair

BATCH = 4
STRUCTURES = [(method, structure) for method, structure, _ in all_structures()]
WARPS = st.builds(
    Warp, st.sampled_from([0.0, 1e-4, 0.01, 0.3, 1.0, 100.0]), st.sampled_from([1e-6, 0.5, 0.9, 1 - 1e-6, 1.0])
)


@st.composite
def cases(draw_from):
    """Logits [BATCH, V] of target and drafter: a random pair, ties and -inf, equal ones, and shifted ones."""
    size = draw_from(st.sampled_from([2, 3, 8, 1000, 50272]))
    spread = draw_from(st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]))
    dtype = draw_from(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    generator = torch.Generator().manual_seed(draw_from(st.integers(0, 2**31)))
    target, drafter = ((torch.rand(BATCH, size, generator=generator) * 2 - 1) * spread for _ in range(2))
    target[1], drafter[1] = target[1].round(), drafter[1].round()
    target[1, : size // 2], drafter[1, size // 2 + 1 :] = float("-inf"), float("-inf")
    drafter[2] = target[2]
    drafter[3] = target[3] * (1 + 1e-6)
    return target.to(dtype), drafter.to(dtype), generator


def check_level(level, log_q, scored):
    """Drafts have positive probability, and those of stochastic beam search scores that are numbers."""
    row = torch.arange(BATCH).unsqueeze(1)
    assert (log_q[row, level.parents, level.tokens][level.valid] > float("-inf")).all()
    for scores in (level.log_prob, level.score):
        assert not scores.isnan().any() if scored else scores is None


def distinct(level):
    for tokens, parents, valid in zip(level.tokens, level.parents, level.valid.expand_as(level.tokens), strict=True):
        drafts = [(int(p), int(t)) for t, p, ok in zip(tokens, parents, valid, strict=True) if ok]
        assert len(drafts) == len(set(drafts))


@settings(max_examples=400, deadline=None)
@given(case=cases(), warp=WARPS, method_and_structure=st.sampled_from(STRUCTURES))
def test_two_levels_of_drafts_and_their_verification(case, warp, method_and_structure):
    target, drafter, generator = case
    method = METHODS[method_and_structure[0]]
    shape = method.drafting.shape(method_and_structure[1])
    level = root_level(BATCH, torch.device("cpu"))
    p = warp.law(target)
    for depth in range(1, min(2, shape.depth) + 1):
        log_q = warp.log_law(drafter).unsqueeze(1).expand(-1, level.tokens.shape[1], -1)
        width = shape.widths[depth - 1]
        rows = method.drafting.noise_rows(level.tokens.shape[1], width)
        noise = gumbel_noise((BATCH, rows, group_size(drafter.shape[1])), generator)
        level = method.drafting.expand(level, log_q, noise, width)
        check_level(level, log_q, scored=method_and_structure[0] == "rsd_s")
        if not method.drafting.replacement:
            distinct(level)
        if depth == 1:
            verdict = method.rule(p, log_q[:, 0].exp(), level.tokens, level.valid.expand_as(level.tokens))
            check_verdict(p, level, verdict, generator)


def check_verdict(p, level, verdict, generator):
    """Probabilities, and nothing that the target cannot emit."""
    assert not verdict.accept.isnan().any()
    assert ((verdict.accept >= 0) & (verdict.accept <= 1)).all()
    assert (verdict.accept[p.gather(1, level.tokens) == 0] == 0).all()
    assert not verdict.residual.isnan().any()
    assert (verdict.residual >= 0).all()
    assert (verdict.residual.sum(1) - 1).abs().max() < 1e-4
    assert (verdict.residual[p == 0] == 0).all()
    noise = gumbel_noise((len(p), 2, group_size(p.shape[1])), generator)
    token = draw(verdict.residual.log(), noise).unsqueeze(1)
    assert (p.gather(1, token) > 0).all()


def test_a_law_that_underflows_keeps_no_token_that_cannot_be_verified():
    """Behind a token that is nearly certain, the others' probabilities underflow: they must not be drawn at all."""
    logits = torch.tensor([[0.0, -95.0, -100.0, -105.0, -80.0]])
    log_law = Warp().log_law(logits)
    assert log_law.exp().tolist() == Warp().law(logits).tolist()
    assert (log_law > float("-inf")).tolist() == [[True, False, False, False, True]]


@settings(max_examples=60, deadline=None)
@given(
    warp=WARPS,
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    scale=st.sampled_from([1.0, 100.0, 3000.0]),
    seed=st.integers(0, 1000),
    method_and_structure=st.sampled_from([("ar", None), *STRUCTURES]),
)
def test_models_in_half_precision_emit_only_what_the_target_can(warp, dtype, scale, seed, method_and_structure):
    pair = make_pair("opt")
    for model in (pair.target, pair.drafter):
        model.model.decoder.final_layer_norm.weight.data *= scale  # the logits' scale
        model.model.decoder.final_layer_norm.bias.data *= scale
        model.to(dtype)
    assert pair.target.dtype == dtype
    real, blocks = loop.verify, []

    def checked(shape, tree, tempered, rule, own_warp, *rest):
        assert tempered.dtype == torch.float32
        outcome = real(shape, tree, tempered, rule, own_warp, *rest)
        law = own_warp.cut(tempered).exp()
        sequence = torch.arange(len(law))
        for step in range(shape.depth + 1):
            here = step <= outcome.accepted
            emitted = law[sequence, outcome.rows[:, step], outcome.tokens[:, step]]
            assert (emitted[here] > 0).all()
        blocks.append(len(law))
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "verify", checked)
        out = rsdbench.generate(
            pair, [[2, 9, 4], [2], [7, 7]], *method_and_structure, 6, warp.temperature, warp.top_p, seed=seed
        )
    assert sum(blocks) == sum(out.blocks)
    assert [len(t) for t in out.tokens] == [6, 6, 6]


def exact_score(parent, largest, perturbed):
    """Gumbel with location log-probability, truncated so that the siblings' maximum is the parent's score."""
    return -mpmath.log(mpmath.exp(-parent) - mpmath.exp(-largest) + mpmath.exp(-perturbed))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.01, 1.0, 10.0, 200.0]), st.floats(-60, 60))
def test_conditioned_scores_against_mpmath(seed, spread, parent):
    generator = torch.Generator().manual_seed(seed)
    log_q = (torch.randn(6, generator=generator, dtype=torch.float64) * spread).log_softmax(-1)
    noise = -(-torch.rand(6, generator=generator, dtype=torch.float64).log()).log()
    log_prob, score = (torch.tensor(x, dtype=torch.float64) for x in (-1.5, parent))
    _, ours = conditioned_scores(log_q, noise, log_prob, score)
    with mpmath.workdps(400):
        perturbed = [mpmath.mpf(float(x)) for x in log_prob + log_q + noise]
        theirs = [exact_score(mpmath.mpf(parent), max(perturbed), x) for x in perturbed]
    for x, y in zip(ours.tolist(), theirs, strict=True):
        assert abs(x - float(y)) <= 1e-12 * max(1.0, abs(x))


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.floats(0, 1), st.floats(0, 1e-12), st.floats(1 - 1e-9, 1)), st.integers(1, 60))
def test_at_least_one_against_mpmath(beta, number):
    ours = float(at_least_one(torch.tensor(beta, dtype=torch.float64), torch.tensor(number, dtype=torch.float64)))
    with mpmath.workdps(400):
        theirs = 1 - (1 - mpmath.mpf(beta)) ** number
        assert abs(ours - theirs) <= mpmath.mpf(1e-12) * theirs + mpmath.mpf(1e-320)  # the last digit of denormals


def test_gumbel_noise_against_mpmath():
    """The noise is -log(-log u): the uniforms are drawn again and the double logarithm is taken exactly."""
    noise = gumbel_noise((500,), torch.Generator().manual_seed(3))
    uniforms = torch.rand(500, generator=torch.Generator().manual_seed(3))
    for ours, u in zip(noise.tolist(), uniforms.tolist(), strict=True):
        assert abs(ours - float(-mpmath.log(-mpmath.log(u)))) <= 1e-6 * max(1.0, abs(ours)) + 1e-6 / (1 - u + 1e-8)
