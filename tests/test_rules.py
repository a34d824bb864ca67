"""Verification rules alone: the certificate's enumeration, its own checks, and rules that it must reject."""

import itertools
from functools import partial

import pytest
import torch

from rsdbench.backends.repeat import stop_early
from rsdbench.certificate.enumeration import (
    BOUNDS,
    SIZES,
    enumerate_rule,
    law_pairs,
    optimal_acceptance,
    proposals,
    rules_alone,
)
from rsdbench.certificate.mutants import ParentsFirst, StopsTooLittle, last_from_p
from rsdbench.certificate.whole_trees import BOUND, deviation, trees_alone
from rsdbench.decoding.tree import ancestors_of
from rsdbench.methods import METHODS, get_shape
from rsdbench.sampling.gumbel import top_k
from rsdbench.verification import Distributions, TreeView, Verdict
from rsdbench.verification.bottom_up import bottom_up
from rsdbench.verification.k_seq import at_least_one, k_seq, optimal_rho
from rsdbench.verification.lift import lift
from rsdbench.verification.recursive_rejection import recursive_rejection

from .conftest import gumbel_noise

pytestmark = pytest.mark.unit
TOLERANCE = 1e-12
NODE_RULES = [name for name, method in METHODS.items() if not method.whole_tree]


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("method", NODE_RULES)
def test_output_law_is_p(method, dtype):
    """Other random laws than the certificate's."""
    evidence = next(x for x in rules_alone([method], seed=7) if x.dtype == dtype)
    findings = evidence.conclude([part() for part in evidence.parts()])
    table = METHODS[method].structures.values()
    fanout = max((get_shape(method, s).fanout for own in table for s in own), default=0)
    most = min(fanout, 4 if dtype == torch.float64 else 7)
    assert [f.setting.rpartition(" ")[2] for f in findings] == [str(k) for k in range(min(most, 1), most + 1)]
    for finding in findings:
        assert finding.statistic <= finding.bound == BOUNDS[dtype]
        assert finding.acceptance <= finding.optimum + TOLERANCE + (dtype == torch.float32) * 1e-6


def test_methods_with_the_same_rule_and_kind_of_drafts_share_the_work():
    both = [x.methods for x in rules_alone(list(METHODS), 0)]
    assert both.count(("rsd_c", "rsd_s")) == 2
    assert sorted(m for methods in both for m in methods) == sorted([*NODE_RULES] * 2)


@pytest.mark.parametrize("replacement", [False, True])
def test_proposals_are_all_tuples_with_their_probabilities(replacement):
    q = torch.tensor([0.5, 0.0, 0.3, 0.2], dtype=torch.float64)
    every = proposals(q, 2, replacement)
    law = {}
    for (i, a), (j, b) in itertools.product(enumerate(q.tolist()), repeat=2):
        chance = a * b if replacement else a * b / (1 - a) if i != j and a < 1 else 0.0
        if chance:
            law[i, j] = chance
    assert {
        tuple(d): pytest.approx(float(w)) for d, w in zip(every.drafts.tolist(), every.probability, strict=True)
    } == law
    assert every.present.all()


def test_drafts_are_missing_where_a_law_runs_out_of_tokens():
    every = proposals(torch.tensor([0.25, 0.0, 0.75], dtype=torch.float64), 3, replacement=False)
    assert every.present.tolist() == [[True, True, False]] * 2
    assert [d[:2] for d in every.drafts.tolist()] == [[0, 2], [2, 0]]
    assert every.probability.tolist() == [0.25, 0.75]


def test_the_optimum_is_that_of_optimal_transport():
    """The largest total acceptance over all ways to pair tokens with draft tuples that contain them, by linear
    programming."""
    from scipy.optimize import linprog

    for size, k, replacement in ((3, 2, True), (4, 2, False), (3, 3, True)):
        for p, q in list(law_pairs(size, 3))[:6]:
            every = proposals(q, k, replacement)
            cells = [(x, t) for t, drafts in enumerate(every.drafts.tolist()) for x in set(drafts)]
            tokens = [[float(x == y) for x, _ in cells] for y in range(size)]
            tuples = [[float(t == u) for _, t in cells] for u in range(len(every.drafts))]
            limits = [*p.tolist(), *every.probability.tolist()]
            best = -linprog([-1.0] * len(cells), A_ub=tokens + tuples, b_ub=limits).fun
            assert optimal_acceptance(p, every) == pytest.approx(best, abs=1e-9)


def test_law_pairs_have_the_corners():
    pairs = [pair for size in SIZES for pair in law_pairs(size, 0)]
    assert any((p == q).all() and (p > 0).all() for p, q in pairs)
    assert any((p * q == 0).all() for p, q in pairs)
    assert any((p[q == 0] > 0).any() for p, q in pairs)
    assert any((q[p == 0] > 0).any() for p, q in pairs)
    assert any((p == 1).any() for p, q in pairs)
    assert any((q == 1).any() for p, q in pairs)
    assert any(((q > 0) & (q < 1e-299)).any() for p, q in pairs)
    for p, q in pairs:
        torch.testing.assert_close(torch.stack([p.sum(), q.sum()]), torch.ones(2, dtype=p.dtype), rtol=0, atol=1e-12)


