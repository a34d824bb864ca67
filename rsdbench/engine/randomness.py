"""The random numbers of decoding, drawn before they are needed: Gumbel noise for drafts, uniforms for verification."""

from __future__ import annotations

import torch
from torch import Tensor

from rsdbench.sampling.gumbel import gumbel_noise, to_gumbel

AHEAD, NUMBERS = 16, 2**16  # blocks that are drawn at once, at most, and random numbers of all of them


class Randomness:
    """What each block of a batch takes from one generator.

    After a large model's forward nothing is left in the processor's caches, so every operator between two forwards
    costs 10 to 20 microseconds; for a single sequence the numbers of several blocks are therefore drawn at once. They
    are the same numbers: on a CPU a generator gives them one by one.
    """

    def __init__(self, generator: torch.Generator, rows: int, vocabulary: int, depth: int, slots: int) -> None:
        self.generator, self.rows, self.vocabulary, self.depth, self.slots = generator, rows, vocabulary, depth, slots
        self.drawn: list[Tensor] = []  # of the blocks to come, the next one last: noise and uniforms, in one line each

    def block(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noise [B, rows, V] for drafts, noise [B, V] for the last token, uniforms [B, L, slots]."""
        if batch == 1:
            line = self.next_line()
            noise = line[: -self.depth * self.slots or None].view(1, self.rows + 1, self.vocabulary)
            return noise[:, :-1], noise[:, -1], line[noise.numel() :].view(1, self.depth, self.slots)
        noise = gumbel_noise((batch, self.rows + 1, self.vocabulary), self.generator)
        uniforms = torch.rand(batch, self.depth, self.slots, generator=self.generator, device=noise.device)
        return noise[:, :-1], noise[:, -1].clone(), uniforms  # a copy, so that the rest can go when it is used up

    def next_line(self) -> Tensor:
        """The numbers of the next block of a single sequence: its noise, then its uniforms."""
        if not self.drawn:
            noise = (self.rows + 1) * self.vocabulary
            numbers = noise + self.depth * self.slots
            blocks = max(1, min(AHEAD, NUMBERS // numbers))
            lines = torch.rand(blocks, numbers, generator=self.generator, device=self.generator.device)
            to_gumbel(lines[:, :noise])
            self.drawn = list(lines.unbind())[::-1]
        return self.drawn.pop()
