"""What proposes trees without being a causal LM, whose forwards are a backend's affair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rsdbench.decoding.shapes import TreeShape


class Drafts(NamedTuple):
    """A tree for each of B sequences, on the host.

    tokens [B, N], valid [B, N] bool: False where there is no draft; log_q [B, 1 + E, V] float32, the log-probabilities
    that the drafts below the root and below each expanded node were drawn from, or None if they are taken for certain.
    """

    tokens: Tensor
    valid: Tensor
    log_q: Tensor | None = None


class Drafter(Protocol):
    """A drafter of its own kind.

    name: for people; vocabulary: its tokens, None if it takes any target's; parameters: of a model, which say what a
    draft costs beside the target (`block_cost`), 0 without one; certain: whether `log_q` is None.
    """

    name: str
    vocabulary: int | None
    parameters: int
    certain: bool

    def draft(
        self, sequences: Sequence[Sequence[int]], shape: TreeShape, vocabulary: int, generator: torch.Generator
    ) -> Drafts:  # fmt: skip
        """Draft below the last token of each sequence, which has prompt and new tokens, a tree of exactly this shape.

        vocabulary: V. Nodes are in level order, siblings in draw order and distinct; whatever is random takes its
        numbers from the generator.
        """


def is_model(drafter: Any) -> bool:
    """Whether a pair's drafter is a causal LM."""
    return not hasattr(drafter, "draft")
