"""What is exported: a model's own modules with the mask before them, and the phases of `rsdbench.decoding` as they are.

Exporting knows no names in tuples, so every module takes and gives plain ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rsdbench.decoding.forward import Rows, attention_bias, forward
from rsdbench.decoding.grow import Growth, fill_level, grow
from rsdbench.decoding.kv_cache import SlotCache, commit
from rsdbench.decoding.strategies import Strategy
from rsdbench.decoding.tree import DraftTree
from rsdbench.decoding.verify import finish, view
from rsdbench.models.layouts import masks, width_of, windows_of
from rsdbench.sampling.distributions import Sampling
from rsdbench.verification import Outcome, TreeRule

Kind = tuple[bool, bool]  # greedy and nucleus, as in `Sampling`: what is compiled differs


class LogitsStep(torch.nn.Module):
    """A forward of tree rows."""

    def __init__(self, model: Any, previous: bool, vocabulary: int | None = None) -> None:
        super().__init__()
        self.model, self.previous, self.vocabulary = model, previous, vocabulary

    def forward(self, rows: tuple[Tensor, ...], layers: list[Tensor]) -> Tensor:
        """`Rows`, keys and values of each layer in turn [B, H, slots, D] -> logits [B, R, V]."""
        rows = Rows(*rows)
        bias = masks(windows_of(self.model.config), attention_bias, rows, self.previous, self.model.dtype)
        cache = SlotCache(layers)
        cache.window(rows.slots, width_of(bias))
        return forward(self.model, rows, bias, cache, vocabulary=self.vocabulary)


class TargetStep(torch.nn.Module):
    """The target's forward; normalised: whether log-probabilities come out and not logits."""

    def __init__(self, model: Any, normalised: bool) -> None:
        super().__init__()
        self.step, self.normalised = LogitsStep(model, False), normalised

    def forward(self, rows: tuple[Tensor, ...], temperature: Tensor, layers: list[Tensor]) -> Tensor:
        """As `LogitsStep`; temperature []."""
        logits = self.step(rows, layers)
        return Sampling(temperature, 1.0, False, False).log_probs(logits) if self.normalised else logits


class DraftStep(torch.nn.Module):
    """`grow` with a drafter and a strategy."""

    def __init__(self, model: Any, strategy: Strategy, kind: Kind, vocabulary: int) -> None:
        super().__init__()
        self.step, self.strategy, self.kind = LogitsStep(model, True, vocabulary), strategy, kind

    def forward(
        self, growth: tuple[Tensor, ...], tree: tuple[Tensor, ...], temperature: Tensor, top_p: Tensor, limit: Tensor,
        layers: list[Tensor],
    ) -> Tensor:  # fmt: skip
        """Fill in a level; returns its frontier [3, B, W]. limit []: positions that there are."""
        sampling = Sampling(temperature, top_p, *self.kind)

        def log_q(rows: Rows) -> Tensor:
            return sampling.truncate(sampling.log_probs(self.step(tuple(rows), layers)))

        return grow(log_q, partial(fill_level, self.strategy, limit), Growth(*growth), DraftTree(*tree))


class VerifyStep(torch.nn.Module):
    """A rule for trees with at most `fanout` drafts below a node."""

    def __init__(self, rule: TreeRule, fanout: int, kind: Kind) -> None:
        super().__init__()
        self.rule, self.fanout, self.kind = rule, fanout, kind

    def forward(
        self, tree: tuple[Tensor, ...], log_p: Tensor, uniforms: Tensor, noise: Tensor, top_p: Tensor, levels: Tensor
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """`DraftTree`, log_p [B, 1 + N, V], a block's `Numbers` and levels as in `TreeView` -> `Verified`."""
        tree = DraftTree(*tree)
        seen = view(Sampling(1.0, top_p, *self.kind), tree, log_p, levels, self.fanout)
        return tuple(finish(tree, self.rule(seen, uniforms, loop), noise))


def loop(
    times: int, going: Callable[..., Tensor], body: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:  # fmt: skip
    """A `Repeat` that is exported as a loop."""
    return torch.while_loop(going, body, state)


class FinishStep(torch.nn.Module):
    """`VerifyStep` of a tree without nodes: the bonus token at the root is all there is."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, tokens: Tensor, log_p: Tensor, noise: Tensor, top_p: Tensor) -> tuple[Tensor, ...]:
        """tokens [B, 2]; log_p [B, 1, V] -> `Verified`."""
        nothing = torch.zeros(tokens.shape[0], 0, dtype=torch.long, device=tokens.device)
        tree, root = DraftTree(tokens, nothing, nothing, nothing, log_p), torch.zeros_like(tokens[:, :1])
        p = Sampling(1.0, top_p, *self.kind).truncate(log_p[:, 0]).exp()
        return tuple(finish(tree, Outcome(root, p), noise))


class CommitStep(torch.nn.Module):
    """`commit` in both caches."""

    def forward(
        self, accepted: Tensor, rows: Tensor, last_two: Tensor, tokens: Tensor, length: Tensor, scratch: Tensor,
        target: list[Tensor], drafter: list[Tensor],
    ) -> tuple[()]:  # fmt: skip
        """See `commit`."""
        commit(accepted, rows, last_two, tokens, length, scratch, target, drafter)
        return ()
