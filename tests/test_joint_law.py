"""Losslessness of the whole engine: the joint law of three tokens against the target's, by chi-square.

Fixed seeds. Each check fails by chance with probability ALPHA; the mutants must fall below MUTANT.
"""

import itertools

import pytest
import scipy.stats
import torch

import rsdbench
from rsdbench.engine import methods
from rsdbench.engine.drafting import BRANCHINGS, Branching, Level
from rsdbench.engine.methods import METHODS, Method
from rsdbench.sampling.laws import Warp

from .conftest import all_structures, make_pair

ALPHA = 1e-4
MUTANT = 1e-9
VOCABULARY = 6
PROMPTS = [[2, 3, 4, 5, 1], [5, 0]]
COPIES = 8_000  # continuations of each prompt


@pytest.fixture(scope="module")
def pair():
    return make_pair("opt", VOCABULARY, noise=0.25, positions=32)


def exact_joint_law(model, prompt, warp):
    """Law of the next three tokens, [V^3], by one forward over all their prefixes."""
    continuations = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=3)))
    ids = torch.cat([torch.tensor(prompt).expand(len(continuations), -1), continuations], 1)
    with torch.no_grad():
        logits = model(input_ids=ids).logits.double()[:, len(prompt) - 1 : -1]
    return warp.law(logits).gather(2, continuations.unsqueeze(-1)).squeeze(-1).prod(1)


def p_value(tokens, law):
    """Chi-square p-value of continuations [n, 3] against a law [V^3]; rare outcomes are pooled."""
    index = tokens[:, 0] * VOCABULARY**2 + tokens[:, 1] * VOCABULARY + tokens[:, 2]
    observed = torch.bincount(index, minlength=VOCABULARY**3).double()
    assert observed[law == 0].sum() == 0, "a token of zero target probability was emitted"
    expected = law * len(tokens)
    common = expected >= 5
    observed = torch.cat([observed[common], observed[~common].sum().unsqueeze(0)])
    expected = torch.cat([expected[common], expected[~common].sum().unsqueeze(0)])
    if expected[-1] < 5:  # too little even in the pool: join it to the smallest outcome
        observed[-2] += observed[-1]
        expected[-2] += expected[-1]
        observed, expected = observed[:-1], expected[:-1]
    statistic = ((observed - expected) ** 2 / expected).sum()
    return scipy.stats.chi2.sf(float(statistic), len(expected) - 1)


def joint_p_values(pair, method, structure, warp, seed=0):
    """One p-value a prompt; the prompts, of different lengths, are decoded in one batch."""
    prompts = [p for p in PROMPTS for _ in range(COPIES)]
    out = rsdbench.generate(
        pair, prompts, method, structure, 3, temperature=warp.temperature, top_p=warp.top_p, seed=seed
    )
    tokens = torch.tensor(out.tokens)
    return [
        p_value(tokens[i * COPIES : (i + 1) * COPIES], exact_joint_law(pair.target, prompt, warp))
        for i, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize("warp", [Warp(1.0), Warp(0.3, 0.9)], ids=["T=1", "T=0.3,top_p=0.9"])
@pytest.mark.parametrize(
    ("method", "structure"),
    [
        ("ar", None),
        *((m, s) for m, s, _ in all_structures((6,))),
        ("rsd_c", "2-2-2-2"),
        ("rsd_s", "5x6"),
        ("spectr", "5x6"),
    ],
)
def test_joint_law_is_the_targets(pair, method, structure, warp):
    assert min(joint_p_values(pair, method, structure, warp)) > ALPHA / len(PROMPTS)


def test_laws_depend_on_context(pair):
    """Otherwise the test above would be blind to errors in cache, positions and masks."""
    first, second = (exact_joint_law(pair.target, p, Warp(1.0)) for p in PROMPTS)
    assert 0.5 * (first - second).abs().sum() > 0.1
    joint = first.view(VOCABULARY, VOCABULARY, VOCABULARY)
    given_last = joint.sum(0) / joint.sum((0, 2)).unsqueeze(1)  # law of the third token given the second alone
    given_both = joint / joint.sum(2, keepdim=True)
    assert (given_both - given_last).abs().max() > 0.05


class SortedById(Branching):
    """The mutant: siblings in the order of their token ids instead of the order in which they were drawn."""

    def expand(self, above, log_q, noise, width):
        level = super().expand(above, log_q, noise, width)
        children = width // above.tokens.shape[1]
        tokens, order = level.tokens.unflatten(1, (-1, children)).sort(dim=2)
        valid = level.valid.unflatten(1, (-1, children)).gather(2, order)
        return Level(tokens.flatten(1), level.parents, valid.flatten(1), level.log_prob, level.score)


def test_siblings_sorted_by_token_id_are_rejected(pair, monkeypatch):
    honest = METHODS["rsd_c"]
    drafting = SortedById(honest.drafting.form, honest.drafting.pattern, BRANCHINGS)
    monkeypatch.setitem(methods.METHODS, "rsd_c", Method("mutant", drafting, honest.rule))
    assert max(joint_p_values(pair, "rsd_c", "3-1", Warp(1.0))) < MUTANT


def test_noise_reused_in_every_block_is_rejected(pair, monkeypatch):
    """The first token's law stays right, the joint law does not."""
    import rsdbench.engine.decode as decode

    real, first = decode.gumbel_noise, []

    def stale(shape, generator):
        if not first:
            first.append(real(shape, generator))
        return first[0][: shape[0]]

    monkeypatch.setattr(decode, "gumbel_noise", stale)
    assert max(joint_p_values(pair, "rsd_s", "3x2", Warp(1.0))) < MUTANT
