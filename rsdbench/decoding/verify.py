"""Verification: what a rule accepts of a tree, and the token behind it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.decoding.tree import DraftTree
from rsdbench.sampling.distributions import Sampling
from rsdbench.sampling.gumbel import draw, to_gumbel
from rsdbench.verification import Distributions, Outcome, TreeView


class Verified(NamedTuple):
    """What a block yields for each sequence.

    accepted [B]: accepted drafts; rows [B, L + 1], as in `Outcome`; last_two [B, 2]: the last two tokens of the
    sequence with all of these; report [B, L + 2]: accepted, those drafts, and the block's last token; the rest is
    undefined.
    """

    accepted: Tensor
    rows: Tensor
    last_two: Tensor
    report: Tensor


def view(sampling: Sampling, tree: DraftTree, log_p: Tensor, levels: Tensor, fanout: int) -> TreeView:
    """A tree as rules see it; log_p [B, 1 + N, V], before top-p; levels: as in `TreeView`."""
    return TreeView(
        tree.tokens[:, 2:], tree.parents + 1, tree.valid, tree.ancestors[:, 1:], levels, fanout,
        Distributions(log_p, sampling.truncate), Distributions(tree.log_q, as_it_is),
    )  # fmt: skip


def as_it_is(log_q: Tensor) -> Tensor:
    """The drafter's distributions have been cut before the drafts were drawn."""
    return log_q


def finish(tree: DraftTree, outcome: Outcome, noise: Tensor) -> Verified:
    """Draw the block's last token and put it behind the accepted ones; noise [B, 2, S], uniforms."""
    rows = outcome.rows
    token = draw(outcome.last.log(), to_gumbel(noise)).unsqueeze(1)
    accepted = (rows > 0).sum(1, keepdim=True)
    line = tree.tokens[:, 1:].gather(1, rows)  # the root and the accepted drafts
    place = torch.arange(rows.shape[1] + 1, device=rows.device)
    line = torch.where(place == accepted + 1, token, torch.nn.functional.pad(line, (0, 1)))
    last_two = torch.cat([line.gather(1, accepted), token], 1)
    return Verified(accepted.squeeze(1), rows, last_two, torch.cat([accepted, line[:, 1:]], 1))
