"""Verification of all nodes of a tree at once, for accelerators: its time does not grow with the tree's depth.

`walk.descend` looks at one node of each level, which on a GPU costs a few dozen launches a level. A node's verdict
depends on its own laws, drafts and uniforms alone, so that all can be had side by side; what is left of the walk is to
follow numbers of rows. The same tokens as those of the walk, for the same uniforms.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.decoding.descent import Drafts, Walk, at_row, first_true
from rsdbench.sampling.distributions import Warp
from rsdbench.verification import Rule


class Verdicts(NamedTuple):
    """Of the root and of each expanded node, R = 1 + E rows.

    below [B, R]: the tree row of the draft that is accepted below it, or 0; residual [B, R, V]: the law of the block's
    last token if there is none.
    """

    below: Tensor
    residual: Tensor


def judge(
    rule: Rule, warp: Warp, drafts: Drafts, uniforms: Tensor, ancestors: Tensor, depths: Tensor, depth: int
) -> Verdicts:  # fmt: skip
    """What would be accepted below each row, were it reached.

    uniforms [B, R, k], of each row, for as many drafts as can meet below a node, or more; ancestors, as in `DraftTree`;
    depths [1 + N], of each row, at most `depth`.
    """
    batch, rows, slots = uniforms.shape
    same = same_prefix(drafts.tokens, ancestors, depths, depth)[:, :rows]  # [B, R, 1 + N]
    candidates = same.gather(2, (drafts.parents + 1).unsqueeze(1).expand(-1, rows, -1)) & drafts.valid.unsqueeze(1)
    nodes, present = first_true(candidates.flatten(0, 1), slots)  # [B R, k]
    tokens = drafts.tokens.unsqueeze(1).expand(-1, rows, -1).flatten(0, 1).gather(1, nodes)
    p, q = warp.cut(drafts.tempered[:, :rows]).exp().flatten(0, 1), drafts.laws.exp().flatten(0, 1)
    verdict = rule(p, q, tokens, present)
    hit, accepted = first_true((uniforms.flatten(0, 1) < verdict.accept) & present, 1)
    below = torch.where(accepted, nodes.gather(1, hit) + 1, 0)
    return Verdicts(below.view(batch, rows), verdict.residual.view(batch, rows, -1))


def same_prefix(tokens: Tensor, ancestors: Tensor, depths: Tensor, depth: int) -> Tensor:
    """Which rows stand for the same tokens, from the root on: [B, 1 + N, 1 + N] bool; depths as in `judge`."""
    words = torch.nn.functional.pad(tokens + 1, (1, 0))  # none is 0
    levels = torch.arange(depth + 1, device=tokens.device)
    seen = ancestors.unsqueeze(2) & (depths == levels.unsqueeze(1))  # [B, 1 + N, L + 1, 1 + N]
    prefixes = (seen * words[:, None, None]).sum(-1)  # each row's own tokens by depth, and 0 below it
    return (prefixes.unsqueeze(2) == prefixes.unsqueeze(1)).all(-1)


def follow(drafts: Drafts, verdicts: Verdicts, depth: int) -> Walk:
    """From the root down along what is accepted, in a tree of a depth; the walk at its end."""
    batch, nodes = drafts.tokens.shape
    rows, out = verdicts.below.shape[1], nodes + 1  # out: a place beside the tree, from which nothing leads away
    below = torch.nn.functional.pad(verdicts.below, (0, nodes + 2 - rows))
    below = torch.where(below > 0, below, out)
    path = [torch.zeros(batch, 1, dtype=torch.long, device=below.device)]
    for _ in range(depth):
        path.append(below.gather(1, path[-1]))
    line = torch.cat(path, 1)  # [B, L + 1]
    found = torch.where(line == out, 0, line)
    row = found.gather(1, (found > 0).sum(1, keepdim=True)).squeeze(1)
    tokens = torch.nn.functional.pad(drafts.tokens.gather(1, (found[:, 1:] - 1).clamp(min=0)), (0, 1))
    return Walk(
        depth=torch.full((), depth, device=row.device),
        row=row,
        going=row >= rows,
        prefix=torch.arange(nodes + 1, device=row.device) == row.unsqueeze(1),
        last=at_row(verdicts.residual, row.clamp(max=rows - 1)),
        rows=found,
        tokens=tokens,
    )
