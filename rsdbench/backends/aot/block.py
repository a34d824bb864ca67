"""The blocks of a batch in compiled calls, with all arguments prepared that do not change from block to block.

After a large model's forward nothing else is left in the processor's caches: there an operator or a line of Python
costs 10 microseconds, and a function of a few lines 50. So next to nothing is left between the calls, and what they
write lies in memory that stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.backends.aot.forwards import CompiledForward, CompiledGrow, Drafted
from rsdbench.backends.aot.library import Library
from rsdbench.decoding.drafting import root_level
from rsdbench.decoding.forward import Lane, row_numbers
from rsdbench.decoding.tree import TreeShape, fixed_ancestors, fixed_parents, row_depths


class Calls(NamedTuple):
    """What a method's blocks call; grow is None without drafts, verify is `compiled_verify` or `compiled_finish`."""

    forward: CompiledForward
    grow: CompiledGrow | None
    verify: Library
    accept: Library


class CompiledBlock:
    """The blocks of B sequences; when one of them ends, another `CompiledBlock` goes on with the rest.

    length [B] and last_two [B, 2], the position of each root, and the root behind the token before it, are those of the
    next block once `verify` and `accept` have been called.
    """

    def __init__(
        self, calls: Calls, target: Lane, drafter: Lane | None, limit: int, length: Tensor, last_two: Tensor
    ) -> None:
        """length, last_two: are copied; limit: positions that both models have."""
        shape, batch, device = target.shape, len(length), target.device
        self.calls, self.depth = calls, shape.depth
        self.length = length.clone()
        self.drafted = empty_tree(shape, last_two, target.model.config.vocab_size)
        self.last_two = self.drafted.tokens[:, :2]
        self.given = [x[:, 1:] for x in self.drafted[:2]]  # to the target: without the token before the root
        if drafter is not None:
            self.levels = [[*growth(shape, level, drafter, limit), self.length] for level in range(shape.depth)]
            self.root = torch.stack([x.float() for x in root_level(batch, device)[2:]])
            self.behind = [*self.drafted, *drafter.cache.views(batch)]
        self.depths = row_depths(shape, 0, 1 + shape.budget, device)
        self.columns = row_numbers(1, 1 + shape.budget, device)
        self.target, self.storage = target, target.cache.views(batch)
        caches = [lane.cache for lane in (target, drafter) if lane is not None]
        self.moved = [self.length, target.cache.first, *(cache.storage[0] for cache in caches)]

    def draft(self, steps: Tensor, noise: Iterable[Tensor]) -> None:
        """Draft the trees; steps [end], as in `Rows`; noise: of each level, [B, noise_rows, S], as in `Numbers`."""
        level, run = self.root, self.calls.grow.library.run
        for before, own in zip(self.levels, noise, strict=True):
            (level,) = run([*before, steps, own.contiguous(), level, *self.behind])

    def forward(self, steps: Tensor) -> Tensor:
        """The target's laws at the root and at every node, [B, 1 + N, V]."""
        tokens, ancestors = (x.contiguous() for x in self.given)
        out = self.calls.forward.library.run(
            [tokens, self.depths, ancestors, self.length, steps, self.target.previous, self.columns,
             self.target.temperature, *self.storage]
        )[0]  # fmt: skip
        return out if self.calls.forward.tempered else self.target.tempered(out)

    def verify(self, tempered: Tensor, uniforms: Tensor, noise: Tensor) -> list[Tensor]:
        """Accept drafts and draw the last token; returns report, rows and accepted, as in `Outcome`."""
        tokens, _, parents, valid, laws = self.drafted
        if not self.depth:
            return self.calls.verify.run([noise, tokens, tempered])
        return self.calls.verify.run([uniforms, noise, tokens, tempered, laws, parents, valid])

    def accept(self, rows: Tensor, accepted: Tensor) -> None:
        """Move accepted rows behind the prefix in the caches; rows [B, R], as in `accepted_columns`, accepted [B]."""
        self.calls.accept.run([rows.contiguous(), accepted, *self.moved])


def empty_tree(shape: TreeShape, last_two: Tensor, vocabulary: int) -> Drafted:
    """Trees without drafts below the last of two tokens [B, 2], with what is known of them before."""
    batch, device = len(last_two), last_two.device
    nodes = torch.zeros(batch, shape.budget, dtype=torch.long, device=device)
    drawn = shape.parents is None  # the draws decide the parents
    own = torch.eye(1 + shape.budget, dtype=torch.bool, device=device) if drawn else fixed_ancestors(shape, device)[0]
    return Drafted(
        tokens=torch.cat([last_two, nodes], 1),
        ancestors=torch.cat([torch.zeros_like(own[:1]), own]).expand(batch, -1, -1).contiguous(),
        parents=nodes if drawn else fixed_parents(shape, batch, device).clone(),
        valid=nodes.bool(),
        laws=torch.zeros(batch, 1 + shape.expanded, vocabulary, device=device),
    )


def growth(shape: TreeShape, level: int, drafter: Lane, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where a level grows, 0 being that below the root: columns, nodes and numbers, as in `Growth`."""
    first, count = (0, 2) if level == 0 else (2 + shape.starts[level - 1], shape.widths[level - 1])
    device, numbers = drafter.device, [level, drafter.previous, drafter.warp.temperature, limit]
    columns, nodes = row_numbers(first, count, device), row_numbers(shape.starts[level], shape.widths[level], device)
    return columns, nodes, torch.tensor(numbers, dtype=torch.float64, device=device)
