"""Laws and Gumbel sampling. Statistical checks use fixed seeds and fail by chance with probability 1e-4."""

import itertools

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsdbench import UsageError
from rsdbench.engine.drafting import STOCHASTIC_BEAM, root_level
from rsdbench.sampling.gumbel import conditioned_scores, draw, top_k
from rsdbench.sampling.laws import Warp

from .conftest import gumbel_noise

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
    law = Warp(temperature, top_p).law(logits)
    assert law.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not law.isnan().any()
    assert (law >= 0).all()
    assert (law.sum(-1) - 1).abs().max() < 1e-4
    assert (law[logits == float("-inf")] == 0).all()
    drawn = draw(law.log(), gumbel_noise(law.shape, generator))
    assert (law.gather(1, drawn.unsqueeze(1)) > 0).all()


def test_temperature_zero_is_the_argmax():
    law = Warp(0.0, 0.5).law(torch.tensor([[1.0, 3.0, 3.0, 2.0]]))
    assert law.tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_top_p_keeps_the_smallest_sufficient_set():
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25], dtype=torch.float64).log()
    for top_p, kept in ((0.4, [1]), (0.5, [1]), (0.51, [1, 3]), (0.75, [1, 3]), (0.76, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        law = Warp(1.0, top_p).law(logits)
        assert law.nonzero().flatten().tolist() == kept
        torch.testing.assert_close(law[kept], logits.exp()[kept] / logits.exp()[kept].sum())


@pytest.mark.parametrize(("temperature", "top_p"), [(-1, 1), (float("inf"), 1), (1, 0), (1, 1.5), (1, float("nan"))])
def test_bad_warps_are_refused(temperature, top_p):
    with pytest.raises(UsageError):
        Warp(temperature, top_p)


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


def test_gumbel_top_k_draws_without_replacement_in_order():
    q = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    n = 40_000
    _, drafts, _ = top_k(q.log() + gumbel_noise((n, 4), torch.Generator().manual_seed(1)), 2)
    law = ordered_law(q, 2)
    counts = dict.fromkeys(law, 0)
    for pair in map(tuple, drafts.tolist()):
        counts[pair] += 1
    expected = [n * law[pair] for pair in counts]
    assert scipy.stats.chisquare(list(counts.values()), expected).pvalue > ALPHA


def test_stochastic_beam_draws_whole_sequences_without_replacement():
    """Two levels of a beam of 2 over 3 tokens: the first two of the 9 sequences, in order, follow the joint law."""
    q1 = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    q2 = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]], dtype=torch.float64)
    n, generator = 40_000, torch.Generator().manual_seed(2)
    first = STOCHASTIC_BEAM.expand(
        root_level(n, torch.device("cpu")), q1.log().expand(n, 1, -1), gumbel_noise((n, 1, 3), generator), 2
    )
    second = STOCHASTIC_BEAM.expand(first, q2[first.tokens].log(), gumbel_noise((n, 2, 3), generator), 2)
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
