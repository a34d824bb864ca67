"""How long a row job takes on a machine, before it runs, by arithmetic alone. No model is touched.

With R rows for each of b sequences in a forward, and C columns that attention reads:

- a forward takes the longest of three: (weights + b x C x keys and values of a column) / bandwidth; (2 x parameters +
  4 x layers x width x C) x b x R / compute; layers x `LAUNCH`, which is what starting the kernels takes. Layers that
  lie in the host's memory come through its link in each forward
- a block is one target forward of 1 + B rows, L drafter forwards (of two rows, then of each level but the last), and
  L + 1 times `LEVEL` for drawing and verifying
- an answer takes a prefill and then new tokens / block efficiency blocks. Low: the block efficiency that the paper's
  figure shows; high: 1, as if no draft were ever accepted
- a cell decodes all prompts in batches, as wide as halfway between an average and the longest prompt, and then those
  of the token rate at batch 1, in turns with autoregressive decoding
- where a target is spread over cards they work in turn, so more cards are not faster
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rsdbench.decoding.tree import TreeShape
from rsdbench.methods import BASELINE, METHODS, get_shape
from rsdbench.results.readings import reading
from rsdbench.runner.footprint import GIB, Fit, Hardware, Memory, Workload
from rsdbench.runner.sizes import ModelSize
from rsdbench.selection import Point

BANDWIDTH_REACHED, COMPUTE_REACHED = 0.8, 0.5  # of the data sheet
LAUNCH = 1e-4  # seconds a layer
LEVEL = 5e-4  # seconds
DISK = 1e9  # bytes a second
DISK_BYTES = 2  # of a weight
EFFICIENCY = reading("block efficiency")  # at 6 and at 30 tokens: the lowest that is known of the paper's figure


class Range(NamedTuple):
    """From the paper's block efficiency (low) to one token a block (high)."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A row job on a machine; time and forwards are those of its cells that are not done.

    Hours are None where it cannot run; GPU-hours are hours times cards, 0 without GPUs.
    """

    hardware: Hardware
    memory: Memory
    fit: Fit
    target_forwards: Range
    drafter_forwards: Range
    hours: Range | None
    gpu_hours: Range | None


class Cost(NamedTuple):
    """Seconds and forwards."""

    seconds: float = 0.0
    target: float = 0.0
    drafter: float = 0.0

    def plus(self, other: Cost, times: int = 1) -> Cost:
        """The sum with a multiple of another cost."""
        return Cost(*(a + times * b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Placed:
    """A model in a machine's memory. In bytes: weights, keys and values of a column, and what the host holds."""

    size: ModelSize
    hardware: Hardware
    weights: float
    column: int
    offloaded: float = 0.0

    def forward(self, batch: int, rows: float, columns: float) -> float:
        """Seconds of a forward of `rows` tokens for each sequence, which attend to `columns`."""
        machine, size = self.hardware, self.size
        read = (self.weights - self.offloaded + batch * columns * self.column) / (machine.bandwidth * 1e9)
        read += self.offloaded / (machine.link * 1e9) if self.offloaded else 0.0
        operations = (2 * size.parameters + 4 * size.layers * size.hidden * columns) * batch * rows
        return max(
            read / BANDWIDTH_REACHED, operations / (machine.tflops * 1e12 * COMPUTE_REACHED), size.layers * LAUNCH
        )


@dataclass(frozen=True)
class Decoding:
    """Two models that decode answers of a length."""

    target: Placed
    drafter: Placed
    new_tokens: int

    def cost(self, shape: TreeShape, batch: int, prompt: float, efficiency: float) -> Cost:
        """Of a batch of prompts, from prefill to end."""
        blocks, columns = self.new_tokens / efficiency, prompt + self.new_tokens / 2 + shape.budget
        prefill = self.target.forward(batch, prompt, prompt)
        block = self.target.forward(batch, 1 + shape.budget, columns) + (shape.depth + 1) * LEVEL
        if not shape.depth:
            return Cost(prefill + blocks * block, 1 + blocks)
        prefill += self.drafter.forward(batch, prompt, prompt)
        block += sum(self.drafter.forward(batch, rows, columns) for rows in (2, *shape.widths[:-1]))
        return Cost(prefill + blocks * block, 1 + blocks, 1 + blocks * shape.depth)


