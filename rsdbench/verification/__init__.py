"""Verification rules, one file each: pure functions of tensors. Uniforms and distributions come from outside.

A `NodeRule` sees one node: the target's distribution p, the distribution q that the drafts were drawn from, and the
drafts in their order. It answers with the probability to accept each draft once all before it were rejected, and with
the distribution of the token that is emitted if all are rejected. `lift` makes a tree rule of it, the walk from the
root.

A `TreeRule` sees a whole tree, and a uniform for each node. It answers with the path that is accepted and with the
distribution of the token behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Verdict(NamedTuple):
    """What a node rule answers.

    accept [B, k]: probability to accept draft j, given that drafts 0..j-1 were rejected; 0 where there is no draft.
    residual [B, V]: distribution of the token if no draft is accepted; where there is no draft at all, p itself.
    """

    accept: Tensor
    residual: Tensor


# p [B, V], q [B, V], drafts [B, k] token ids, present [B, k] bool (absent drafts may hold any id) -> Verdict
NodeRule = Callable[[Tensor, Tensor, Tensor, Tensor], Verdict]


class Distributions(NamedTuple):
    """Next-token distributions at tree rows: log-probabilities [B, R, V], which `truncate` cuts where they are read."""

    log: Tensor
    truncate: Callable[[Tensor], Tensor]

    def at(self, rows: Tensor) -> Tensor:
        """Probabilities at rows of each sequence, after top-p: rows [B] or [B, W] -> [B, V] or [B, W, V]."""
        sequence = torch.arange(rows.shape[0], device=rows.device)
        return self.truncate(self.log[sequence if rows.dim() == 1 else sequence.unsqueeze(1), rows]).exp()


class TreeView(NamedTuple):
    """What a tree rule sees of B trees of N nodes and L levels. Row 0 is the root, row 1 + n is node n.

    tokens [B, N]; parents [B, N], rows; valid [B, N] bool: others are no drafts; ancestors [B, 1 + N, 1 + N] bool:
    [b, r, s], whether row s is r itself or on its path to the root; levels [L, W]: the rows at depth 0, ..., L - 1,
    the last of which stands in for those that a narrow level lacks; fanout: the most drafts below a row; p: the
    target's distributions at all rows; q: the drafter's at the rows of `levels`. Siblings are in the order of their
    numbers.
    """

    tokens: Tensor
    parents: Tensor
    valid: Tensor
    ancestors: Tensor
    levels: Tensor
    fanout: int
    p: Distributions
    q: Distributions


class Outcome(NamedTuple):
    """What a tree rule answers.

    rows [B, L + 1]: the root, the accepted rows below it in order, and 0 behind them; last [B, V]: the distribution of
    the token behind them.
    """

    rows: Tensor
    last: Tensor


State = tuple[Tensor, ...]
# times, going, body, state -> state: calls body(*state) at most so many times, and may stop as soon as going(*state), a
# boolean tensor [], is False: from there on body must change nothing. A state's shapes stay as they are
Repeat = Callable[[int, Callable[..., Tensor], Callable[..., State], State], State]
# the tree, uniforms [B, N] in [0, 1), each node's own, and how to repeat a step -> Outcome
TreeRule = Callable[[TreeView, Tensor, Repeat], Outcome]


def first_true(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The indices of the first `count` true entries, in order: mask [..., W] -> indices, mask, each [..., count].

    Where there are fewer, the mask is False and the index 0.
    """
    place = torch.arange(mask.shape[-1], device=mask.device)
    rank = (mask.unsqueeze(-2) & (place < place.unsqueeze(1))).sum(-1)  # [..., W]: true entries before each
    chosen = (rank.unsqueeze(-2) == torch.arange(count, device=mask.device).unsqueeze(1)) & mask.unsqueeze(-2)
    # not by argmax: in vector units, that of small integers leaves the row where all are equal (torch 2.13)
    return (chosen * place).sum(-1), chosen.any(-1)
