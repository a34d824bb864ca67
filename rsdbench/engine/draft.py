"""Grow one block's draft trees with the drafter."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from rsdbench.engine.compiled_steps import Steps
from rsdbench.engine.drafting import Drafting, root_level
from rsdbench.engine.lane import PART, Lane
from rsdbench.engine.tree import (
    DraftTree,
    TreeShape,
    fixed_ancestors,
    fixed_parents,
    fixed_rows,
    level_rows,
    own_rows,
    row_depths,
)
from rsdbench.sampling.laws import Warp


@lru_cache(maxsize=256)
def noise_rows(drafting: Drafting, shape: TreeShape) -> list[int]:
    """Rows of V Gumbel variables that each level of a tree needs."""
    return [drafting.noise_rows(shape, depth) for depth in range(1, shape.depth + 1)]


def draft_tree(
    lane: Lane, drafting: Drafting, warp: Warp, last_two: Tensor, length: Tensor, end: int, limit: int, noise: Tensor,
    compiled: Steps | None = None,
) -> DraftTree:  # fmt: skip
    """Draft a tree below each sequence's last token, in `shape.depth` forwards of the drafter.

    last_two [B, 2]: the token before the root and the root; length [B]: the root's position, at most `end`; limit:
    positions there are; noise [B, sum of noise_rows, V]; compiled: the steps of this drafting, compiled.
    """
    shape, batch, device = lane.shape, len(length), lane.device
    drawn = shape.parents is None  # the draws decide the parents
    level = root_level(batch, device)
    rows = own_rows(shape, 0, device).expand(batch, -1, -1)  # ancestors of the level's rows
    log_q = warp.cut(lane.previous_and_root(last_two, length, end))
    sizes = batch, 1 + shape.expanded, log_q.shape[-1]
    whole = log_q.new_empty(sizes) if prod(sizes) > PART else None  # a large vocabulary: no room for a copy
    ancestors, levels, laws, row = [rows], [], [], 0
    for depth, own_noise in enumerate(noise.split(noise_rows(drafting, shape), 1), 1):
        if depth > 1:
            row = shape.starts[depth - 2] + 1
            rows = rows if drawn else fixed_rows(shape, depth - 1, device)
            log_q = warp.cut(lane.rows(level.tokens, row, length, end, rows))
        if whole is None:
            laws.append(log_q)
        else:
            whole[:, row : row + log_q.shape[1]] = log_q
        if not drawn:
            level = drafting.expand(level, log_q, own_noise, shape.widths[depth - 1])
        elif compiled is None:
            level = drafting.expand(level, log_q, own_noise, shape.widths[depth - 1])
            rows = level_rows(rows, level.parents, own_rows(shape, depth, device))
        else:
            level, rows = compiled.expand(level, log_q, own_noise, rows, own_rows(shape, depth, device))
        levels.append(level)
        ancestors.append(rows)
    depths, valid = row_depths(shape, 1, shape.budget, device), torch.cat([x.valid for x in levels], 1)
    if end + shape.depth >= limit:
        valid = valid & (length.unsqueeze(1) + depths < limit)
    if drawn:
        starts = [-1, *shape.starts]
        parents = torch.cat([x.parents + start for x, start in zip(levels, starts, strict=False)], 1)
    return DraftTree(
        tokens=torch.cat([x.tokens for x in levels], 1),
        parents=parents if drawn else fixed_parents(shape, batch, device),
        depth=depths,
        valid=valid,
        laws=torch.cat(laws, 1) if whole is None else whole,
        ancestors=torch.cat(ancestors, 1) if drawn else fixed_ancestors(shape, device),
    )


@lru_cache(maxsize=64)
def no_tree(shape: TreeShape, batch: int, vocabulary: int, device: torch.device) -> DraftTree:
    """The tree of a method that drafts nothing."""
    none = torch.zeros(batch, 0, dtype=torch.long, device=device)
    ancestors = fixed_ancestors(shape, device)
    return DraftTree(none, none, none[0], none.bool(), torch.empty(batch, 0, vocabulary, device=device), ancestors)
