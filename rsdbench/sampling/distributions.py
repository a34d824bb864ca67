"""From logits to the next-token distribution that is drafted from or decoded: temperature, then top-p."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.errors import UsageError


class Sampling(NamedTuple):
    """How logits become a distribution, the same for drafter and target; made by `Sampling.at`.

    greedy: the one-hot distribution of the argmax, in which case the temperature says nothing; nucleus: whether top-p
    cuts anything. Both numbers may be tensors [].
    """

    temperature: float | Tensor
    top_p: float | Tensor
    greedy: bool
    nucleus: bool

    @staticmethod
    def at(temperature: float = 1.0, top_p: float = 1.0) -> Sampling:
        """temperature 0 is greedy; top_p keeps the smallest set of most probable tokens whose mass reaches it.

        (Nucleus sampling, Holtzman et al., arXiv 1904.09751.)

        Raises:
            UsageError: temperature is negative or not finite, or top_p lies outside (0, 1].
        """
        if not 0 <= temperature < float("inf"):
            raise UsageError(f"temperature must be a number >= 0, not {temperature}")
        if not 0 < top_p <= 1:
            raise UsageError(f"top_p must lie in (0, 1], not {top_p}")
        return Sampling(temperature, top_p, temperature == 0, top_p < 1 and temperature > 0)

    def log_probs(self, logits: Tensor) -> Tensor:
        """The first of two steps, for all rows of a forward: temperature; the logits themselves if greedy."""
        return wide(logits) if self.greedy else tempered(logits, self.temperature)

    def truncate(self, log_p: Tensor) -> Tensor:
        """The second step, for the rows that are needed: top-p, or one-hot if greedy; [..., V] -> [..., V]."""
        if self.greedy:
            others = torch.arange(log_p.shape[-1], device=log_p.device) != log_p.argmax(-1, keepdim=True)
            return torch.zeros_like(log_p).masked_fill(others, float("-inf"))
        return nucleus(log_p, self.top_p) if self.nucleus else log_p

    def probs(self, logits: Tensor) -> Tensor:
        """Both steps: logits [..., V] -> probabilities [..., V]."""
        return self.truncate(self.log_probs(logits)).exp()


def wide(logits: Tensor) -> Tensor:
    """In float32 or better."""
    return logits if logits.dtype == torch.float64 else logits.float()


def tempered(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Logits [..., V] -> log-probabilities at a temperature above 0, [..., V], float32 or better.

    What would underflow as a probability is zero here too: a token that can be drawn has a probability that a
    verification rule can compute with, and keeps its relative precision when its siblings leave the distribution.
    """
    logits = wide(logits)
    # the maximum goes first: dividing by a tiny temperature must not swamp the differences
    log_p = ((logits - logits.amax(-1, keepdim=True)) / temperature).log_softmax(-1)
    return torch.nn.functional.threshold_(log_p, math.log(torch.finfo(log_p.dtype).tiny) + 1, float("-inf"))


def nucleus(log_p: Tensor, top_p: float | Tensor) -> Tensor:
    """Keep each token whose more probable ones hold less than `top_p`, and renormalise; [..., V] -> [..., V].

    The most probable token is always kept. Among equals the lower token id counts as the more probable.
    """
    ordered, order = log_p.sort(dim=-1, descending=True, stable=True)
    mass = ordered.exp()
    place = torch.arange(log_p.shape[-1], device=log_p.device)
    last = ((mass.cumsum(-1) - mass < top_p) | (place == 0)).sum(
        -1, keepdim=True
    ) - 1  # the least probable that is kept
    least, token = ordered.gather(-1, last), order.gather(-1, last)
    # by comparison, not by a scatter back from the order: fused with what reads it, that is read unwritten (torch 2.13)
    kept = (log_p > least) | ((log_p == least) & (place <= token))
    return log_p.masked_fill(~kept, float("-inf")).log_softmax(-1)
