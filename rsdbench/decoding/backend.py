"""What the block loop asks of a backend, and what a backend is told of the batch that it decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from rsdbench.decoding.randomness import Numbers
from rsdbench.decoding.shapes import TreeShape
from rsdbench.decoding.strategies import Strategy
from rsdbench.decoding.tree import DraftTree
from rsdbench.decoding.verify import Verified
from rsdbench.sampling.distributions import Sampling
from rsdbench.verification import TreeRule


@dataclass(frozen=True)
class Job:
    """A batch of prompts and how it is decoded. limit: positions that both models have; room: new tokens, of each."""

    strategy: Strategy
    rule: TreeRule
    shape: TreeShape
    sampling: Sampling
    prompts: Sequence[Sequence[int]]
    room: Sequence[int]
    limit: int
    seed: int
    ends: frozenset[int] = frozenset()

    @property
    def positions(self) -> int:
        """Of a KV cache: the last block may commit a whole path, and garbage up to its depth, behind what is kept."""
        longest = max(len(prompt) + room for prompt, room in zip(self.prompts, self.room, strict=True))
        return longest + self.shape.depth + 1


class Backend(Protocol):
    """How the phases of a block are executed, for one batch. State, buffers and addresses are its own.

    name: what records say; fallbacks: phases that cannot be executed as its engine would, for which all of this batch
    runs on another backend.
    """

    name: str
    fallbacks: tuple[str, ...]

    def prefill(self) -> None:
        """All tokens but each prompt's last go into both caches."""

    def numbers(self) -> Numbers:
        """Fresh random numbers for a block of the living sequences."""

    def draft(self, numbers: Numbers) -> DraftTree:
        """Draft a tree of exactly N nodes below each sequence's last token."""

    def score(self, tree: DraftTree) -> Tensor:
        """The target's log-probabilities at the root and each node, [B, 1 + N, V]: temperature applied, top-p not."""

    def verify(self, tree: DraftTree, log_p: Tensor, numbers: Numbers) -> Verified:
        """Accept drafts, and draw the last token."""

    def commit(self, verified: Verified) -> list[list[int]]:
        """Move the caches and the sequences forward. Returns `Verified.report` on the host, a list a sequence."""

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows of the batch, in this order; the others have ended."""

    def clock(self) -> Any:
        """A clock that starts now: `mark(phase)`, `stop()`; `seconds` of each phase, `blocks` of each block."""
