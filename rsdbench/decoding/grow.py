"""Grow a draft tree by one level, in place: a forward of the level above, and what is drawn from its distributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.decoding.forward import Rows
from rsdbench.decoding.strategies import Frontier, Strategy
from rsdbench.decoding.tree import DraftTree
from rsdbench.sampling.gumbel import to_gumbel


class Growth(NamedTuple):
    """What a level of W nodes below one of W' takes, beside the tree.

    slots [R]: the rows of the tree that are forwarded, by their KV slots, of which the last W' are the level above;
    nodes [W], the level's own; depth []: that of the level above; length [B], the root's position; prefix [end], as in
    `Rows`; noise [B, noise_rows, S], uniforms; frontier [3, B, W'], the level above as numbers.
    """

    slots: Tensor
    nodes: Tensor
    depth: Tensor
    length: Tensor
    prefix: Tensor
    noise: Tensor
    frontier: Tensor


def grow(
    forward: Callable[[Rows], Tensor], fill: Callable[[Growth, DraftTree, Tensor], Tensor], growth: Growth,
    tree: DraftTree,
) -> Tensor:  # fmt: skip
    """Draft a level into the tree; returns its frontier, [3, B, W].

    forward: the drafter's log-probabilities of rows, [B, R, V], after top-p; fill: `fill_level` of a strategy.
    """
    above, count = growth.frontier.shape[2], growth.slots.shape[0]
    # the rows before the level above are those of the level before it: of the first level, the token before the root
    depths = growth.depth - (torch.arange(count, device=growth.slots.device) < count - above).long()
    tokens, ancestors = (x.index_select(1, growth.slots) for x in (tree.tokens, tree.ancestors))
    rows = Rows(tokens, depths, ancestors, growth.length, growth.prefix, growth.slots)
    return fill(growth, tree, forward(rows)[:, count - above :])


def fill_level(strategy: Strategy, limit: int | Tensor, growth: Growth, tree: DraftTree, log_q: Tensor) -> Tensor:
    """Draw a level's nodes from log_q [B, W', V], and write all that is known of them into the tree.

    limit: positions that there are: a node beyond them is never valid. Returns the level's frontier, [3, B, W].
    """
    nodes, above = growth.nodes, growth.frontier.shape[2]
    valid, log_prob, score = growth.frontier.unbind()
    level = strategy.expand(Frontier(valid > 0, log_prob, score), log_q, to_gumbel(growth.noise), nodes.shape[0])
    slots = growth.slots[growth.slots.shape[0] - above :]  # of the level above
    seen = tree.ancestors.index_select(1, slots)  # [B, W', 1 + N]
    seen = seen.gather(1, level.parents.unsqueeze(-1).expand(-1, -1, seen.shape[2]))
    itself = nodes.unsqueeze(1) + 1 == torch.arange(seen.shape[2], device=nodes.device)
    inside = growth.length.unsqueeze(1) + growth.depth + 1 < limit
    tree.tokens.index_copy_(1, nodes + 2, level.tokens)
    tree.ancestors.index_copy_(1, nodes + 2, seen | itself)
    tree.parents.index_copy_(1, nodes, (slots - 2).expand(seen.shape[0], -1).gather(1, level.parents))
    tree.valid.index_copy_(1, nodes, level.frontier.valid & inside)
    tree.log_q.index_copy_(1, slots - 1, log_q)
    return torch.stack([x.float() for x in level.frontier])
