"""The shape of a draft tree, which is static for a structure. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise


@dataclass(frozen=True)
class TreeShape:
    """Levels of a draft tree. Nodes are numbered in level order, siblings in draw order.

    widths: nodes at depth 1, 2, ..., L. fanouts: the most drafts that verification can meet below one node, for each
    depth. parents: of each node, -1 for the root, or None where the draw decides them. A tree without levels is
    autoregressive decoding.
    """

    widths: tuple[int, ...]
    fanouts: tuple[int, ...]
    parents: tuple[int, ...] | None

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first node of each level, and the number of nodes last."""
        return tuple(accumulate(self.widths, initial=0))

    @property
    def budget(self) -> int:
        """Draft tokens that the target processes in a block: the number of nodes."""
        return self.starts[-1]

    @property
    def depth(self) -> int:
        """Drafter calls in a block."""
        return len(self.widths)

    @property
    def expanded(self) -> int:
        """Nodes that are given to the drafter: all but the last level."""
        return self.starts[-2] if self.widths else 0

    @property
    def fanout(self) -> int:
        """The most drafts below one node, and at least 1."""
        return max(self.fanouts, default=1)

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Tree rows at depth 0, 1, ..., L - 1; the last of a level stands in for those that it lacks to the widest."""
        own = [(0,), *(range(a + 1, b + 1) for a, b in pairwise(self.starts[:-1]))] if self.widths else []
        widest = max(map(len, own), default=1)
        return tuple((*rows, *[rows[-1]] * (widest - len(rows))) for rows in own)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Depth of the token before the root, of the root, and of each node."""
        return (-1, 0, *(depth for depth, width in enumerate(self.widths, 1) for _ in range(width)))
