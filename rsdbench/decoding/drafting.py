"""How a block's draft tree is grown, level by level, from the drafter's laws (arXiv 2402.14160, section 3).

A strategy reads a structure's text, says how much noise a level needs, and expands a level. Expanding is pure:
log-laws and noise in, tokens, parents and validity out.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from operator import mul
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rsdbench.decoding.tree import TreeShape
from rsdbench.errors import UsageError
from rsdbench.sampling.gumbel import best_children, draw


class Level(NamedTuple):
    """One drafted level of W nodes: tokens, parents (index within the level above) and valid, each [B, W].

    log_prob and score [B, W] belong to stochastic beam search alone, and to the root.
    """

    tokens: Tensor
    parents: Tensor
    valid: Tensor
    log_prob: Tensor | None = None
    score: Tensor | None = None


@cache
def root_level(batch: int, device: torch.device) -> Level:
    """The level above the first one: the root, with log-probability and perturbed score 0."""
    zeros = torch.zeros(batch, 1, device=device)
    index = zeros.long()
    return Level(index, index, torch.ones_like(zeros, dtype=torch.bool), zeros, zeros)


@dataclass(frozen=True, eq=False)
class Drafting(ABC):
    """A way to grow a tree. `structures` maps a budget to the structures that the benchmark compares.

    replacement: whether the drafts below a node are independent draws; otherwise they are distinct, in draw order.
    """

    replacement: ClassVar[bool] = False
    form: str  # what a structure looks like, for messages
    pattern: str
    structures: dict[int, tuple[str, ...]]

    def shape(self, structure: str) -> TreeShape:
        """The shape of a structure's tree.

        Raises:
            UsageError: the text does not have this strategy's form.
        """
        if not re.fullmatch(self.pattern, structure):
            raise UsageError(f"structure '{structure}' is not of the form {self.form}")
        return self._shape(structure)

    @abstractmethod
    def _shape(self, structure: str) -> TreeShape:
        """The shape of a structure whose form is right."""

    def noise_rows(self, above: int, width: int) -> int:
        """Rows of S Gumbel variables (`gumbel.group_size`) to draft a level of `width` nodes below `above` nodes."""
        return above + width

    @abstractmethod
    def expand(self, above: Level, log_q: Tensor, noise: Tensor, width: int) -> Level:
        """Draft the next level of `width` nodes.

        log_q [B, W', V]: the drafter's log-laws at the level above; noise [B, noise_rows, S].
        """


class NoDrafting(Drafting):
    """Autoregressive decoding: a tree without nodes."""

    def _shape(self, structure: str) -> TreeShape:
        return TreeShape((), (), ())

    def expand(self, above: Level, log_q: Tensor, noise: Tensor, width: int) -> Level:
        """There is no level to draft."""
        raise AssertionError("a tree without nodes has no level to draft")


class Sequences(Drafting):
    """K independent sequences of length L; equal prefixes stay separate nodes."""

    replacement = True

    def _shape(self, structure: str) -> TreeShape:
        count, length = beam_and_length(structure)
        first_level = [-1] * count
        return TreeShape((count,) * length, (count,) * length, (*first_level, *range(count * (length - 1))))

    def noise_rows(self, above: int, width: int) -> int:
        """Each sequence has noise of its own, at the first level too: of the groups, and of the tokens of one."""
        return 2 * width

    def expand(self, above: Level, log_q: Tensor, noise: Tensor, width: int) -> Level:
        """One token behind each sequence; all those of the first level have the root's single law."""
        batch, parents_above = above.tokens.shape
        parents = shared_parents(batch, parents_above, width, log_q.device)
        if torch.compiler.is_compiling() or parents_above < width:
            log_q, valid = log_q.index_select(1, parents[0]), above.valid.gather(1, parents)
        else:
            valid = above.valid
        return Level(draw(log_q, noise.unflatten(1, (width, 2))), parents, valid)


class Branching(Drafting):
    """RSD-C: every node at depth l-1 draws b_l children without replacement, by Gumbel-top-k."""

    def _shape(self, structure: str) -> TreeShape:
        factors = tuple(int(b) for b in structure.split("-"))
        widths = tuple(accumulate(factors, mul))
        parents = [-1] * factors[0]
        for factor, start, width in zip(factors[1:], accumulate(widths, initial=0), widths, strict=False):
            parents += [start + i // factor for i in range(width * factor)]
        return TreeShape(widths, factors, tuple(parents))

    def expand(self, above: Level, log_q: Tensor, noise: Tensor, width: int) -> Level:
        """The same number of children for each node, siblings by falling perturbed score.

        What is below a node is a beam search of its own, which begins with it as its root.
        """
        batch, parents_above = above.tokens.shape
        children = width // parents_above
        root = torch.zeros(batch, parents_above, 1, device=log_q.device)
        noise = noise.unflatten(1, (parents_above, 1 + children))
        found = best_children(log_q.unsqueeze(2), root, root, above.valid.unsqueeze(-1), noise, children)
        parents = shared_parents(batch, parents_above, width, log_q.device)
        return Level(found.tokens.flatten(1), parents, found.valid.flatten(1))


class StochasticBeam(Drafting):
    """RSD-S: stochastic beam search, a beam of K for L levels (arXiv 1903.06059, algorithm 1)."""

    def _shape(self, structure: str) -> TreeShape:
        beam, length = beam_and_length(structure)
        return TreeShape((beam,) * length, (beam,) * length, None)

    def expand(self, above: Level, log_q: Tensor, noise: Tensor, width: int) -> Level:
        """The K best of all children by their scores conditioned on their parents'."""
        found = best_children(log_q, above.log_prob, above.score, above.valid, noise, width)
        # a missing node keeps finite numbers, so that nothing drafted below it is NaN
        log_prob, score = (torch.where(found.valid, x, 0.0) for x in (found.log_prob, found.score))
        return Level(found.tokens, found.entries, found.valid, log_prob, score)


def shared_parents(batch: int, above: int, width: int, device: torch.device) -> Tensor:
    """Parents of a level whose nodes are shared out evenly and in order among those above, [B, width]."""
    if torch.compiler.is_compiling():  # sizes that are not numbers yet
        return (torch.arange(width, device=device) // (width // above)).expand(batch, -1)
    return known_parents(batch, above, width, device)


@cache
def known_parents(batch: int, above: int, width: int, device: torch.device) -> Tensor:
    """`shared_parents`, kept."""
    return torch.arange(above, device=device).repeat_interleave(width // above).expand(batch, -1)


def beam_and_length(structure: str) -> tuple[int, int]:
    """ "3x2" -> (3, 2), and "6" -> (1, 6): a single sequence."""
    first, _, second = structure.rpartition("x")
    return int(first or 1), int(second)


LENGTHS = {6: ("6",), 10: ("10",), 14: ("14",), 21: ("21",), 30: ("30",)}
BEAMS = {6: ("2x3", "3x2"), 10: ("2x5", "5x2"), 14: ("2x7", "7x2"), 21: ("3x7", "7x3"), 30: ("5x6", "6x5")}
BRANCHINGS = {
    6: ("2-1-1", "2-2", "3-1"),
    10: ("2-1-1-1-1", "2-2-1", "5-1"),
    14: ("2-1-1-1-1-1-1", "2-2-2", "7-1"),
    21: ("3-1-1-1-1-1-1", "3-2-2", "7-1-1"),
    30: ("2-2-2-2", "5-1-1-1-1-1", "6-1-1-1-1"),
}

POSITIVE = "[1-9][0-9]{0,2}"
NO_DRAFTS = NoDrafting("'0' (no drafts)", "0", {})
SEQUENCE = Sequences("'6' (a length)", POSITIVE, LENGTHS)
SEQUENCES = Sequences("'2x3' (sequences x length)", f"{POSITIVE}x{POSITIVE}", BEAMS)
BRANCHING = Branching("'2-2-1' (branching factors)", f"{POSITIVE}(-{POSITIVE})*", BRANCHINGS)
STOCHASTIC_BEAM = StochasticBeam("'2x3' (beam x length)", f"{POSITIVE}x{POSITIVE}", BEAMS)
