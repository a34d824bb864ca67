"""Verification rules, one file each.

A `NodeRule` sees one node: the target's distribution p, the distribution q that the drafts were drawn from, and the
drafts in their order. It answers with the probability to accept each draft once all before it were rejected, and with
the distribution of the token that is emitted if all are rejected. Uniforms, the tree and the models stay outside: a
rule is a pure function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Verdict(NamedTuple):
    """What a rule answers.

    accept [B, k]: probability to accept draft j, given that drafts 0..j-1 were rejected; 0 where there is no draft.
    residual [B, V]: distribution of the token if no draft is accepted; where there is no draft at all, p itself.
    """

    accept: Tensor
    residual: Tensor


# p [B, V], q [B, V], drafts [B, k] token ids, present [B, k] bool (absent drafts may hold any id) -> Verdict
NodeRule = Callable[[Tensor, Tensor, Tensor, Tensor], Verdict]
