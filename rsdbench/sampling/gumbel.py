"""Sampling with Gumbel noise: one draw, and the best children of entries of a stochastic beam search.

Adding i.i.d. standard Gumbel noise to log-probabilities and taking the largest draws a token; taking the k largest
draws k tokens without replacement, in order (Kool, van Hoof, Welling, "Stochastic Beams and Where to Find Them", arXiv
1903.06059, sections 2.3 and 4). The noise is an input, so that every function here is pure.

A vocabulary takes no noise for each token. Its tokens are in about as many groups as a group has tokens, S of each,
and a token is found in two steps: the noise of the groups' masses decides which groups hold the largest scores, and
these alone get noise for their tokens, given that their largest score is the group's (Maddison, Tarlow, Minka, "A*
Sampling", arXiv 1411.0030, section 3; Kool et al., section 4.1, where groups are the upper level of a tree). The scores
have the very distribution that noise for every token would give them, for 2 S numbers a draw instead of S * S.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Children(NamedTuple):
    """What `best_children` finds, best first, each [..., k].

    entries: below which entry each child is; valid: False in missing places, whose other numbers have no meaning.
    """

    entries: Tensor
    tokens: Tensor
    log_prob: Tensor
    score: Tensor
    valid: Tensor


def group_size(vocabulary: int) -> int:
    """S, the tokens of a group and the groups of a vocabulary: the least number whose square is large enough."""
    return math.isqrt(vocabulary - 1) + 1


def log_mass(log_p: Tensor, size: int) -> Tensor:
    """Log-probabilities of a distribution's S groups: [..., V] -> [..., S]. Token t is in group t % S."""
    words = log_p.shape[-1]
    probs, even = log_p.exp(), words - words % size
    rest = torch.nn.functional.pad(probs[..., even:], (0, size - words % size))
    return (probs[..., :even].unflatten(-1, (words // size, size)).sum(-2) + rest).log()


def members(log_p: Tensor, entry: Tensor, group: Tensor, size: int) -> Tensor:
    """What groups of some distributions hold: log_p [..., W, V], entry and group [..., k] -> [..., k, S].

    -inf where a group has fewer tokens.
    """
    words, steps = log_p.shape[-1], size * torch.arange(size, device=group.device)
    tokens = group.unsqueeze(-1) + steps  # [..., k, S]
    places = entry.unsqueeze(-1) * words + tokens.clamp(max=words - 1)
    found = log_p.flatten(-2).gather(-1, places.flatten(-2)).unflatten(-1, (group.shape[-1], size))
    return torch.where(tokens < words, found, float("-inf"))


def to_gumbel(uniform: Tensor) -> Tensor:
    """-log(-log u) of uniforms u in [0, 1), float32. u lies on a grid of 2^-24: probabilities are met to about 6e-8."""
    return uniform.clamp(min=torch.finfo(torch.float32).tiny).log().neg().log().neg()


def draw(log_p: Tensor, noise: Tensor) -> Tensor:
    """One token from each distribution: log_p [..., V], noise [..., 2, S] -> [...]. Never one of probability zero."""
    size = noise.shape[-1]
    group = (log_mass(log_p, size) + noise[..., 0, :]).argmax(-1, keepdim=True)
    own = members(log_p.unsqueeze(-2), torch.zeros_like(group), group, size).squeeze(-2)
    member = (own + noise[..., 1, :]).argmax(-1, keepdim=True)
    return (member * size + group).squeeze(-1)


def best_children(
    log_q: Tensor, log_prob: Tensor, score: Tensor, valid: Tensor, noise: Tensor, k: int
) -> Children:  # fmt: skip
    """One level of stochastic beam search: the k best of all children of W entries, by their perturbed scores.

    log_q [..., W, V]: each entry's next-token distribution; log_prob, score and valid [..., W] of the entries (0 and 0
    of the root); noise [..., W + k, S]: of each entry's groups, and of the tokens of the k best groups, among which the
    k best tokens are.
    """
    size = noise.shape[-1]
    of_groups, of_members = noise.split([log_q.shape[-2], k], -2)
    _, scores = conditioned_scores(log_mass(log_q, size), of_groups, log_prob, score)
    scores = torch.where(valid.unsqueeze(-1), scores, float("-inf"))
    group_score, index, there = top_k(scores.flatten(-2), k)  # [..., k]
    entry, group = index // size, index % size

    own = members(log_q, entry, group, size)  # [..., k, S]
    child_log_prob, scores = conditioned_scores(own, of_members, log_prob.gather(-1, entry), group_score)
    scores = torch.where(there.unsqueeze(-1), scores, float("-inf"))
    best, index, valid = top_k(scores.flatten(-2), k)
    place = index // size
    return Children(
        entries=entry.gather(-1, place),
        tokens=index % size * size + group.gather(-1, place),
        log_prob=child_log_prob.flatten(-2).gather(-1, index),
        score=best,
        valid=valid,
    )


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest scores, largest first: [..., M] -> values, indices, valid, each [..., k].

    Where fewer than k scores are above -inf, the missing places have valid = False and index 0.
    """
    count = min(k, scores.shape[-1])
    values, indices = scores.topk(count, dim=-1, sorted=True)
    missing = k - values.shape[-1]
    if missing:
        values = torch.nn.functional.pad(values, (0, missing), value=float("-inf"))
        indices = torch.nn.functional.pad(indices, (0, missing))
    valid = values > float("-inf")
    return values, indices * valid, valid


def conditioned_scores(log_q: Tensor, noise: Tensor, log_prob: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Children of stochastic-beam entries: perturbed scores given that their maximum is the parent's score.

    log_q, noise [..., V]; log_prob and score [...] of the parent (0 and 0 at the root) -> the children's
    log-probabilities [..., V] and conditioned scores [..., V] (Kool et al., section 4.1 and appendix B.3).
    """
    child_log_prob = log_prob.unsqueeze(-1) + log_q
    perturbed = child_log_prob + noise
    largest = perturbed.amax(-1, keepdim=True)
    parent = score.unsqueeze(-1)
    v = parent - perturbed + torch.log1p(-torch.exp(perturbed - largest))
    return child_log_prob, parent - v.relu() - torch.log1p(torch.exp(-v.abs()))