def worst(rule, k, replacement, dtype=torch.float64):
    return max(x.error for size in (3, 5) for x in enumerate_rule(rule, size, k, replacement, 0, dtype))


def test_a_rule_for_the_other_kind_of_drafts_is_rejected():
    assert worst(recursive_rejection, 2, replacement=True) > 1e-2
    assert worst(k_seq, 2, replacement=False) > 1e-2


def test_answers_that_are_no_probabilities_are_rejected():
    def changed(change):
        def rule(p, q, drafts, present):
            return change(recursive_rejection(p, q, drafts, present))

        return rule

    mutants = {
        "accept above 1": lambda v: Verdict(v.accept * 1.01, v.residual),
        "residual of mass 1.01": lambda v: Verdict(v.accept, v.residual * 1.01),
        "negative residual": lambda v: Verdict(v.accept, v.residual * 2 - v.residual.flip(1)),
        "not a number": lambda v: Verdict(v.accept, v.residual / 0 * 0),
        "accepts what is absent": lambda v: Verdict(v.accept.clamp(min=0.1), v.residual),
    }
    for name, change in mutants.items():
        assert worst(changed(change), 3, replacement=False) == float("inf"), name


def accepting_where_nothing_is_left(p, q, drafts, present):
    """K-SEQ that accepts every draft where rounding leaves no residual: right in float64 unless p is nearly one-hot,
    wrong by percents in float32 with five drafts or more."""
    honest = k_seq(p, q, drafts, present)
    number = present.sum(1, keepdim=True).to(p.dtype)
    kept = torch.minimum(q, p / optimal_rho(p, q, number))
    beta = kept.sum(1, keepdim=True)
    mass = (p - kept * at_least_one(beta, number) / beta).relu().sum(1, keepdim=True)
    return honest._replace(accept=torch.where((mass <= 0) & (p.gather(1, drafts) > 0), 1.0, honest.accept) * present)


def test_losses_that_only_float32_shows_are_rejected():
    assert worst(k_seq, 5, True, torch.float32) <= BOUNDS[torch.float32]
    assert worst(accepting_where_nothing_is_left, 5, True, torch.float32) > 1e-2


@pytest.mark.parametrize("rule", [recursive_rejection, k_seq])
def test_one_draft_is_accepted_with_the_optimal_probability(rule):
    for (p, q), x in zip(law_pairs(4, 0), enumerate_rule(rule, 4, 1, replacement=True), strict=True):
        assert x.acceptance == pytest.approx(float(torch.minimum(p, q).sum()), abs=TOLERANCE)
        assert x.optimum == pytest.approx(x.acceptance, abs=TOLERANCE)


@pytest.mark.parametrize(("rule", "replacement"), [(recursive_rejection, False), (k_seq, True)])
def test_more_drafts_are_accepted_more_often(rule, replacement):
    by_number = [[x.acceptance for x in enumerate_rule(rule, 4, k, replacement)] for k in (1, 2, 3)]
    for one, two, three in zip(*by_number, strict=True):
        assert one <= two + 1e-6 <= three + 2e-6


def test_a_rule_that_does_not_renormalise_the_draft_law_is_rejected():
    from rsdbench.certificate.mutants import not_renormalised

    assert worst(partial(not_renormalised, recursive_rejection), 2, replacement=False) > 1e-3


def test_without_drafts_the_residual_is_p():
    p = torch.tensor([[0.2, 0.3, 0.5]])
    q = torch.tensor([[0.5, 0.3, 0.2]])
    absent = torch.zeros(1, 2, dtype=torch.bool)
    for rule in (recursive_rejection, k_seq):
        verdict = rule(p, q, torch.zeros(1, 2, dtype=torch.long), absent)
        assert verdict.accept.tolist() == [[0.0, 0.0]]
        torch.testing.assert_close(verdict.residual, p)


def test_rho_solves_its_equation_from_above():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(200, 30, generator=generator, dtype=torch.float64).pow(4)
    q = torch.rand(200, 30, generator=generator, dtype=torch.float64).pow(4)
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    number = torch.randint(1, 8, (200, 1), generator=generator).double()
    rho = optimal_rho(p, q, number)

    def excess(rho):
        beta = torch.minimum(q, p / rho).sum(1, keepdim=True)
        return at_least_one(beta, number) - rho * beta

    assert ((rho >= 1) & (rho <= number)).all()
    assert (excess(rho) <= 1e-12).all()
    lower = (rho - 1e-5 * number).clamp(min=1)
    assert ((excess(lower) >= 0) | (rho == 1)).all()


