"""What is exported: a model's own modules with the mask before them, and the phases of `rsdbench.decoding` as they are.

Exporting knows no names in tuples, so every module takes and gives plain ones.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from rsdbench.decoding.forward import Rows, attention_bias, forward
from rsdbench.decoding.grow import Growth, fill_level, grow
from rsdbench.decoding.kv_cache import SlotCache, commit
from rsdbench.decoding.strategies import Strategy
from rsdbench.decoding.tree import DraftTree
from rsdbench.decoding.verify import Path, descend, finish, start
from rsdbench.sampling.distributions import Sampling
from rsdbench.verification import NodeRule

Kind = tuple[bool, bool]  # greedy and nucleus, as in `Sampling`: what is compiled differs


class LogitsStep(torch.nn.Module):
    """A forward of tree rows."""

    def __init__(self, model: Any, previous: bool) -> None:
        super().__init__()
        self.model, self.previous = model, previous

    def forward(self, rows: tuple[Tensor, ...], layers: list[Tensor]) -> Tensor:
        """`Rows`, keys and values of each layer in turn [B, H, slots, D] -> logits [B, R, V]."""
        rows = Rows(*rows)
        bias = attention_bias(rows, self.previous, self.model.dtype)
        cache = SlotCache(layers)
        cache.window(rows.slots, bias.shape[-1])
        return forward(self.model, rows, bias, cache)


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

    def __init__(self, model: Any, strategy: Strategy, kind: Kind) -> None:
        super().__init__()
        self.step, self.strategy, self.kind = LogitsStep(model, True), strategy, kind

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
    """The walk down a tree with a rule, for at most `fanout` drafts below a node."""

    def __init__(self, rule: NodeRule, fanout: int, kind: Kind) -> None:
        super().__init__()
        self.rule, self.fanout, self.kind = rule, fanout, kind

    def forward(
        self, tree: tuple[Tensor, ...], log_p: Tensor, uniforms: Tensor, noise: Tensor, top_p: Tensor
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """`DraftTree`, log_p [B, 1 + N, V] and a block's `Numbers` -> `Verified`."""
        tree, depth, sampling = DraftTree(*tree), uniforms.shape[1], Sampling(1.0, top_p, *self.kind)

        def unfinished(*state: Tensor) -> Tensor:
            return Path(*state).going.any() & (Path(*state).depth < depth)

        def down(*state: Tensor) -> tuple[Tensor, ...]:
            chances = uniforms.index_select(1, Path(*state).depth.unsqueeze(0))[:, 0, : self.fanout]
            return tuple(descend(self.rule, sampling, tree, log_p, chances, Path(*state)))

        path = torch.while_loop(unfinished, down, tuple(start(tree, log_p, depth)))
        return tuple(finish(sampling, tree, log_p, noise, Path(*path)))


class FinishStep(torch.nn.Module):
    """`VerifyStep` of a tree without nodes: the bonus token at the root is all there is."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, tokens: Tensor, log_p: Tensor, noise: Tensor, top_p: Tensor) -> tuple[Tensor, ...]:
        """tokens [B, 2]; log_p [B, 1, V] -> `Verified`."""
        nothing = torch.zeros(tokens.shape[0], 0, dtype=torch.long, device=tokens.device)
        tree = DraftTree(tokens, nothing, nothing, nothing, log_p)
        return tuple(finish(Sampling(1.0, top_p, *self.kind), tree, log_p, noise, start(tree, log_p, 0)))


class CommitStep(torch.nn.Module):
    """`commit` in both caches."""

    def forward(
        self, accepted: Tensor, rows: Tensor, last_two: Tensor, tokens: Tensor, length: Tensor, scratch: Tensor,
        target: list[Tensor], drafter: list[Tensor],
    ) -> tuple[()]:  # fmt: skip
        """See `commit`."""
        commit(accepted, rows, last_two, tokens, length, scratch, target, drafter)
        return ()
