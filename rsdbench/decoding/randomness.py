"""The random numbers of a block, drawn before anything is decided: all are uniforms in [0, 1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.decoding.tree import Memory


class Numbers(NamedTuple):
    """Of one block: noise of each level [B, rows, S] and of the last token [B, 2, S]; uniforms [B, N], of each node.

    Noise becomes Gumbel variables where it is read (`to_gumbel`). S: as in `gumbel.group_size`.
    """

    drafts: tuple[Tensor, ...]
    last: Tensor
    uniforms: Tensor


class Randomness:
    """What each block of a batch takes from one generator, in memory that stays."""

    def __init__(
        self, seed: int, rows: list[int], size: int, nodes: int, device: torch.device,
        empty: Memory,
    ) -> None:  # fmt: skip
        """rows: of noise, for each level of the tree; size: S; nodes: N."""
        self.generator = torch.Generator(device).manual_seed(seed)
        self.rows, self.size, self.nodes, self.empty = rows, size, nodes, empty
        self.batch = 0

    def block(self, batch: int) -> Numbers:
        """The numbers of the next block of so many sequences; the next call writes over them."""
        if batch != self.batch:
            self.allocate(batch)
        self.memory.uniform_(generator=self.generator)
        return self.numbers

    def allocate(self, batch: int) -> None:
        """Memory for a block, and the numbers as views of it."""
        noise = batch * (sum(self.rows) + 2) * self.size
        self.memory = self.empty("numbers", (noise + batch * self.nodes,), torch.float32)
        *drafts, last = self.memory[:noise].view(batch, -1, self.size).split([*self.rows, 2], 1)
        uniforms = self.memory[noise:].view(batch, self.nodes)
        self.batch, self.numbers = batch, Numbers(tuple(drafts), last, uniforms)