def test_laws_in_float32_stay_laws():
    """p and q equal up to rounding, the case that divides by zero in careless code."""
    p = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)).mul(3).softmax(1)
    q = (p * (1 + 1e-7)) / (p * (1 + 1e-7)).sum(1, keepdim=True)
    drafts = q.topk(4, dim=1).indices
    for rule in (recursive_rejection, k_seq):
        verdict = rule(p, q, drafts, torch.ones_like(drafts, dtype=torch.bool))
        assert not verdict.residual.isnan().any()
        assert (verdict.residual.sum(1) - 1).abs().max() < 1e-4
        # K-SEQ's rho is ill-conditioned here (1 - (1 - 1/rho)^4 is flat at 1), the chance to accept is not
        assert (1 - verdict.accept).prod(1).max() < 1e-5


def test_second_siblings_of_a_nearly_certain_token():
    """The probability of all but one token lies below 1e-30: a second draft is still drawn and accepted rightly."""
    q = torch.tensor([1.0, 2e-33, 1e-33, 1e-34])
    p = torch.tensor([0.0, 0.2, 0.3, 0.5])
    n = 20_000
    _, drafts, valid = top_k(q.log() + gumbel_noise((n, 4), torch.Generator().manual_seed(0)), 2)
    assert valid.all()
    assert (drafts[:, 0] == 0).all()
    verdict = recursive_rejection(p.expand(n, -1), q.expand(n, -1), drafts, valid)
    share = torch.bincount(drafts[:, 1], minlength=4) / n
    torch.testing.assert_close(share, q / q[1:].sum() * (q < 1), rtol=0.2, atol=0.02)
    law = torch.zeros(4).index_add_(0, drafts[:, 1], verdict.accept[:, 1]) / n
    law += ((1 - verdict.accept[:, 1:]) * verdict.residual).mean(0)
    torch.testing.assert_close(law, p, rtol=0, atol=0.02)  # 5 standard deviations


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.whole_tree])
def test_the_joint_law_of_a_block_is_the_targets(method):
    (evidence,) = trees_alone([method], seed=3)
    findings = evidence.conclude([part() for part in evidence.parts()])
    assert findings
    assert max(f.statistic for f in findings) <= BOUND


SMALL = [("sd", "2"), ("sd", "3"), ("rsd_c", "2-1"), ("rsd_c", "1-2"), ("rsd_c", "2-2")]


@pytest.mark.parametrize("rule", [bottom_up, lift(recursive_rejection)], ids=["bottom up", "walk"])
@pytest.mark.parametrize(("method", "structure"), SMALL)
def test_small_trees_are_verified_exactly(rule, method, structure):
    for size, seed in itertools.product((2, 3), range(3)):
        assert deviation(rule, get_shape(method, structure), size, False, seed) <= BOUND


@pytest.mark.parametrize("rule", [StopsTooLittle(), ParentsFirst(), partial(last_from_p, bottom_up)])
@pytest.mark.parametrize(("method", "structure"), SMALL)
def test_the_enumeration_finds_wrong_tree_rules(rule, method, structure):
    assert max(deviation(rule, get_shape(method, structure), 3, False, seed) for seed in range(3)) > 1e-4


class Reordered:
    """Siblings by token, not in the order in which they were drawn."""

    def __call__(self, tree, uniforms, repeat):
        order = (tree.parents * 10 + tree.tokens).argsort(dim=1, stable=True)
        tokens, valid = tree.tokens.gather(1, order), tree.valid.gather(1, order)
        found = bottom_up(tree._replace(tokens=tokens, valid=valid), uniforms, repeat)
        row = torch.nn.functional.pad(order + 1, (1, 0)).gather(1, found.rows)
        return found._replace(rows=row)


def test_the_enumeration_finds_siblings_out_of_order():
    assert deviation(Reordered(), get_shape("rsd_c", "3"), 4, False, 0) > 1e-3


def test_a_number_that_depends_on_other_uniforms_is_no_rule():
    def sloppy(tree, uniforms, repeat):
        return bottom_up(tree, uniforms * (uniforms.flip(1) + 1) / 2, repeat)

    assert deviation(sloppy, get_shape("sd", "2"), 3, False, 0) == float("inf")


def test_one_level_of_bottom_up_is_recursive_rejection():
    shape = get_shape("rsd_c", "3")
    p, q = torch.rand(2, 50, 6, dtype=torch.float64).softmax(-1)
    tokens = torch.stack([torch.randperm(6)[:3] for _ in range(50)])
    levels, root = torch.tensor(shape.levels), torch.zeros(50, 3, dtype=torch.long)
    view = TreeView(
        tokens, root, torch.ones(50, 3).bool(), ancestors_of(shape.parents).expand(50, -1, -1), levels, 3,
        Distributions(p.log().unsqueeze(1).expand(-1, 4, -1), lambda x: x),
        Distributions(q.log().unsqueeze(1), lambda x: x),
    )  # fmt: skip
    uniforms = torch.rand(50, 3, dtype=torch.float64)
    ours, theirs = (rule(view, uniforms, stop_early) for rule in (bottom_up, lift(recursive_rejection)))
    assert torch.equal(ours.rows, theirs.rows)
    torch.testing.assert_close(ours.last, theirs.last)
