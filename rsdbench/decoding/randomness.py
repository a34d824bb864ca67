"""The random numbers of decoding, drawn before they are needed: Gumbel noise for drafts, uniforms for verification."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.sampling.gumbel import to_gumbel

AHEAD, NUMBERS = 16, 2**16  # blocks that are drawn at once, at most, and random numbers of all of them


class Numbers(NamedTuple):
    """Of one block: for noise of each level [B, rows, S], for that of the last token [B, 2, S], uniforms [B, L, slots].

    whole: that of all levels in one piece, [B, all rows, S]. S: as in `gumbel.group_size`. Noise comes as the uniforms
    that `to_gumbel` makes it of, which takes less time where it is read: recordings alone get it made.
    """

    drafts: tuple[Tensor, ...]
    last: Tensor
    uniforms: Tensor
    whole: Tensor


class Randomness:
    """What each block of a batch takes from one generator.

    After a large model's forward nothing is left in the processor's caches, so every operator between two forwards
    costs 10 to 20 microseconds; for a single sequence the numbers of several blocks are therefore drawn at once, into
    memory that stays. They are the same numbers: on a CPU a generator gives them one by one.
    """

    def __init__(
        self, generator: torch.Generator, rows: list[int], size: int, slots: int,
        memory: Callable[..., Tensor] | None = None,
    ) -> None:  # fmt: skip
        """rows: of noise, for each level of the tree; size: S.

        memory: gives what a single sequence's numbers lie in, if that is to be the same for each block, for
        recordings: then they are drawn for one block at a time.
        """
        self.generator, self.rows, self.size, self.slots = generator, rows, size, slots
        self.memory = memory
        self.noise = (sum(rows) + 2) * size  # of a block, for drafts and the last token
        self.lines: Tensor | None = None  # [blocks, numbers]: each block's noise, then its uniforms
        self.own: list[Numbers] = []  # views of them, of each block
        self.used = 0

    def block(self, batch: int) -> Numbers:
        """The numbers of the next block; those of a single sequence are overwritten some blocks later."""
        if batch == 1:
            self.ahead()
            self.used += 1
            return self.own[self.used - 1]
        noise = fresh((batch, sum(self.rows) + 2, self.size), self.generator)
        uniforms = torch.rand(batch, len(self.rows), self.slots, generator=self.generator, device=noise.device)
        return self.apart(noise, uniforms)

    def ahead(self) -> None:
        """Draw what the next block of a single sequence takes, if it is not there yet."""
        if self.used == len(self.own):
            self.refill()

    def allocate(self) -> None:
        """Make room for the numbers of a single sequence's next blocks."""
        numbers = self.noise + len(self.rows) * self.slots
        blocks = max(1, min(AHEAD, NUMBERS // numbers)) if self.memory is None else 1
        make = self.memory or torch.empty
        lines = make(blocks * numbers, dtype=torch.float32, device=self.generator.device)
        self.lines = lines.view(blocks, numbers)
        noise = self.lines[:, : self.noise].unflatten(1, (-1, self.size))
        uniforms = self.lines[:, self.noise :].unflatten(1, (len(self.rows), self.slots))
        self.own = [self.apart(*own) for own in zip(noise.split(1), uniforms.split(1), strict=True)]
        self.used = blocks

    def refill(self) -> None:
        """Draw the numbers of the next blocks of a single sequence."""
        if self.lines is None:
            self.allocate()
        torch.rand(*self.lines.shape, generator=self.generator, out=self.lines)
        if self.memory is not None:
            to_gumbel(self.lines[:, : self.noise])
        self.used = 0

    def apart(self, noise: Tensor, uniforms: Tensor) -> Numbers:
        """Numbers for noise [B, all rows, S], those of the last token last, by what they are for, and uniforms."""
        *drafts, last = noise.split([*self.rows, 2], 1)
        return Numbers(tuple(drafts), last.contiguous(), uniforms, noise[:, :-2])


def fresh(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """What noise is made of: uniforms in [0, 1), on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device)
