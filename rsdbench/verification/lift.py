"""From a rule for one node to a rule for a tree: walk from the root along accepted drafts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.verification import NodeRule, Outcome, Repeat, TreeRule, TreeView, first_true


def lift(rule: NodeRule) -> TreeRule:
    """The walk that accepts a draft of each level by a node rule, until it accepts none."""
    return Lifted(rule)


class Walk(NamedTuple):
    """How far each sequence has come down its tree.

    depth []: levels that were looked at; row [B]: the row of its last accepted token; going [B] bool: whether a draft
    was accepted at every level so far; same [B, 1 + N] bool: the rows that stand for what was accepted last;
    residual [B, V]: the distribution of the recovered token where the walk has ended; rows: as in `Outcome`.
    """

    depth: Tensor
    row: Tensor
    going: Tensor
    same: Tensor
    residual: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Lifted:
    """A `TreeRule` of a `NodeRule`. Equal lifted rules are of the same node rule."""

    rule: NodeRule

    def __call__(self, tree: TreeView, uniforms: Tensor, repeat: Repeat) -> Outcome:
        """See `TreeRule`."""
        depth = tree.levels.shape[0]

        def going(*state: Tensor) -> Tensor:
            return Walk(*state).going.any() & (Walk(*state).depth < depth)

        def down(*state: Tensor) -> tuple[Tensor, ...]:
            return tuple(descend(self.rule, tree, uniforms, Walk(*state)))

        end = Walk(*repeat(depth, going, down, tuple(start(tree))))
        return Outcome(end.rows, torch.where(end.going.unsqueeze(1), tree.p.at(end.row), end.residual))


def start(tree: TreeView) -> Walk:
    """At the root."""
    batch, rows, words = tree.p.log.shape
    device = tree.p.log.device
    return Walk(
        depth=torch.zeros((), dtype=torch.long, device=device),
        row=torch.zeros(batch, dtype=torch.long, device=device),
        going=torch.ones(batch, dtype=torch.bool, device=device),
        same=(torch.arange(rows, device=device) == 0).expand(batch, -1).clone(),
        residual=torch.zeros(batch, words, dtype=tree.p.log.dtype, device=device),
        rows=torch.zeros(batch, tree.levels.shape[0] + 1, dtype=torch.long, device=device),
    )


def descend(rule: NodeRule, tree: TreeView, uniforms: Tensor, walk: Walk) -> Walk:
    """Accept a draft of the next level or none.

    The candidates are the nodes below the accepted prefix. Nodes that stand for the same prefix (equal independent
    sequences) are followed together, so their children all are candidates.
    """
    candidates = walk.same.gather(1, tree.parents) & tree.valid & walk.going.unsqueeze(1)  # [B, N]
    nodes, present = first_true(candidates, tree.fanout)
    verdict = rule(tree.p.at(walk.row), tree.q.at(walk.row), tree.tokens.gather(1, nodes), present)
    hits = (uniforms.gather(1, nodes) < verdict.accept) & present
    going = hits.any(1, keepdim=True)
    hit, _ = first_true(hits, 1)
    node = nodes.gather(1, hit)  # [B, 1]
    row = torch.where(going, node + 1, walk.row.unsqueeze(1))
    steps = torch.arange(walk.rows.shape[1], device=row.device)
    same = candidates & (tree.tokens == tree.tokens.gather(1, node)) & going
    return Walk(
        depth=walk.depth + 1,
        row=row.squeeze(1),
        going=going.squeeze(1),
        same=torch.nn.functional.pad(same, (1, 0)),
        residual=torch.where(walk.going.unsqueeze(1), verdict.residual, walk.residual),
        rows=torch.where((steps == walk.depth + 1) & going, row, walk.rows),
    )
