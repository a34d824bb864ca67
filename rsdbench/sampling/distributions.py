"""From logits to the next-token law that is drafted from or decoded: temperature, then top-p."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rsdbench.errors import UsageError


@dataclass(frozen=True)
class Warp:
    """How logits become a law, the same for drafter and target.

    temperature 0 is the one-hot law of the argmax; top_p keeps the smallest set of most probable tokens whose mass
    reaches top_p (nucleus sampling, Holtzman et al., arXiv 1904.09751).

    Raises:
        UsageError: temperature is negative or not finite, or top_p lies outside (0, 1].
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature must be a number >= 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must lie in (0, 1], not {self.top_p}")

    def log_law(self, logits: Tensor) -> Tensor:
        """Logits [..., V] -> log-probabilities [..., V], float32 or better; -inf where the probability is zero."""
        return self.cut(self.tempered(logits))

    def tempered(self, logits: Tensor) -> Tensor:
        """The first of two steps, for all rows of a forward: `tempered`, or the logits themselves at temperature 0."""
        return tempered(logits, self.temperature) if self.temperature else wide(logits)

    def cut(self, log_p: Tensor) -> Tensor:
        """The second step, for the rows that are needed: top-p, or the one-hot law of the argmax at temperature 0."""
        if self.temperature == 0:
            best = log_p.argmax(-1, keepdim=True)
            return torch.full_like(log_p, float("-inf")).scatter_(-1, best, 0.0)
        return log_p if self.top_p == 1 else nucleus(log_p, self.top_p)

    def law(self, logits: Tensor) -> Tensor:
        """Logits [..., V] -> probabilities [..., V], float32 or better."""
        return self.log_law(logits).exp()


def wide(logits: Tensor) -> Tensor:
    """In float32 or better."""
    return logits if logits.dtype == torch.float64 else logits.float()


def tempered(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Logits [..., V] -> log-probabilities at a temperature above 0, [..., V], float32 or better.

    What would underflow as a probability is zero here too: a token that can be drawn has a probability that a
    verification rule can compute with, and keeps its relative precision when its siblings leave the law.
    """
    logits = wide(logits)
    # the maximum goes first: dividing by a tiny temperature must not swamp the differences
    log_p = ((logits - logits.amax(-1, keepdim=True)) / temperature).log_softmax(-1)
    return torch.nn.functional.threshold_(log_p, math.log(torch.finfo(log_p.dtype).tiny) + 1, float("-inf"))


def nucleus(log_p: Tensor, top_p: float) -> Tensor:
    """Keep each token whose more probable ones hold less than `top_p`, and renormalise; [..., V] -> [..., V].

    The most probable token is always kept. Among equals the lower token id counts as the more probable.
    """
    ordered, order = log_p.sort(dim=-1, descending=True, stable=True)
    mass = ordered.exp()
    dropped = mass.cumsum(-1) - mass >= top_p
    dropped[..., 0] = False
    ordered = ordered.masked_fill(dropped, float("-inf")).log_softmax(-1)
    return torch.empty_like(log_p).scatter_(-1, order, ordered)
