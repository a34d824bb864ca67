"""Sampling with Gumbel noise: one draw, k draws without replacement, and one level of stochastic beam search.

Adding i.i.d. standard Gumbel noise to log-probabilities and taking the largest draws from the law; taking the k
largest draws k tokens without replacement, in order (Kool, van Hoof, Welling, "Stochastic Beams and Where to Find
Them", arXiv 1903.06059, sections 2.3 and 4). The noise is an input, so that every function here is pure.
"""

from __future__ import annotations

import torch
from torch import Tensor

LONG, PARTS = 2**14, 32  # scores of a row in which an accelerator looks for the largest in parts, and how many parts


def to_gumbel(uniform: Tensor) -> Tensor:
    """-log(-log u) of uniforms u in [0, 1), float32, in their place.

    u lies on a grid of 2^-24, so a token's probability is met to about 6e-8. (The logarithm of `exponential_`
    took 4.5 times as long on a CPU, 0.62 ms against 0.14 for 31 rows of 1,024.)
    """
    return uniform.clamp_(min=torch.finfo(torch.float32).tiny).log_().neg_().log_().neg_()


def draw(log_p: Tensor, noise: Tensor) -> Tensor:
    """One token from each law: log_p [..., V], noise [..., V] -> [...]. Never a token of probability zero."""
    scores = log_p + noise
    return largest_in_parts(scores, 1)[1].squeeze(-1) if is_long(scores, 1) else scores.argmax(-1)


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest scores, largest first: [..., M] -> values, indices, valid, each [..., k].

    Where fewer than k scores are above -inf, the missing places have valid = False and index 0.
    """
    count = min(k, scores.shape[-1])
    values, indices = largest_in_parts(scores, count) if is_long(scores, k) else scores.topk(count, dim=-1, sorted=True)
    missing = k - values.shape[-1]
    if missing:
        values = torch.nn.functional.pad(values, (0, missing), value=float("-inf"))
        indices = torch.nn.functional.pad(indices, (0, missing))
    valid = values > float("-inf")
    return values, indices * valid, valid


def is_long(scores: Tensor, k: int) -> bool:
    """Whether the k largest are best looked for in parts: on an accelerator, where a row is the work of one block."""
    return scores.device.type != "cpu" and scores.shape[-1] >= max(LONG, PARTS * k)


def largest_in_parts(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`topk` of rows in two steps, the first one for all of `PARTS` parts of a row side by side.

    What is left of a row when fewer than k scores are above -inf has any index.
    """
    whole = torch.nn.functional.pad(scores, (0, -scores.shape[-1] % PARTS), value=float("-inf"))
    parts = whole.unflatten(-1, (PARTS, -1))
    one = k == 1  # the largest alone is found by an operator that `torch.compile` fuses with others
    values, indices = parts.max(-1, keepdim=True) if one else parts.topk(k, dim=-1, sorted=False)  # [..., PARTS, k]
    indices = indices + parts.shape[-1] * torch.arange(PARTS, device=scores.device).unsqueeze(-1)
    values = values.flatten(-2)
    values, best = values.max(-1, keepdim=True) if one else values.topk(k, dim=-1, sorted=True)
    return values, indices.flatten(-2).gather(-1, best)


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