def estimate(work: Workload, missing: Sequence[Point]) -> Estimate:
    """What a row job needs on its machine; missing: its cells that are not done."""
    fit, machine = work.fit(), work.hardware
    low, high = (cells_cost(work, fit, missing, paper) for paper in (True, False))
    loading = DISK_BYTES * (work.target.parameters + work.drafter.parameters) / DISK if missing else 0.0
    hours = Range(*((cost.seconds + loading) / 3600 for cost in (low, high)))
    cards = 0 if machine.device == "cpu" else fit.cards
    return Estimate(
        hardware=machine,
        memory=work.memory(work.quantization, work.batch),
        fit=fit,
        target_forwards=Range(low.target, high.target),
        drafter_forwards=Range(low.drafter, high.drafter),
        hours=hours if fit.possible else None,
        gpu_hours=Range(hours.low * cards, hours.high * cards) if fit.possible else None,
    )


def cells_cost(work: Workload, fit: Fit, points: Sequence[Point], paper: bool) -> Cost:
    """Of decoding some cells; paper: with the paper's block efficiency, or else with 1."""
    weights = work.weights(work.target, fit.quantization)
    offloaded = fit.offloaded * GIB if fit.possible else 0.0
    decoding = Decoding(
        Placed(work.target, work.hardware, weights, work.column(work.target), offloaded),
        Placed(work.drafter, work.hardware, work.weights(work.drafter), work.column(work.drafter)),
        work.config.decode.max_new_tokens,
    )
    mean, most = work.prompt_tokens
    width = mean if work.batch == 1 else (mean + most) / 2
    batches = math.ceil(work.config.dataset.num_prompts / work.batch)
    prompts = work.config.speed.num_prompts
    timed = prompts * work.config.speed.turns
    autoregressive = decoding.cost(get_shape(BASELINE, None), 1, mean, 1.0)
    total = Cost()
    for point in points:
        shape = get_shape(point.method, point.structure)
        efficiency = paper_efficiency(point.method, point.budget) if paper else 1.0
        alone = decoding.cost(shape, 1, mean, efficiency)
        total = total.plus(decoding.cost(shape, work.batch, width, efficiency), batches)
        total = total.plus(autoregressive, timed).plus(alone, timed)
        if work.config.decode.profile:
            total = total.plus(alone, prompts)
    return total


def paper_efficiency(method: str, budget: int) -> float:
    """The paper's block efficiency, on a straight line between 6 and 30 tokens; an unknown method's is SD's."""
    if method == BASELINE:
        return 1.0
    low, high = EFFICIENCY.get(method, EFFICIENCY["sd"])
    return low + (high - low) * min(max((budget - 6) / 24, 0.0), 1.0)


def assumptions(works: Sequence[Workload]) -> list[str]:
    """What estimates take for granted, a sentence each."""
    prompts = {}
    for work in works:
        mean, most = work.prompt_tokens
        label = work.config.dataset.label
        prompts[label] = f"{label} {mean} on average and {most:,} at most, in batches of {work.batch}"
    first = works[0]
    efficiency = ", ".join(f"{METHODS[name].label} {low}-{high}" for name, (low, high) in EFFICIENCY.items())
    return [
        f"Memory: {first.dtype}, a tenth of each card left free.",
        f"Tokens of a prompt: {'; '.join(prompts.values())}; of an answer: all {first.config.decode.max_new_tokens}.",
        f"Block efficiency at 6-30 tokens, low: as in the paper's figure ({efficiency}); high: 1.",
        f"A forward reads weights and cache at {BANDWIDTH_REACHED:.0%} of the bandwidth or computes at "
        f"{COMPUTE_REACHED:.0%} of the TFLOP/s, and takes {LAUNCH * 1e3:g} ms a layer at least; a tree's level takes "
        f"{LEVEL * 1e3:g} ms outside the models; weights load at {DISK / 1e9:g} GB/s; several cards work in turn.",
    ]
