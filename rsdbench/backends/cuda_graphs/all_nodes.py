"""Verification of all nodes of a tree at once: its time does not grow with the tree's depth.

`lift` looks at one node of each level, which on a GPU costs a few dozen launches a level. A node's verdict depends
on its own distributions, drafts and uniforms alone, so that all can be had side by side; what is left of the walk is to
follow numbers of rows. The same tokens as those of the walk, for the same uniforms.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.backends.repeat import run_to_the_end
from rsdbench.decoding.tree import DraftTree
from rsdbench.decoding.verify import view
from rsdbench.sampling.distributions import Sampling
from rsdbench.verification import NodeRule, Outcome, TreeRule, first_true


class Verdicts(NamedTuple):
    """Of the root and of each expanded node, R = 1 + E rows.

    below [B, R]: the tree row of the draft that is accepted below it, or 0; residual [B, R, V]: the distribution of the
    recovered token if there is none.
    """

    below: Tensor
    residual: Tensor


def verdicts(
    rule: NodeRule, sampling: Sampling, tree: DraftTree, log_p: Tensor, uniforms: Tensor, depths: Tensor, depth: int,
    fanout: int,
) -> Verdicts:  # fmt: skip
    """What would be accepted below each row, were it reached.

    uniforms [B, N]; depths [1 + N], of each row, at most `depth`; fanout: the most drafts that can meet below a node.
    """
    batch, rows = tree.log_q.shape[:2]
    below = tree.tokens[:, 2:]
    same = same_prefix(below, tree.ancestors[:, 1:], depths, depth)[:, :rows]  # [B, R, 1 + N]
    candidates = same.gather(2, (tree.parents + 1).unsqueeze(1).expand(-1, rows, -1)) & tree.valid.unsqueeze(1)
    nodes, present = first_true(candidates.flatten(0, 1), fanout)  # [B R, k]
    tokens, uniforms = (x.repeat_interleave(rows, 0).gather(1, nodes) for x in (below, uniforms))
    p, q = sampling.truncate(log_p[:, :rows]).exp().flatten(0, 1), tree.log_q.exp().flatten(0, 1)
    verdict = rule(p, q, tokens, present)
    hit, accepted = first_true((uniforms < verdict.accept) & present, 1)
    row = torch.where(accepted, nodes.gather(1, hit) + 1, 0)
    return Verdicts(row.view(batch, rows), verdict.residual.view(batch, rows, -1))


def same_prefix(tokens: Tensor, ancestors: Tensor, depths: Tensor, depth: int) -> Tensor:
    """Which rows stand for the same tokens, from the root on: [B, 1 + N, 1 + N] bool.

    tokens [B, N]; ancestors [B, 1 + N, 1 + N] bool; depths as in `verdicts`.
    """
    words = torch.nn.functional.pad(tokens + 1, (1, 0))  # none is 0
    levels = torch.arange(depth + 1, device=tokens.device)
    seen = ancestors.unsqueeze(2) & (depths == levels.unsqueeze(1))  # [B, 1 + N, L + 1, 1 + N]
    prefixes = (seen * words[:, None, None]).sum(-1)  # each row's own tokens by depth, and 0 below it
    return (prefixes.unsqueeze(2) == prefixes.unsqueeze(1)).all(-1)


def follow(sampling: Sampling, tree: DraftTree, log_p: Tensor, found: Verdicts, depth: int) -> Outcome:
    """From the root down along what is accepted, in a tree of a depth."""
    nodes, rows = tree.parents.shape[1], found.below.shape[1]
    out = nodes + 1  # a place beside the tree, from which nothing leads away
    below = torch.nn.functional.pad(found.below, (0, nodes + 2 - rows))
    below = torch.where(below > 0, below, out)
    path = [torch.zeros_like(below[:, :1])]
    for _ in range(depth):
        path.append(below.gather(1, path[-1]))
    line = torch.cat(path, 1)  # [B, L + 1]
    line = torch.where(line == out, 0, line)
    row = line.gather(1, (line > 0).sum(1, keepdim=True))  # [B, 1]
    sequence = torch.arange(row.shape[0], device=row.device)
    bonus = sampling.truncate(log_p[sequence, row.squeeze(1)]).exp()
    residual = found.residual[sequence, row.squeeze(1).clamp(max=rows - 1)]
    return Outcome(line, torch.where(row >= rows, bonus, residual))


def whole_tree(
    rule: TreeRule, sampling: Sampling, tree: DraftTree, log_p: Tensor, uniforms: Tensor, levels: Tensor, fanout: int
) -> Outcome:  # fmt: skip
    """A rule for whole trees."""
    return rule(view(sampling, tree, log_p, levels, fanout), uniforms, run_to_the_end)
