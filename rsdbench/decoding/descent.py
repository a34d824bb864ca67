"""One level of verification, and the end of it: tensors in, tensors out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.sampling.distributions import Warp
from rsdbench.sampling.gumbel import draw
from rsdbench.verification import Rule


class Walk(NamedTuple):
    """How far each sequence has come down its tree.

    depth []: levels that were looked at; row [B]: tree row of its last accepted token; going [B] bool: whether a draft
    was accepted at every level so far; prefix [B, 1 + N] bool: the tree rows that stand for what was accepted last;
    last [B, V]: the law of the block's last token where the walk has ended; rows and tokens [B, L + 1], as in
    `Outcome`, without that token.
    """

    depth: Tensor
    row: Tensor
    going: Tensor
    prefix: Tensor
    last: Tensor
    rows: Tensor
    tokens: Tensor


class Outcome(NamedTuple):
    """What a block yields for each sequence.

    accepted [B]: accepted drafts; tokens [B, L + 1]: those drafts and the block's last token behind them (the rest
    is undefined); rows [B, L + 1]: the tree rows of the root and of the accepted drafts (the rest is 0); last_two
    [B, 2]: the last two tokens of the sequence with all of these; report [B, L + 2]: accepted and tokens.
    """

    accepted: Tensor
    tokens: Tensor
    rows: Tensor
    last_two: Tensor
    report: Tensor


class Drafts(NamedTuple):
    """What verification knows of a tree and of its laws; N nodes, E of them expanded.

    tempered [B, 1 + N, V], the target's log-laws before `Warp.cut`; laws [B, 1 + E, V], the drafter's log-laws; tokens,
    parents and valid [B, N], as in `DraftTree`.
    """

    tempered: Tensor
    laws: Tensor
    tokens: Tensor
    parents: Tensor
    valid: Tensor


def start(batch: int, nodes: int, depth: int, vocabulary: int, device: torch.device) -> Walk:
    """At the root, of trees of N nodes and a depth."""
    rows = torch.zeros(batch, depth + 1, dtype=torch.long, device=device)
    return Walk(
        depth=torch.zeros((), dtype=torch.long, device=device),
        row=torch.zeros(batch, dtype=torch.long, device=device),
        going=torch.ones(batch, dtype=torch.bool, device=device),
        prefix=(torch.arange(1 + nodes, device=device) == 0).expand(batch, -1).clone(),
        last=torch.zeros(batch, vocabulary, device=device),
        rows=rows,
        tokens=torch.zeros_like(rows),
    )


def descend(rule: Rule, warp: Warp, drafts: Drafts, uniforms: Tensor, walk: Walk) -> Walk:
    """Accept a draft of the next level or none; uniforms [B, k], for as many drafts as can meet below a node, or more.

    The candidates are the nodes below the accepted prefix. Nodes that stand for the same prefix (equal i.i.d.
    sequences) are followed together, so their children all are candidates.
    """
    going = walk.going.unsqueeze(1)
    candidates = walk.prefix.gather(1, drafts.parents + 1) & drafts.valid & going  # [B, N]
    nodes, present = first_true(candidates, uniforms.shape[1])
    p, q = warp.cut(at_row(drafts.tempered, walk.row)).exp(), at_row(drafts.laws, walk.row).exp()
    verdict = rule(p, q, drafts.tokens.gather(1, nodes), present)
    hits = (uniforms < verdict.accept) & present
    last = torch.where(going, verdict.residual, walk.last)

    going = hits.any(1, keepdim=True)
    hit, _ = first_true(hits, 1)
    node = nodes.gather(1, hit)  # [B, 1]
    token = drafts.tokens.gather(1, node)
    row = torch.where(going, node + 1, walk.row.unsqueeze(1))
    steps = torch.arange(walk.rows.shape[1], device=row.device)
    return Walk(
        depth=walk.depth + 1,
        row=row.squeeze(1),
        going=going.squeeze(1),
        prefix=torch.nn.functional.pad(candidates & (drafts.tokens == token) & going, (1, 0)),
        last=last,
        rows=torch.where((steps == walk.depth + 1) & going, row, walk.rows),
        tokens=torch.where(steps == walk.depth, token, walk.tokens),
    )


def chain(rule: Rule, warp: Warp, drafts: Drafts, uniforms: Tensor) -> Walk:
    """All levels at once, of trees that are one sequence each, a draft a level: uniforms [B, L, 1]."""
    batch, depth = drafts.tokens.shape
    p, q = warp.cut(drafts.tempered[:, :-1]).exp().flatten(0, 1), drafts.laws.exp().flatten(0, 1)
    present = drafts.valid.reshape(-1, 1)
    verdict = rule(p, q, drafts.tokens.reshape(-1, 1), present)
    hits = ((uniforms.flatten(0, 1) < verdict.accept) & present).view(batch, depth)
    steps = torch.arange(depth + 1, device=hits.device)
    row = torch.where(hits, depth, steps[:-1]).amin(1)  # the first that is not accepted stands below it
    count = row.unsqueeze(1)
    return Walk(
        depth=torch.full((), depth, device=row.device),
        row=row,
        going=row == depth,
        prefix=steps == count,
        last=at_row(verdict.residual.view(batch, depth, -1), row.clamp(max=depth - 1)),
        rows=torch.where(steps <= count, steps, 0),
        tokens=torch.nn.functional.pad(drafts.tokens, (0, 1)),
    )


def finish(warp: Warp, tempered: Tensor, root: Tensor, noise: Tensor, walk: Walk) -> Outcome:
    """Draw the last token and put it behind the accepted ones: root [B, 1], the token there; noise as in `draw`."""
    law = torch.where(walk.going.unsqueeze(1), warp.cut(at_row(tempered, walk.row)).exp(), walk.last)
    accepted = (walk.rows > 0).sum(1, keepdim=True)
    tokens = walk.tokens.scatter(1, accepted, draw(law.log(), noise).unsqueeze(1))
    line = torch.cat([root, tokens], 1)
    last_two = torch.cat([line.gather(1, accepted), line.gather(1, accepted + 1)], 1)
    return Outcome(accepted.squeeze(1), tokens, walk.rows, last_two, torch.cat([accepted, tokens], 1))


def slots_of(fanout: int) -> int:
    """Places for the drafts below a node, 8, 16, 32, ...: each has a uniform, and a verification compiled for it.

    One size serves all of the benchmark's structures, for each takes a fifth of a minute to compile. An empty place
    costs recursive rejection 3 us a level (1,024 tokens, one sequence), K-SEQ nothing: with two drafts a node a block
    on opt-2.6m takes 3 % longer, one on opt-13.2m 1 %.
    """
    return max(8, 1 << (fanout - 1).bit_length())


def at_row(laws: Tensor, row: Tensor) -> Tensor:
    """The laws of one tree row of each sequence: [B, rows, V], [B] -> [B, V]."""
    return laws[torch.arange(row.shape[0], device=row.device), row]


def first_true(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The indices of the first `count` true entries of each row, in order: mask [B, W] -> indices, mask [B, count].

    Where there are fewer, the mask is False and the index 0.
    """
    place = torch.arange(mask.shape[1], device=mask.device)
    if torch.compiler.is_compiling():  # fused with the rest, while cumsum would be a call of its own
        rank = (mask.unsqueeze(1) & (place <= place.unsqueeze(1))).sum(-1) - 1  # [B, W]
    else:
        rank = mask.cumsum(1) - 1
    chosen = (rank.unsqueeze(1) == torch.arange(count, device=mask.device).unsqueeze(1)) & mask.unsqueeze(1)
    # not by argmax: compiled for a vector unit, that of small integers leaves the row where all are equal (torch 2.13)
    return (chosen * place).sum(-1), chosen.any(-1)
