"""How a level of a draft tree is drawn from the drafter's distributions (arXiv 2402.14160, section 3).

A strategy is pure: log-probabilities and noise in; tokens, parents and validity out.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rsdbench.sampling.gumbel import best_children, draw


class Frontier(NamedTuple):
    """The deepest level so far, W nodes: valid, log-probability and perturbed score of each, [B, W].

    The last two belong to stochastic beam search; of the root they are 0.
    """

    valid: Tensor
    log_prob: Tensor
    score: Tensor


class Level(NamedTuple):
    """A drafted level of W nodes: tokens and parents (index within the level above), [B, W], and the frontier it is."""

    tokens: Tensor
    parents: Tensor
    frontier: Frontier


class Strategy(Protocol):
    """A way to draw a level."""

    @staticmethod
    def noise_rows(above: int, width: int) -> int:
        """Rows of S Gumbel variables (`gumbel.group_size`) to draft a level of `width` nodes below `above` nodes."""

    @staticmethod
    def expand(above: Frontier, log_q: Tensor, noise: Tensor, width: int) -> Level:
        """Draft the next level of `width` nodes.

        log_q [B, W', V]: the drafter's log-probabilities at the level above; noise [B, noise_rows, S].
        """


class Sequences:
    """K independent sequences of length L; equal prefixes stay separate nodes."""

    @staticmethod
    def noise_rows(above: int, width: int) -> int:
        """Each sequence has noise of its own, at the first level too: of the groups, and of the tokens of one."""
        return 2 * width

    @staticmethod
    def expand(above: Frontier, log_q: Tensor, noise: Tensor, width: int) -> Level:
        """One token behind each sequence; all those of the first level are drawn at the root."""
        parents = shared_parents(above, width)
        tokens = draw(log_q.index_select(1, parents[0]), noise.unflatten(1, (width, 2)))
        return Level(tokens, parents, without_scores(above.valid.gather(1, parents)))


class Branching:
    """RSD-C: every node at depth l-1 draws b_l children without replacement, by Gumbel-top-k."""

    @staticmethod
    def noise_rows(above: int, width: int) -> int:
        """Of the groups of each node above, and of the tokens of each child's group."""
        return above + width

    @staticmethod
    def expand(above: Frontier, log_q: Tensor, noise: Tensor, width: int) -> Level:
        """The same number of children for each node, siblings by falling perturbed score.

        What is below a node is a beam search of its own, which begins with it as its root.
        """
        nodes = above.valid.shape[1]
        children = width // nodes
        root = torch.zeros_like(above.score).unsqueeze(-1)
        noise = noise.unflatten(1, (nodes, 1 + children))
        found = best_children(log_q.unsqueeze(2), root, root, above.valid.unsqueeze(-1), noise, children)
        return Level(found.tokens.flatten(1), shared_parents(above, width), without_scores(found.valid.flatten(1)))


class StochasticBeam:
    """RSD-S: stochastic beam search, a beam of K for L levels (arXiv 1903.06059, algorithm 1)."""

    noise_rows = staticmethod(Branching.noise_rows)

    @staticmethod
    def expand(above: Frontier, log_q: Tensor, noise: Tensor, width: int) -> Level:
        """The K best of all children by their scores conditioned on their parents'."""
        found = best_children(log_q, above.log_prob, above.score, above.valid, noise, width)
        # a missing node keeps finite numbers, so that nothing drafted below it is NaN
        log_prob, score = (torch.where(found.valid, x, 0.0) for x in (found.log_prob, found.score))
        return Level(found.tokens, found.entries, Frontier(found.valid, log_prob, score))


def shared_parents(above: Frontier, width: int) -> Tensor:
    """Parents of a level whose nodes are shared out evenly and in order among those above, [B, width]."""
    batch, nodes = above.valid.shape
    return (torch.arange(width, device=above.valid.device) // (width // nodes)).expand(batch, -1)


def without_scores(valid: Tensor) -> Frontier:
    """The frontier of a strategy that needs no scores."""
    zeros = torch.zeros(valid.shape, device=valid.device)
    return Frontier(valid, zeros, zeros)
