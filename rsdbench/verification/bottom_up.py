"""Bottom-up verification: the deepest path first, whose nodes stop with the mass that is left for what lies below.

On a chain it is block verification (Sun et al., arXiv 2403.10444), on drafts without replacement traversal
verification (Weng et al., arXiv 2505.12398), on one level recursive rejection. A chain of drafts is accepted to at
least the depth, in the mean, to which the token-wise rule accepts it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.verification import Outcome, Repeat, TreeView, first_true


class Below(NamedTuple):
    """What is below some rows: its drafts, rows [B, W, k], -1 where there is none, and their scales [B, W, k]; what
    these leave to the rows: stop [B, W], and law [B, W, V] of the token behind them."""

    rows: Tensor
    scales: Tensor
    stop: Tensor
    law: Tensor


class BottomUp:
    """A `TreeRule` for drafts that are distinct below a row: one, or drawn without replacement."""

    def __call__(self, tree: TreeView, uniforms: Tensor, repeat: Repeat) -> Outcome:
        """Accept the first node in post-order (children, then their parent) whose uniform is below its stop.

        The drafts below a row are distinct (drawn without replacement, or one). Each node's scale is the probability to
        stop there or below it, given its tokens were drafted; stop: given that nothing below it was accepted.
        """
        depth, rows = tree.levels.shape[0], tree.p.log.shape[1]
        batch, device = uniforms.shape[0], uniforms.device

        def going(*state: Tensor) -> Tensor:
            return state[0] < depth

        def down(*state: Tensor) -> tuple[Tensor, ...]:
            level, scale, stop = state
            own = tree.levels.index_select(0, level.clamp(max=depth - 1).unsqueeze(0)).expand(batch, -1)  # [B, W]
            below = self.look_below(tree, own, scale)
            # a node's stop is its scale until its own children were looked at
            stop = put(stop, own, below.stop)
            scale, stop = (put(x, below.rows.flatten(1), below.scales.flatten(1)) for x in (scale, stop))
            return level + 1, scale, stop

        ones = torch.ones(batch, rows, dtype=tree.p.log.dtype, device=device)
        state = torch.zeros((), dtype=torch.long, device=device), ones, ones.clone()
        _, scale, stop = repeat(depth, going, down, state)
        path = self.accepted_path(tree, (uniforms < stop[:, 1:]) & tree.valid)  # [B, 1 + N]
        line, there = first_true(path, depth + 1)
        row = line.gather(1, there.sum(1, keepdim=True) - 1)
        return Outcome(line, self.look_below(tree, row, scale).law.squeeze(1))

    def look_below(self, tree: TreeView, rows: Tensor, scale: Tensor) -> Below:
        """Go through the children of rows [B, W] in their order; scale [B, 1 + N], of which those rows are known."""
        p, q, a = tree.p.at(rows), tree.q.at(rows.clamp(max=tree.q.log.shape[1] - 1)), scale.gather(1, rows)
        mine = (tree.parents.unsqueeze(1) == rows.unsqueeze(2)) & tree.valid.unsqueeze(1)  # [B, W, N]
        children, present = first_true(mine, tree.fanout)
        tokens = tree.tokens.unsqueeze(1).expand(-1, rows.shape[1], -1).gather(2, children)
        tiny, words = torch.finfo(p.dtype).tiny, torch.arange(p.shape[2], device=p.device)
        scales = []
        for j in range(tree.fanout):
            x, here = tokens[..., j : j + 1], present[..., j : j + 1]
            old = a.unsqueeze(-1)
            scales.append((old * p.gather(2, x) / q.gather(2, x).clamp(min=tiny)).clamp(max=1))
            rest = (old * p - q).relu()
            mass = rest.sum(-1, keepdim=True)
            # p where nothing is left: reached with a probability of rounding errors
            p = torch.where(here & (mass > tiny), rest / mass.clamp(min=tiny), p)
            a = torch.where(here, self.left(old, mass), old).squeeze(-1)
            q = torch.where(here & (words == x), 0.0, q)
            q = q / q.sum(-1, keepdim=True).clamp(min=tiny)
        return Below(torch.where(present, children + 1, -1), torch.cat(scales, -1), a, p)

    def left(self, scale: Tensor, mass: Tensor) -> Tensor:
        """The scale of a row once a draft below it is rejected; mass: of relu(scale p - q)."""
        return torch.where(scale == 1, 1.0, mass / (mass + 1 - scale).clamp(min=torch.finfo(mass.dtype).tiny))

    def accepted_path(self, tree: TreeView, stops: Tensor) -> Tensor:
        """The rows from the root to the first node in post-order that stops: stops [B, N] bool -> [B, 1 + N] bool.

        A row is on this path if it, and each row above it, is the first of its siblings below which something stops.
        """
        stops = torch.nn.functional.pad(stops, (1, 0), value=True)
        has = (tree.ancestors & stops.unsqueeze(2)).any(1)[:, 1:] & tree.valid  # [B, N]: it or a row below it stops
        place = torch.arange(has.shape[1], device=has.device)
        siblings = tree.parents.unsqueeze(1) == tree.parents.unsqueeze(2)  # [B, N, N]
        earlier = (siblings & (place < place.unsqueeze(1)) & has.unsqueeze(1)).any(2)
        off = torch.nn.functional.pad(~has | earlier, (1, 0))
        return ~(tree.ancestors & off.unsqueeze(1)).any(2)


def put(values: Tensor, places: Tensor, new: Tensor) -> Tensor:
    """values [B, R] with new ones [B, M], none of them negative, at places [B, M], of which some may be -1: nowhere."""
    here = places.unsqueeze(2) == torch.arange(values.shape[1], device=values.device)  # [B, M, R]
    found = torch.where(here, new.unsqueeze(2), -1.0).amax(1)
    return torch.where(found < 0, values, found)


bottom_up = BottomUp()
