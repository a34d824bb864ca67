"""Verification: walk from the root along accepted drafts, and draw the token behind them.

`start`, then `descend` level by level, then `finish`. How many levels are walked, and in what kind of loop, is the
backend's affair: once nothing is accepted, another level changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.decoding.tree import DraftTree
from rsdbench.sampling.distributions import Sampling
from rsdbench.sampling.gumbel import draw, to_gumbel
from rsdbench.verification import NodeRule


class Path(NamedTuple):
    """How far each sequence has come down its tree.

    depth []: levels that were looked at; row [B]: tree row of its last accepted token; going [B] bool: whether a draft
    was accepted at every level so far; prefix [B, 1 + N] bool: the tree rows that stand for what was accepted last;
    residual [B, V]: the distribution of the recovered token where the walk has ended; rows [B, L + 1]: the tree rows of
    the root and of the accepted drafts, 0 behind them.
    """

    depth: Tensor
    row: Tensor
    going: Tensor
    prefix: Tensor
    residual: Tensor
    rows: Tensor


class Verified(NamedTuple):
    """What a block yields for each sequence.

    accepted [B]: accepted drafts; rows [B, L + 1], as in `Path`; last_two [B, 2]: the last two tokens of the sequence
    with all of these; report [B, L + 2]: accepted, those drafts, and the block's last token; the rest is undefined.
    """

    accepted: Tensor
    rows: Tensor
    last_two: Tensor
    report: Tensor


def start(tree: DraftTree, log_p: Tensor, depth: int) -> Path:
    """At the root of trees of a depth; log_p [B, 1 + N, V]."""
    batch, rows, device = log_p.shape[0], log_p.shape[1], log_p.device
    return Path(
        depth=torch.zeros((), dtype=torch.long, device=device),
        row=torch.zeros(batch, dtype=torch.long, device=device),
        going=torch.ones(batch, dtype=torch.bool, device=device),
        prefix=(torch.arange(rows, device=device) == 0).expand(batch, -1).clone(),
        residual=torch.zeros(batch, log_p.shape[2], device=device),
        rows=torch.zeros(batch, depth + 1, dtype=torch.long, device=device),
    )


def descend(
    rule: NodeRule, sampling: Sampling, tree: DraftTree, log_p: Tensor, uniforms: Tensor, path: Path
) -> Path:  # fmt: skip
    """Accept a draft of the next level or none; uniforms [B, k], for as many drafts as can meet below a node, or more.

    The candidates are the nodes below the accepted prefix. Nodes that stand for the same prefix (equal independent
    sequences) are followed together, so their children all are candidates. log_p [B, 1 + N, V], before top-p.
    """
    tokens = tree.tokens[:, 2:]
    candidates = path.prefix.gather(1, tree.parents + 1) & tree.valid & path.going.unsqueeze(1)  # [B, N]
    nodes, present = first_true(candidates, uniforms.shape[1])
    p, q = sampling.truncate(at_row(log_p, path.row)).exp(), at_row(tree.log_q, path.row).exp()
    verdict = rule(p, q, tokens.gather(1, nodes), present)
    hits = (uniforms < verdict.accept) & present
    going = hits.any(1, keepdim=True)
    hit, _ = first_true(hits, 1)
    node = nodes.gather(1, hit)  # [B, 1]
    row = torch.where(going, node + 1, path.row.unsqueeze(1))
    steps = torch.arange(path.rows.shape[1], device=row.device)
    return Path(
        depth=path.depth + 1,
        row=row.squeeze(1),
        going=going.squeeze(1),
        prefix=torch.nn.functional.pad(candidates & (tokens == tokens.gather(1, node)) & going, (1, 0)),
        residual=torch.where(path.going.unsqueeze(1), verdict.residual, path.residual),
        rows=torch.where((steps == path.depth + 1) & going, row, path.rows),
    )


def finish(sampling: Sampling, tree: DraftTree, log_p: Tensor, noise: Tensor, path: Path) -> Verified:
    """Draw the block's last token and put it behind the accepted ones; noise [B, 2, S], uniforms."""
    bonus = sampling.truncate(at_row(log_p, path.row)).exp()
    last = torch.where(path.going.unsqueeze(1), bonus, path.residual)
    token = draw(last.log(), to_gumbel(noise)).unsqueeze(1)
    accepted = (path.rows > 0).sum(1, keepdim=True)
    line = tree.tokens[:, 1:].gather(1, path.rows)  # the root and the accepted drafts
    line = torch.nn.functional.pad(line, (0, 1)).scatter(1, accepted + 1, token)
    last_two = torch.cat([line.gather(1, accepted), token], 1)
    return Verified(accepted.squeeze(1), path.rows, last_two, torch.cat([accepted, line[:, 1:]], 1))


def uniform_slots(fanout: int) -> int:
    """Uniforms of a level: 8, 16, 32, ..., so that few sizes serve all structures."""
    return max(8, 1 << (fanout - 1).bit_length())


def at_row(x: Tensor, row: Tensor) -> Tensor:
    """One tree row of each sequence: [B, rows, V], [B] -> [B, V]."""
    return x[torch.arange(row.shape[0], device=row.device), row]


def first_true(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The indices of the first `count` true entries of each row, in order: mask [B, W] -> indices, mask [B, count].

    Where there are fewer, the mask is False and the index 0.
    """
    place = torch.arange(mask.shape[1], device=mask.device)
    rank = (mask.unsqueeze(1) & (place < place.unsqueeze(1))).sum(-1)  # [B, W]: true entries before each
    chosen = (rank.unsqueeze(1) == torch.arange(count, device=mask.device).unsqueeze(1)) & mask.unsqueeze(1)
    # not by argmax: in vector units, that of small integers leaves the row where all are equal (torch 2.13)
    return (chosen * place).sum(-1), chosen.any(-1)
