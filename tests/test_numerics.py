"""Extreme laws: rules and draws stay sound at vocabularies, logits, temperatures and precisions that models have."""

import mpmath
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsdbench.backends.repeat import stop_early
from rsdbench.decoding.strategies import Frontier
from rsdbench.decoding.tree import ancestors_of
from rsdbench.decoding.verify import as_it_is
from rsdbench.methods import METHODS, load
from rsdbench.sampling.distributions import Sampling
from rsdbench.sampling.gumbel import conditioned_scores, draw, group_size
from rsdbench.verification import Distributions, TreeView
from rsdbench.verification.bottom_up import bottom_up
from rsdbench.verification.k_seq import at_least_one

from .blocks import blocks, job_of
from .conftest import all_structures, gumbel_noise, make_pair

BATCH = 4
STRUCTURES = [(method, structure) for method, structure, _ in all_structures()]
SAMPLINGS = st.builds(
    Sampling.at, st.sampled_from([0.0, 1e-4, 0.01, 0.3, 1.0, 100.0]), st.sampled_from([1e-6, 0.5, 0.9, 1 - 1e-6, 1.0])
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


def check_level(level, log_q):
    """Drafts have positive probability, and scores are numbers."""
    row = torch.arange(BATCH).unsqueeze(1)
    assert (log_q[row, level.parents, level.tokens][level.frontier.valid] > float("-inf")).all()
    assert not level.frontier.log_prob.isnan().any()
    assert not level.frontier.score.isnan().any()


def distinct(level):
    for tokens, parents, valid in zip(level.tokens, level.parents, level.frontier.valid, strict=True):
        drafts = [(int(p), int(t)) for t, p, ok in zip(tokens, parents, valid, strict=True) if ok]
        assert len(drafts) == len(set(drafts))


@settings(max_examples=400, deadline=None)
@given(case=cases(), sampling=SAMPLINGS, method_and_structure=st.sampled_from(STRUCTURES))
def test_two_levels_of_drafts_and_their_verification(case, sampling, method_and_structure):
    target, drafter, generator = case
    method = METHODS[method_and_structure[0]]
    shape, strategy = method.form.shape(method_and_structure[1]), load(method.strategy)
    frontier = Frontier(torch.ones(BATCH, 1).bool(), torch.zeros(BATCH, 1), torch.zeros(BATCH, 1))
    p = sampling.probs(target)
    log_root = sampling.truncate(sampling.log_probs(drafter)).unsqueeze(1)
    for depth in range(1, min(2, shape.depth) + 1):
        above, width = frontier.valid.shape[1], shape.widths[depth - 1]
        log_q = log_root.expand(-1, above, -1)
        noise = gumbel_noise((BATCH, strategy.noise_rows(above, width), group_size(drafter.shape[1])), generator)
        level = strategy.expand(frontier, log_q, noise, width)
        check_level(level, log_q)
        frontier = level.frontier
        if not method.independent:
            distinct(level)
        if depth == 1:
            first = level
            if not method.whole_tree:
                verdict = load(method.rule)(p, log_q[:, 0].exp(), level.tokens, frontier.valid)
                check_verdict(p, level, verdict, generator)
    if shape.depth and not method.independent:
        check_whole_tree(bottom_up, p, log_root, first, generator)


def check_whole_tree(rule, p, log_q, level, generator):
    """A tree of one level: an accepted draft and a last token that the target can emit."""
    batch, width = level.tokens.shape
    view = TreeView(
        level.tokens, torch.zeros_like(level.tokens), level.frontier.valid,
        ancestors_of((-1,) * width).expand(batch, -1, -1), torch.tensor([[0]]), width,
        Distributions(p.log().unsqueeze(1).expand(-1, 1 + width, -1), as_it_is), Distributions(log_q, as_it_is),
    )  # fmt: skip
    outcome = rule(view, torch.rand(batch, width, generator=generator), stop_early)
    assert not outcome.last.isnan().any()
    assert (outcome.last >= 0).all()
    assert (outcome.last.sum(1) - 1).abs().max() < 1e-4
    assert (outcome.last[p == 0] == 0).all()
    accepted, node = outcome.rows[:, 1] > 0, (outcome.rows[:, 1:] - 1).clamp(min=0)
    assert (p.gather(1, level.tokens.gather(1, node))[accepted] > 0).all()
    assert level.frontier.valid.gather(1, node)[accepted].all()


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
    log_p = Sampling.at().log_probs(logits)
    assert log_p.exp().tolist() == Sampling.at().probs(logits).tolist()
    assert (log_p > float("-inf")).tolist() == [[True, False, False, False, True]]


@settings(max_examples=60, deadline=None)
@given(
    sampling=SAMPLINGS,
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    scale=st.sampled_from([1.0, 100.0, 3000.0]),
    seed=st.integers(0, 1000),
    method_and_structure=st.sampled_from([("ar", None), *STRUCTURES]),
)
def test_models_in_half_precision_emit_only_what_the_target_can(sampling, dtype, scale, seed, method_and_structure):
    pair = make_pair("opt")
    for model in (pair.target, pair.drafter):
        model.model.decoder.final_layer_norm.weight.data *= scale  # the logits' scale
        model.model.decoder.final_layer_norm.bias.data *= scale
        model.to(dtype)
    assert pair.target.dtype == dtype
    prompts = [[2, 9, 4], [2], [7, 7]]
    job = job_of(pair, *method_and_structure, prompts, sampling.temperature, sampling.top_p, [6] * 3, seed)
    for block in blocks(pair, job):
        assert block.log_p.dtype == torch.float32
        p, sequence = sampling.truncate(block.log_p).exp(), torch.arange(len(block.prefixes))
        for step in range(job.shape.depth + 1):
            here = step <= block.verified.accepted
            emitted = p[sequence, block.verified.rows[:, step], block.verified.report[:, 1 + step]]
            assert (emitted[here] > 0).all()


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
