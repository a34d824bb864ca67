"""Prompt lookup: what followed the last tokens the last time they occurred (Saxena, "Prompt Lookup Decoding", 2023).

It has no weights and calls no model. Its drafts are taken for certain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rsdbench.decoding.drafter import Drafts
from rsdbench.decoding.shapes import TreeShape

LONGEST = 16  # tokens of a suffix that are compared


class Lookup:
    """See `Drafter`."""

    name = "lookup"
    vocabulary = None
    parameters = 0
    certain = True

    def draft(
        self, sequences: Sequence[Sequence[int]], shape: TreeShape, vocabulary: int, generator: torch.Generator
    ) -> Drafts:  # fmt: skip
        """Fill each tree with the continuations of the sequence's longest suffix that it has before, latest first."""
        tokens = torch.zeros(len(sequences), shape.budget, dtype=torch.long)
        valid = torch.zeros_like(tokens, dtype=torch.bool)
        for row, sequence in enumerate(sequences):
            for node, token in fill(continuations(sequence, shape.depth), shape).items():
                tokens[row, node], valid[row, node] = token, True
        return Drafts(tokens, valid)


def continuations(sequence: Sequence[int], length: int) -> list[list[int]]:
    """Up to `length` tokens behind each earlier place of the longest suffix that has one, the latest place first."""
    words = np.asarray(sequence)
    ends = np.flatnonzero(words[:-1] == words[-1])  # where an occurrence may end
    for size in range(1, min(LONGEST, len(words) - 1)):
        longer = ends[ends >= size]
        longer = longer[words[longer - size] == words[-1 - size]]
        if not len(longer):
            break
        ends = longer
    return [words[end + 1 : end + 1 + length].tolist() for end in ends[::-1]]


def fill(lines: list[list[int]], shape: TreeShape) -> dict[int, int]:
    """Tokens of a tree's nodes: lines that begin alike share their nodes, and a node's places go to the first lines."""
    free: dict[int, list[int]] = {}
    for node, parent in enumerate(shape.parents):
        free.setdefault(parent, []).append(node)
    tokens: dict[int, int] = {}
    for line in lines:
        if len(tokens) == shape.budget:
            break
        above = -1
        for token in line:
            places = free.get(above, [])
            node = next((n for n in places if tokens.get(n, token) == token), None)
            if node is None:
                break
            tokens[node], above = token, node
    return tokens
