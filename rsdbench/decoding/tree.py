"""The tree that one block drafts, in buffers that drafting fills in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.decoding.shapes import TreeShape

Memory = Callable[[str, tuple[int, ...], torch.dtype], Tensor]  # for a buffer of a name, a shape and a dtype


class DraftTree(NamedTuple):
    """One block's drafts for B sequences.

    Rows of tokens and ancestors are numbered like the scratch slots of a KV cache: the token before the root, the
    root, the nodes.

    tokens [B, 2 + N]; ancestors [B, 2 + N, 1 + N] bool: what each row attends to of the root and the nodes; parents
    [B, N], -1 for the root; valid [B, N], False where no token was left to draw or where the position limit comes
    first; log_q [B, 1 + E, V], the drafter's log-probabilities at the root and at each expanded node: the very numbers
    that the drafts were drawn from.
    """

    tokens: Tensor
    ancestors: Tensor
    parents: Tensor
    valid: Tensor
    log_q: Tensor

    def of(self, batch: int) -> DraftTree:
        """The first sequences' part of the same memory."""
        return DraftTree(*(x[:batch] for x in self))


def new_tree(
    shape: TreeShape, last_two: Tensor, vocabulary: int, empty: Memory
) -> DraftTree:  # fmt: skip
    """Buffers for trees below the last two tokens [B, 2] of sequences."""
    batch, rows = len(last_two), 1 + shape.budget
    tree = DraftTree(
        tokens=empty("tokens", (batch, 1 + rows), torch.long),
        ancestors=empty("ancestors", (batch, 1 + rows, rows), torch.bool),
        parents=empty("parents", (batch, shape.budget), torch.long),
        valid=empty("valid", (batch, shape.budget), torch.bool),
        log_q=empty("log_q", (batch, 1 + shape.expanded, vocabulary), torch.float32),
    )
    tree.tokens.zero_()
    tree.tokens[:, :2] = last_two
    tree.ancestors[:, 1:] = ancestors_of(shape.parents or (-1,) * shape.budget)
    tree.ancestors[:, 0] = False
    tree.parents.copy_(torch.tensor(shape.parents or (0,) * shape.budget))
    tree.valid.zero_()
    return tree


def ancestors_of(parents: tuple[int, ...]) -> Tensor:
    """What the root and each node attend to, [1 + N, 1 + N] bool."""
    ancestors = torch.eye(1 + len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        ancestors[node + 1] |= ancestors[parent + 1]
    return ancestors
