"""Grow one block's draft trees with the drafter."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.backends.cuda_graphs.fused import fused
from rsdbench.decoding.drafting import Drafting, Level, root_level
from rsdbench.decoding.forward import PART, Lane
from rsdbench.decoding.tree import (
    DraftTree,
    TreeShape,
    fixed_ancestors,
    fixed_parents,
    level_rows,
    own_rows,
    parent_starts,
    row_depths,
)
from rsdbench.sampling.distributions import Warp


def noise_rows(drafting: Drafting, shape: TreeShape) -> list[int]:
    """Rows of S Gumbel variables that each level of a tree needs."""
    return [drafting.noise_rows(above, width) for above, width in zip((1, *shape.widths), shape.widths, strict=False)]


class Place(NamedTuple):
    """Where a level of W nodes lies in its tree.

    row: its first row, where 0 is the root; own [1, W, 1 + N], as `own_rows`; rows [1, W, 1 + N]: its ancestors, or
    None where the draws decide them.
    """

    width: int
    row: int
    own: Tensor
    rows: Tensor | None


@cache
def places(shape: TreeShape, device: torch.device) -> list[Place]:
    """Of all levels."""
    found = []
    for depth, width in enumerate(shape.widths, 1):
        row = shape.level(depth).start + 1
        fixed = None if shape.parents is None else fixed_ancestors(shape, device)[:, row : row + width].contiguous()
        found.append(Place(width, row, own_rows(shape, depth, device), fixed))
    return found


def draft_tree(
    lane: Lane, drafting: Drafting, warp: Warp, last_two: Tensor, length: Tensor, end: int, limit: int,
    noise: Iterable[Tensor],
) -> DraftTree:  # fmt: skip
    """Draft a tree below each sequence's last token, in `shape.depth` forwards of the drafter.

    last_two [B, 2]: the token before the root and the root; length [B]: the root's position, at most `end`; limit:
    positions there are; noise: of each level, [B, noise_rows, S].
    """
    shape, batch, device = lane.shape, len(length), lane.device
    drawn = shape.parents is None  # the draws decide the parents
    # the token before the root and the root, of which only the root is the level above the first
    tokens, row, level, rows = last_two, -1, root_level(batch, device), lane.two_rows.expand(batch, -1, -1)
    levels, laws, ancestors, whole = [], [], [rows[:, 1:]], None
    block = lane.begin(length, end)
    for place, own_noise in zip(places(shape, device), noise, strict=True):
        above = level.valid.shape[1]
        log_q = warp.cut(lane.rows(tokens, row, block, rows)[:, -above:])
        level, rows = fused(expanded)(drafting, level, rows[:, -above:], log_q, own_noise, place)
        if not levels and prod(sizes := (batch, 1 + shape.expanded, log_q.shape[-1])) > PART:
            whole = log_q.new_empty(sizes)  # of a large vocabulary: no room for a copy
        if whole is None:
            laws.append(log_q)
        else:
            whole[:, max(row, 0) : max(row, 0) + above] = log_q
        tokens, row = level.tokens, place.row
        levels.append(level)
        ancestors.append(rows)
    valid = torch.cat([x.valid for x in levels], 1)
    if end + shape.depth >= limit:
        valid = valid & (length.unsqueeze(1) + row_depths(shape, 1, shape.budget, device) < limit)
    if drawn:
        parents = torch.cat([x.parents for x in levels], 1) + parent_starts(shape, device)
    return DraftTree(
        tokens=torch.cat([x.tokens for x in levels], 1),
        parents=parents if drawn else fixed_parents(shape, batch, device),
        valid=valid,
        laws=torch.cat(laws, 1) if whole is None else whole,
        ancestors=torch.cat(ancestors, 1) if drawn else fixed_ancestors(shape, device),
    )


def expanded(
    drafting: Drafting, above: Level, rows: Tensor, log_q: Tensor, noise: Tensor, place: Place
) -> tuple[Level, Tensor]:  # fmt: skip
    """The next level, and what its nodes see; rows [B, W', 1 + N], what the level above sees."""
    level = drafting.expand(above, log_q, noise, place.width)
    return level, level_rows(rows, level.parents, place.own) if place.rows is None else place.rows


@cache
def no_tree(shape: TreeShape, batch: int, vocabulary: int, device: torch.device) -> DraftTree:
    """The tree of a method that drafts nothing."""
    none = torch.zeros(batch, 0, dtype=torch.long, device=device)
    laws = torch.empty(batch, 0, vocabulary, device=device)
    return DraftTree(none, none, none.bool(), laws, fixed_ancestors(shape, device))
