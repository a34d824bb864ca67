"""How long the cells that are left will take: by arithmetic at first, then by the cells that were decoded.

A block of a batch takes a fixed time, more for each level, and the models' arithmetic, whose rate is measured once. A
few rows at batch 1 take as long as a few more would, because the weights must be read.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import lru_cache

import torch

from rsdbench.errors import UsageError
from rsdbench.methods import BASELINE, get_shape
from rsdbench.runner.cells import Cell
from rsdbench.runner.sizes import model_size

BLOCK, LEVEL = 2e-4, 3e-5  # seconds of a block beside the target's arithmetic, and of each level
READING = 8  # rows that take as long as reading the weights does
FILLED = 0.6  # of the new tokens that are allowed, those that an average answer has
EFFICIENCY = 1.6  # tokens of a block with drafts
PRIOR = 5.0  # seconds that count for the arithmetic when it is corrected by what cells took
UNKNOWN = 10**8  # parameters of a model of which nothing is known before it is loaded


class Pace:
    """Seconds of the cells that are left."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        rate = multiplications()
        self.left = {cell: seconds_of(cell, rate) for cell in cells}
        self.expected = self.taken = 0.0  # of the cells that were decoded

    def finished(self, cell: Cell, seconds: float) -> None:
        """A cell took so many seconds."""
        self.expected += self.left.pop(cell, 0.0)
        self.taken += seconds

    @property
    def seconds(self) -> float:
        """Of all that is left."""
        return sum(self.left.values()) * (self.taken + PRIOR) / (self.expected + PRIOR)


def seconds_of(cell: Cell, rate: float) -> float:
    """Of one cell; rate: multiplications with a weight a second."""
    config = cell.row.config
    target, drafter = size(config.target), size(config.drafter)
    shape = get_shape(cell.method, cell.structure)
    allowed = config.decode.max_new_tokens
    blocks = allowed / (1 if cell.method == BASELINE else EFFICIENCY)  # of the longest answer
    overhead = BLOCK + shape.depth * LEVEL

    def arithmetic(rows: int) -> float:
        return (rows * target + (shape.budget + shape.depth) * drafter) / rate

    prompts, timed = config.dataset.num_prompts, config.speed.num_prompts * config.speed.turns
    batches = -(-prompts // config.quality.batch_size)
    quality = batches * blocks * overhead + prompts * FILLED * blocks * arithmetic(1 + shape.budget)
    one = blocks * (overhead + arithmetic(1 + READING + shape.budget))
    baseline = allowed * (BLOCK + (1 + READING) * target / rate)
    return quality + timed * FILLED * (one + baseline)


def size(model: object) -> int:
    """Parameters of a configured model."""
    try:
        return model_size(model.path, model.revision).parameters
    except UsageError:
        return UNKNOWN


@lru_cache
def multiplications() -> float:
    """Multiplications a second of this machine's processors in matrix products, from a few hundredths of a second."""
    left, right = torch.randn(128, 1024), torch.randn(1024, 1024)
    torch.mm(left, right)
    start = time.perf_counter()
    for _ in range(8):
        torch.mm(left, right)
    return 8 * left.numel() * right.shape[1] / (time.perf_counter() - start)
