"""Walk down a verified tree: which drafts are accepted, and which token follows them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.engine.tree import DraftTree, TreeShape
from rsdbench.rules import Rule
from rsdbench.sampling.gumbel import draw
from rsdbench.sampling.laws import Warp


class Outcome(NamedTuple):
    """What a block yields for each sequence.

    accepted [B]: accepted drafts; tokens [B, L + 1]: those drafts and the block's last token behind them (the rest
    is undefined); rows [B, L + 1]: the tree rows of the root and of the accepted drafts (the rest is 0).
    """

    accepted: Tensor
    tokens: Tensor
    rows: Tensor


def verify(
    shape: TreeShape, tree: DraftTree, tempered: Tensor, rule: Rule, warp: Warp, uniforms: Tensor, noise: Tensor
) -> Outcome:
    """Accept drafts from the root downwards and draw the last token.

    tempered [B, 1 + N, V], the target's laws before `Warp.cut`; uniforms [B, L, max fanout]; noise [B, V], Gumbel, for
    the last token.

    At each level the candidates are the nodes below the accepted prefix. Nodes that stand for the same prefix (equal
    i.i.d. sequences) are followed together, so their children all are candidates.
    """
    batch, device = tempered.shape[0], tempered.device
    sequence = torch.arange(batch, device=device)
    row = torch.zeros(batch, dtype=torch.long, device=device)  # tree row of the last accepted token
    going = torch.ones(batch, dtype=torch.bool, device=device)
    prefix = going.unsqueeze(1)  # nodes of the level above that stand for the accepted prefix, [B, W']
    rows, tokens = [row], []
    last = None
    for depth, fanout in enumerate(shape.fanouts, start=1):
        level = shape.level(depth)
        first_above = shape.starts[depth - 2] if depth > 1 else -1
        p, q = warp.cut(tempered[sequence, row]).exp(), tree.laws[sequence, row]
        candidates = prefix.gather(1, tree.parents[:, level] - first_above) & tree.valid[:, level]
        candidates &= going.unsqueeze(1)
        slots, present = first_true(candidates, fanout)
        level_tokens = tree.tokens[:, level]
        verdict = rule(p, q, level_tokens.gather(1, slots), present)
        hits = (uniforms[:, depth - 1, :fanout] < verdict.accept) & present
        last = verdict.residual if last is None else torch.where(going.unsqueeze(1), verdict.residual, last)

        going = hits.any(1)
        node = slots.gather(1, hits.to(torch.int8).argmax(1, keepdim=True))  # [B, 1], within the level
        token = level_tokens.gather(1, node)
        prefix = candidates & (level_tokens == token) & going.unsqueeze(1)
        row = torch.where(going, node.squeeze(1) + level.start + 1, row)
        rows.append(torch.where(going, row, 0))
        tokens.append(token)
        if reading_is_free(device) and not going.any():
            break
    else:
        p = warp.cut(tempered[sequence, row]).exp()
        last = p if last is None else torch.where(going.unsqueeze(1), p, last)
    return finish(shape, last, rows, tokens, noise)


def reading_is_free(device: torch.device) -> bool:
    """Whether the host may look at a tensor: on an accelerator it would stall the queue, so there the walk goes on."""
    return device.type == "cpu"


def finish(shape: TreeShape, last: Tensor, rows: list[Tensor], tokens: list[Tensor], noise: Tensor) -> Outcome:
    """Draw the last token from its law [B, V] and put it behind the accepted tokens."""
    padded = torch.nn.functional.pad(torch.stack(rows, 1), (0, shape.depth + 1 - len(rows)))
    accepted = (padded > 0).sum(1)
    final = draw(last.log(), noise).unsqueeze(1)
    line = torch.cat([*tokens, final], 1)
    line = torch.nn.functional.pad(line, (0, shape.depth + 1 - line.shape[1]))
    return Outcome(accepted, line.scatter(1, accepted.unsqueeze(1), final), padded)


def first_true(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The indices of the first `count` true entries of each row, in order: mask [B, W] -> indices, mask [B, count]."""
    if mask.shape[1] == count:
        return torch.arange(count, device=mask.device).expand(mask.shape), mask
    slots = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
    return slots, mask.gather(1, slots)
