"""Laws and Gumbel sampling. Statistical checks use fixed seeds and fail by chance with probability 1e-4."""

import itertools

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsdbench import UsageError
from rsdbench.decoding.strategies import Frontier, StochasticBeam
from rsdbench.sampling import gumbel
from rsdbench.sampling.distributions import Sampling
from rsdbench.sampling.gumbel import best_children, conditioned_scores, draw, group_size, log_mass, members, top_k

from .conftest import gumbel_noise

pytestmark = pytest.mark.unit

ALPHA = 1e-4


@settings(max_examples=80, deadline=None)
@given(
    size=st.sampled_from([2, 7, 1000, 50272]),
    spread=st.sampled_from([0.0, 1.0, 100.0, 1e4]),
    temperature=st.sampled_from([0.0, 1e-4, 0.3, 1.0, 100.0]),
    top_p=st.sampled_from([1e-6, 0.5, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_warped_logits_are_laws(size, spread, temperature, top_p, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.rand(3, size, generator=generator) * 2 - 1).mul(spread).to(dtype)
    logits[1, : size // 2] = float("-inf")
    logits[2] = logits[2].round()  # ties
    law = Sampling.at(temperature, top_p).probs(logits)
    assert law.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not law.isnan().any()
    assert (law >= 0).all()
    assert (law.sum(-1) - 1).abs().max() < 1e-4
    assert (law[logits == float("-inf")] == 0).all()
    drawn = draw(law.log(), gumbel_noise((3, 2, group_size(size)), generator))
    assert (law.gather(1, drawn.unsqueeze(1)) > 0).all()


def test_temperature_zero_is_the_argmax():
    law = Sampling.at(0.0, 0.5).probs(torch.tensor([[1.0, 3.0, 3.0, 2.0]]))
    assert law.tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_top_p_keeps_the_smallest_sufficient_set():
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25], dtype=torch.float64).log()
    for top_p, kept in ((0.4, [1]), (0.5, [1]), (0.51, [1, 3]), (0.75, [1, 3]), (0.76, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        law = Sampling.at(1.0, top_p).probs(logits)
        assert law.nonzero().flatten().tolist() == kept
        torch.testing.assert_close(law[kept], logits.exp()[kept] / logits.exp()[kept].sum())


@pytest.mark.parametrize(("temperature", "top_p"), [(-1, 1), (float("inf"), 1), (1, 0), (1, 1.5), (1, float("nan"))])
def test_bad_warps_are_refused(temperature, top_p):
    with pytest.raises(UsageError):
        Sampling.at(temperature, top_p)


def test_noise_is_standard_gumbel():
    noise = gumbel_noise((20_000,), torch.Generator().manual_seed(0))
    assert scipy.stats.kstest(noise.numpy(), scipy.stats.gumbel_r.cdf).pvalue > ALPHA


def test_top_k_marks_missing_places():
    values, indices, valid = top_k(torch.tensor([[float("-inf"), 2.0, 1.0]]), 5)
    assert indices.tolist() == [[1, 2, 0, 0, 0]]
    assert valid.tolist() == [[True, True, False, False, False]]
    assert values[0, :2].tolist() == [2.0, 1.0]


def ordered_law(q, k):
    """Probability of each ordered k-tuple drawn without replacement."""
    law = {}
    for drafts in itertools.permutations(range(len(q)), k):
        probability, rest = 1.0, 1.0
        for x in drafts:
            probability *= float(q[x]) / rest
            rest -= float(q[x])
        law[drafts] = probability
    return law


@pytest.mark.parametrize(("words", "size"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (1024, 32), (50_272, 225)])
def test_groups_hold_each_token_once(words, size):
    assert group_size(words) == size
    log_p = torch.randn(2, words, generator=torch.Generator().manual_seed(words)).log_softmax(-1)
    log_p[1, 0] = float("-inf")
    every = torch.arange(size)
    held = torch.stack([members(row[None], torch.zeros_like(every), every, size) for row in log_p])  # [2, S, S]
    assert torch.equal(held.transpose(-1, -2).flatten(-2)[:, :words], log_p), "token t is member t // S of group t % S"
    assert (held.transpose(-1, -2).flatten(-2)[:, words:] == float("-inf")).all()
    torch.testing.assert_close(log_mass(log_p, size), held.logsumexp(-1), rtol=0, atol=2e-6)


LAW = torch.tensor([0.02, 0.3, 0.0, 0.08, 0.25, 0.05, 0.0, 0.1, 0.04, 0.15, 0.01], dtype=torch.float64)  # S = 4


def draws(noise):
    """How often each token is drawn from `LAW`."""
    return torch.bincount(draw(LAW.log().expand(len(noise), -1), noise), minlength=len(LAW))


def test_a_draw_follows_its_law():
    """And not where a group's noise serves its tokens as well."""
    n, some = 100_000, LAW > 0
    noise = gumbel_noise((n, 2, 4), torch.Generator().manual_seed(1))
    found, wrong = draws(noise), draws(noise[:, :1].expand(-1, 2, -1))
    assert found[~some].sum() == 0
    assert scipy.stats.chisquare(found[some], n * LAW[some]).pvalue > ALPHA
    assert scipy.stats.chisquare(wrong[some], n * LAW[some]).pvalue < ALPHA


def below_roots(log_q, k, n, generator):
    """The k best children of `n` roots with the same law."""
    noise = gumbel_noise((n, 1 + k, group_size(len(log_q))), generator)
    zeros = torch.zeros(n, 1, dtype=log_q.dtype)
    return best_children(log_q.expand(n, 1, -1), zeros, zeros, zeros == 0, noise, k)


@pytest.mark.parametrize("q", [torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64), LAW])
def test_the_best_children_are_drawn_without_replacement_in_order(q):
    n = 100_000
    drafts = below_roots(q.log(), 2, n, torch.Generator().manual_seed(1)).tokens
    law = {pair: chance for pair, chance in ordered_law(q, 2).items() if chance > 0}
    counts = dict.fromkeys(law, 0)
    for pair in map(tuple, drafts.tolist()):
        counts[pair] += 1  # and no pair of probability zero
    assert scipy.stats.chisquare(list(counts.values()), [n * law[pair] for pair in counts]).pvalue > ALPHA


def test_scores_are_those_of_noise_for_every_token(monkeypatch):
    """The scores of the best four, below a maximum that is given: sorted scores of independent Gumbels have their law.

    If tokens are not held to the score of their group, they do not.
    """
    n, k, generator = 20_000, 4, torch.Generator().manual_seed(4)
    zeros = torch.zeros(n)
    every = conditioned_scores(LAW.log().expand(n, -1), gumbel_noise((n, len(LAW)), generator), zeros, zeros)[1]
    expected = every.topk(k).values

    def p_values():
        score = below_roots(LAW.log(), k, n, generator).score
        return [scipy.stats.ks_2samp(a, b).pvalue for a, b in zip(score.T[1:], expected.T[1:], strict=True)]

    assert min(p_values()) > ALPHA / (k - 1)
    honest = gumbel.conditioned_scores

    def free(log_q, noise, log_prob, score):
        held = honest(log_q, noise, log_prob, score)
        return held if log_q.shape[-2] == 1 else (held[0], held[0] + noise)

    monkeypatch.setattr(gumbel, "conditioned_scores", free)
    assert max(p_values()) < ALPHA / (k - 1)


def test_fewer_tokens_than_asked_for():
    """A law of two tokens, and an entry that is not there: the missing places are marked."""
    log_q = torch.full((2, 7), float("-inf"))
    log_q[0, [2, 6]] = torch.tensor([0.4, 0.6]).log()
    log_q[1, 3] = 0.0
    zeros = torch.zeros(2)
    noise = gumbel_noise((2 + 5, 3), torch.Generator().manual_seed(0))
    found = best_children(log_q, zeros, zeros, torch.tensor([True, False]), noise, 5)
    assert found.valid.tolist() == [True, True, False, False, False]
    assert sorted(found.tokens[:2].tolist()) == [2, 6]
    assert found.entries[:2].tolist() == [0, 0]
    assert ((found.tokens >= 0) & (found.tokens < 7)).all()


def test_stochastic_beam_draws_whole_sequences_without_replacement():
    """Two levels of a beam of 2 over 3 tokens: the first two of the 9 sequences, in order, follow the joint law."""
    q1 = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    q2 = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]], dtype=torch.float64)
    n, generator = 40_000, torch.Generator().manual_seed(2)
    root = Frontier(torch.ones(n, 1).bool(), torch.zeros(n, 1), torch.zeros(n, 1))
    first = StochasticBeam.expand(root, q1.log().expand(n, 1, -1), gumbel_noise((n, 3, 2), generator), 2)
    second = StochasticBeam.expand(first.frontier, q2[first.tokens].log(), gumbel_noise((n, 4, 2), generator), 2)
    sequences = first.tokens.gather(1, second.parents) * 3 + second.tokens
    law = ordered_law((q1.unsqueeze(1) * q2).flatten(), 2)
    counts = dict.fromkeys(law, 0)
    for pair in map(tuple, sequences.tolist()):
        counts[pair] += 1
    assert scipy.stats.chisquare(list(counts.values()), [n * law[p] for p in counts]).pvalue > ALPHA


def test_conditioned_scores_keep_the_parents_maximum_and_the_order():
    generator = torch.Generator().manual_seed(3)
    log_q = torch.randn(50, 8, 20, generator=generator, dtype=torch.float64).mul(4).log_softmax(-1)
    noise = gumbel_noise((50, 8, 20), generator).double()
    parent = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    log_prob, score = conditioned_scores(log_q, noise, torch.zeros(50, 8, dtype=torch.float64), parent)
    torch.testing.assert_close(score.amax(-1), parent, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_prob, log_q)
    assert (score.argsort(-1) == (log_q + noise).argsort(-1)).all()
    assert not score.isnan().any()
