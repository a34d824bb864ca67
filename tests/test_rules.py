"""Verification rules alone, exactly: enumerate every ordered draft tuple in float64 and add up the output law."""

import itertools

import pytest
import torch

from rsdbench.engine.methods import METHODS
from rsdbench.rules.k_seq import at_least_one, k_seq, optimal_rho
from rsdbench.rules.recursive_rejection import recursive_rejection

TOLERANCE = 1e-12


def laws(size):
    """Pairs (p, q) over `size` tokens: random from flat to spiky, and the corners where rules break."""
    generator = torch.Generator().manual_seed(size)

    def dirichlet(concentration):
        gamma = torch._standard_gamma(torch.full((size,), concentration, dtype=torch.float64), generator=generator)
        return (gamma + 1e-300) / (gamma + 1e-300).sum()

    one_hot = torch.zeros(size, dtype=torch.float64)
    one_hot[size // 2] = 1.0
    first_half = torch.arange(size) < (size + 1) // 2
    for p_shape, q_shape in itertools.product((5.0, 1.0, 0.2, 0.02), repeat=2):
        yield dirichlet(p_shape), dirichlet(q_shape)
    p, q = dirichlet(1.0), dirichlet(1.0)
    yield p, p
    yield p, one_hot
    yield one_hot, q
    yield one_hot, one_hot
    yield p * first_half / (p * first_half).sum(), q
    yield p, q * first_half / (q * first_half).sum()
    yield p * first_half / (p * first_half).sum(), q * ~first_half / (q * ~first_half).sum()
    tiny = torch.full((size,), 1e-300, dtype=torch.float64)
    tiny[0] = 1.0
    yield tiny, q
    yield p, tiny
    yield tiny, tiny.flip(0)


def proposals(q, k, replacement):
    """Every ordered tuple of k drafts with its probability; fewer drafts where q runs out of tokens."""
    support = [x for x in range(len(q)) if q[x] > 0]
    if replacement:
        for drafts in itertools.product(support, repeat=k):
            yield drafts, torch.stack([q[x] for x in drafts]).prod()
        return
    for drafts in itertools.permutations(support, min(k, len(support))):
        probability, remaining = q.new_ones(()), q.clone()
        for x in drafts:
            probability = probability * remaining[x] / remaining.sum()
            remaining[x] = 0.0
        yield drafts, probability


def output_law(rule, p, q, k, replacement):
    """The law of the first emitted token, and the probability that it is a draft."""
    tuples = list(proposals(q, k, replacement))
    drafts = torch.tensor([d + (0,) * (k - len(d)) for d, _ in tuples])
    present = torch.tensor([[True] * len(d) + [False] * (k - len(d)) for d, _ in tuples])
    weight = torch.stack([w for _, w in tuples])
    n = len(tuples)
    verdict = rule(p.expand(n, -1), q.expand(n, -1), drafts, present)
    assert not verdict.residual.isnan().any()
    assert (verdict.residual >= 0).all()
    assert ((verdict.accept >= 0) & (verdict.accept <= 1)).all()
    torch.testing.assert_close(verdict.residual.sum(1), torch.ones(n, dtype=p.dtype), rtol=0, atol=TOLERANCE)
    out, reaching = torch.zeros_like(p), weight
    for j in range(k):
        out.index_add_(0, drafts[:, j], reaching * verdict.accept[:, j])
        reaching = reaching * (1 - verdict.accept[:, j])
    accepted = out.sum()
    return out + (reaching.unsqueeze(1) * verdict.residual).sum(0), accepted


def is_with_replacement(method):
    return METHODS[method].rule is k_seq


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "ar"])
def test_output_law_is_exactly_p(method, size, k):
    for p, q in laws(size):
        law, accepted = output_law(METHODS[method].rule, p, q, k, is_with_replacement(method))
        assert (law - p).abs().max() <= TOLERANCE, (p, q)
        assert accepted <= 1 + TOLERANCE


@pytest.mark.parametrize("rule", [recursive_rejection, k_seq])
def test_one_draft_is_accepted_with_the_optimal_probability(rule):
    for p, q in laws(4):
        _, accepted = output_law(rule, p, q, 1, replacement=True)
        torch.testing.assert_close(accepted, torch.minimum(p, q).sum(), rtol=0, atol=1e-6)


def test_more_drafts_are_accepted_more_often_and_replacement_never_helps():
    for p, q in laws(4):
        for k in (2, 3):
            _, fewer = output_law(recursive_rejection, p, q, k - 1, replacement=False)
            _, without = output_law(recursive_rejection, p, q, k, replacement=False)
            assert without >= fewer - TOLERANCE
        _, one = output_law(k_seq, p, q, 1, replacement=True)
        _, two = output_law(k_seq, p, q, 2, replacement=True)
        assert two >= one - 1e-6


def test_a_rule_that_does_not_renormalise_the_draft_law_is_rejected():
    def mutant(p, q, drafts, present):
        """d keeps the mass of removed siblings."""
        first = recursive_rejection(p, q, drafts[:, :1], present[:, :1])
        second = recursive_rejection(first.residual, q.scatter(1, drafts[:, :1], 0.0), drafts[:, 1:], present[:, 1:])
        return second._replace(accept=torch.cat([first.accept, second.accept], 1))

    worst = max(float((output_law(mutant, p, q, 2, False)[0] - p).abs().max()) for p, q in laws(5))
    assert worst > 1e-3


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
