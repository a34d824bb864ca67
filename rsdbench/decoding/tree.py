"""The shape of a draft tree, which is static for a structure, and the tree that one block drafts.

What is computed from a shape is small and kept for good: a CUDA graph knows its address.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class TreeShape:
    """Levels of a draft tree. Nodes are numbered in level order, siblings in draw order.

    widths: nodes at depth 1, 2, ..., L. fanouts: the most drafts that verification can meet below one node, for
    each depth. parents: of each node, -1 for the root, or None where the draw decides them. A tree without levels
    is autoregressive decoding.
    """

    widths: tuple[int, ...]
    fanouts: tuple[int, ...]
    parents: tuple[int, ...] | None

    def __hash__(self) -> int:
        return self.number

    @cached_property
    def number(self) -> int:
        """The hash, computed once: shapes are keys of what each level of each block looks up."""
        return hash((self.widths, self.fanouts, self.parents))

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

    def level(self, depth: int) -> slice:
        """The nodes at a depth of 1 to L."""
        return slice(self.starts[depth - 1], self.starts[depth])


class DraftTree(NamedTuple):
    """One block's drafts for a batch of B sequences; N nodes, V tokens.

    tokens [B, N]; parents [B, N], -1 for the root; valid [B, N], False where no token was left to draw or where the
    position limit comes first; laws [B, 1 + expanded, V], the drafter's log-law at the root and at every
    expanded node, the very numbers that the drafts were drawn from; ancestors [B or 1, 1 + N, 1 + N] bool, where row
    and column 0 are the root: what each row attends to in its own tree.
    """

    tokens: Tensor
    parents: Tensor
    valid: Tensor
    laws: Tensor
    ancestors: Tensor


@cache
def node_depths(shape: TreeShape, device: torch.device) -> Tensor:
    """Depth of the token before the root, of the root and of each node, [2 + N]."""
    return torch.tensor([-1, 0, *(d for d, width in enumerate(shape.widths, 1) for _ in range(width))], device=device)


@lru_cache(maxsize=1024)
def row_depths(shape: TreeShape, row: int, count: int, device: torch.device) -> Tensor:
    """Depths of tree rows `row`, `row` + 1, ..., [count]; 0 is the root, -1 the token before it."""
    return node_depths(shape, device)[1 + row : 1 + row + count]


@cache
def row_levels(shape: TreeShape, device: torch.device) -> Tensor:
    """Depth of the root and of each expanded node, [1 + E]."""
    return node_depths(shape, device)[1 : 2 + shape.expanded]


@cache
def parent_starts(shape: TreeShape, device: torch.device) -> Tensor:
    """First node of the level above each node, [N], -1 for the root."""
    starts = zip((-1, *shape.starts), shape.widths, strict=False)
    return torch.tensor([start for start, width in starts for _ in range(width)], device=device, dtype=torch.long)


@cache
def fixed_parents(shape: TreeShape, batch: int, device: torch.device) -> Tensor:
    """Parents of a shape whose draws do not decide them, [B, N]."""
    return torch.tensor([shape.parents] * batch, device=device, dtype=torch.long)


@cache
def fixed_ancestors(shape: TreeShape, device: torch.device) -> Tensor:
    """Ancestors of a shape whose draws do not decide them, [1, 1 + N, 1 + N] bool."""
    ancestors = torch.eye(1 + shape.budget, dtype=torch.bool)
    for node, parent in enumerate(shape.parents):
        ancestors[node + 1] |= ancestors[parent + 1]
    return ancestors.to(device).unsqueeze(0)


@cache
def own_rows(shape: TreeShape, depth: int, device: torch.device) -> Tensor:
    """What the rows of a level see of themselves alone, [1, width, 1 + N] bool; depth 0 is the root."""
    rows = slice(0, 1) if depth == 0 else slice(shape.level(depth).start + 1, shape.level(depth).stop + 1)
    return torch.eye(1 + shape.budget, dtype=torch.bool, device=device)[rows].unsqueeze(0)


def level_rows(above: Tensor, parents: Tensor, own: Tensor) -> Tensor:
    """Ancestors of a level's rows from those of the rows above.

    above [B, W', 1 + N]; parents [B, W] within that level; own [1, W, 1 + N], as `own_rows` -> [B, W, 1 + N].
    """
    return above.gather(1, parents.unsqueeze(-1).expand(-1, -1, above.shape[-1])) | own
