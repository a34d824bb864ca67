"""Grow one block's draft trees with the drafter."""

from __future__ import annotations

import torch
from torch import Tensor

from rsdbench.engine.compiled_steps import Steps
from rsdbench.engine.drafting import Drafting, root_level
from rsdbench.engine.lane import Lane
from rsdbench.engine.tree import (
    DraftTree,
    TreeShape,
    fixed_ancestors,
    fixed_parents,
    level_rows,
    node_depths,
    own_rows,
)
from rsdbench.sampling.laws import Warp


def noise_rows(drafting: Drafting, shape: TreeShape) -> int:
    """Rows of V Gumbel variables that a whole tree needs."""
    return sum(drafting.noise_rows(shape, depth) for depth in range(1, shape.depth + 1))


def draft_tree(
    lane: Lane, drafting: Drafting, warp: Warp, last_two: Tensor, length: Tensor, end: int, limit: int, noise: Tensor,
    compiled: Steps | None = None,
) -> DraftTree:  # fmt: skip
    """Draft a tree below each sequence's last token, in `shape.depth` forwards of the drafter.

    last_two [B, 2]: the token before the root and the root; length [B]: the root's position, at most `end`; limit:
    positions there are; noise [B, noise_rows, V]; compiled: the steps of this drafting, compiled.
    """
    shape, batch = lane.shape, len(length)
    level = root_level(batch, lane.device)
    rows = own_rows(shape, 0, lane.device).expand(batch, -1, -1)  # ancestors of the level's rows
    fixed = fixed_ancestors(shape, lane.device) if shape.parents is not None else None
    ancestors, laws, levels, used = [rows], [], [], 0
    for depth in range(1, shape.depth + 1):
        if depth == 1:
            tempered = lane.previous_and_root(last_two, length, end)
        else:
            first = shape.level(depth - 1).start + 1
            if fixed is not None:
                rows = fixed[:, first : first + level.tokens.shape[1]]
            tempered = lane.rows(level.tokens, first, length, end, rows)
        log_q = warp.cut(tempered)
        laws.append(log_q)
        more = drafting.noise_rows(shape, depth)
        own_noise, own = noise[:, used : used + more], own_rows(shape, depth, lane.device)
        if fixed is None and compiled is not None:
            level, rows = compiled.expand(level, log_q, own_noise, rows, own)
        else:
            level = drafting.expand(level, log_q, own_noise, shape.widths[depth - 1])
            rows = level_rows(rows, level.parents, own) if fixed is None else rows
        levels.append(level)
        ancestors.append(rows)
        used += more
    depths = node_depths(shape, lane.device)[1:]
    starts = [-1, *shape.starts]
    return DraftTree(
        tokens=torch.cat([x.tokens for x in levels], 1),
        parents=torch.cat([x.parents + start for x, start in zip(levels, starts, strict=False)], 1)
        if fixed is None
        else fixed_parents(shape, lane.device).expand(batch, -1),
        depth=depths,
        valid=torch.cat([x.valid for x in levels], 1) & (length.unsqueeze(1) + depths < limit),
        laws=torch.cat(laws, 1).exp_(),
        ancestors=torch.cat(ancestors, 1) if fixed is None else fixed,
    )


def no_tree(lane: Lane, batch: int) -> DraftTree:
    """The tree of a method that drafts nothing."""
    none = torch.zeros(batch, 0, dtype=torch.long, device=lane.device)
    ancestors = fixed_ancestors(lane.shape, lane.device)
    return DraftTree(none, none, none[0], none.bool(), torch.empty(batch, 0, 0, device=lane.device), ancestors)
