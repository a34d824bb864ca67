"""What a row job needs of a machine's memory, and whether it fits, by arithmetic alone. No model is touched.

At its largest moment, in bytes, with a batch of b prompts, a budget of B tokens and a tree of depth L:

- weights: parameters x bytes of a number; in a quantised target all but the token embeddings and the head take as
  many as `engine.quantization` says
- cache, of both models: layers x 2 x b x heads x columns x head size x bytes of a number; columns = longest prompt +
  new tokens + B + L + 3 (`engine.cache`)
- workspace: the larger of `ARRAYS` arrays [b, 1 + B, vocabulary] in float32 (the drafter's log-probabilities, the
  target's logits, what verification makes of them) and a prefill's activations [b, longest prompt, `ACTIVATIONS` x
  width]; one layer's keys and values once more; and `prefix_memory`

A tenth of each card is left free, for the allocator and the device's own context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rsdbench.errors import UsageError
from rsdbench.methods import get_shape
from rsdbench.models.quantization import BYTES as BYTES_QUANTIZED
from rsdbench.models.quantization import KINDS
from rsdbench.runner.sizes import ModelSize, model_size
from rsdbench.selection import Point
from rsdbench.tasks.examples import lead_of
from rsdbench.tasks.prompts import TREE_POSITIONS

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
USABLE = 0.9  # of a card's memory
ARRAYS, ACTIVATIONS = 6, 10
# tokens of the sources of datasets that need not be here: on average, and at most (None: until they are cut)
SOURCES: dict[str, tuple[int, int | None]] = {"wmt/wmt18": (60, 400), "EdinburghNLP/xsum": (560, None)}
CHARACTERS = 4  # of a token, in what stands around a source


@dataclass(frozen=True)
class Hardware:
    """A machine with `cards` equal cards: GiB, GB/s and TFLOP/s of one; link: GB/s from the host's memory, if any."""

    name: str
    device: str
    cards: int
    gib: float
    bandwidth: float
    tflops: float
    link: float | None

    @classmethod
    def of(cls, config: DictConfig) -> Hardware:
        """From the config group `hardware`.

        Raises:
            UsageError: one of its numbers is not usable.
        """
        values: dict[str, Any] = OmegaConf.to_container(config)
        if not isinstance(values["cards"], int) or values["cards"] < 1:
            raise UsageError(f"hardware.cards must be a whole number of at least 1, not '{values['cards']}'")
        for key in ("gib", "bandwidth", "tflops", "link"):
            value = values[key]
            if (value is not None or key != "link") and not (isinstance(value, int | float) and value > 0):
                raise UsageError(f"hardware.{key} must be a number above 0, not '{value}'")
        return cls(**values)


@dataclass(frozen=True)
class Memory:
    """What takes how many GiB; target and drafter: their weights."""

    target: float
    drafter: float
    cache: float
    workspace: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.target + self.drafter + self.cache + self.workspace


@dataclass(frozen=True)
class Fit:
    """How a row job fits a machine.

    needed: cards that hold it as configured; quantization, cards and offloaded (GiB in the host's memory): as it can
    run here; possible: whether it can; one_card_batch: the largest batch size up to the configured one with which one
    card holds it, for each quantisation of the target that could be tried, 0 if none does.
    """

    text: str
    needed: int
    quantization: str | None
    cards: int
    offloaded: float
    possible: bool
    one_card_batch: dict[str, int]


@dataclass(frozen=True)
class Workload:
    """What a row job does: its settings and cells, with two models of known sizes, on a machine."""

    config: DictConfig
    points: Sequence[Point]
    hardware: Hardware
    target: ModelSize
    drafter: ModelSize

    @classmethod
    def of(cls, config: DictConfig, points: Sequence[Point]) -> Workload:
        """A row's, on the `hardware` that its configuration names.

        Raises:
            UsageError: the hardware's numbers or the target's quantisation are not usable, or the size of a model is
                not known.
        """
        kind = OmegaConf.select(config, "target.quantization")
        if kind not in (None, *KINDS):
            raise UsageError(f"unknown quantization '{kind}': choose {', '.join(KINDS)} or null")
        sizes = [model_size(config[role].path, config[role].revision) for role in ("target", "drafter")]
        return cls(config, points, Hardware.of(config.hardware), *sizes)

    @property
    def dtype(self) -> str:
        """Of weights and cache."""
        auto = "float32" if self.hardware.device == "cpu" else "bfloat16"
        return auto if self.config.dtype == "auto" else self.config.dtype

    @property
    def quantization(self) -> str | None:
        """Of the target, as configured."""
        return OmegaConf.select(self.config, "target.quantization")

    @property
    def batch(self) -> int:
        """Prompts that are decoded at once where time is not measured."""
        return min(self.config.quality.batch_size, self.config.dataset.num_prompts)

    @cached_property
    def prompt_tokens(self) -> tuple[int, int]:
        """Tokens of a prompt: on average, and at most."""
        dataset = self.config.dataset
        positions = min(size.positions or 2**31 for size in (self.target, self.drafter))
        room = positions - self.config.decode.max_new_tokens - TREE_POSITIONS
        room = max(1, min(room, dataset.max_prompt_tokens or room))
        mean, most = SOURCES.get(dataset.path, (room, None))
        around = math.ceil(len(lead_of(dataset) + dataset.template.replace("{source}", "")) / CHARACTERS)
        return min(mean + around, room), min(most + around if most else room, room)

    @cached_property
    def tree(self) -> tuple[int, int]:
        """The largest budget and depth of all cells."""
        shapes = [get_shape(point.method, point.structure) for point in self.points]
        return max(shape.budget for shape in shapes), max(shape.depth for shape in shapes)

    def weights(self, size: ModelSize, quantization: str | None = None) -> float:
        """Bytes of a model's weights."""
        number = BYTES[self.dtype]
        inner = quantized_bytes(quantization, self.hardware.device) if quantization else number
        return size.embeddings * number + (size.parameters - size.embeddings) * inner

    def column(self, size: ModelSize) -> int:
        """Bytes of the keys and values of one position of one sequence, in all layers."""
        return size.layers * 2 * size.heads * size.head_size * BYTES[self.dtype]

    def memory(self, quantization: str | None, batch: int) -> Memory:
        """What the row needs with some quantisation of the target and batch size."""
        prompt, (budget, depth) = self.prompt_tokens[1], self.tree
        columns = prompt + self.config.decode.max_new_tokens + budget + depth + 3
        caches = [batch * columns * self.column(size) for size in (self.target, self.drafter)]
        arrays = ARRAYS * batch * (1 + budget) * self.target.vocabulary * BYTES["float32"]
        activations = ACTIVATIONS * batch * prompt * self.target.hidden * BYTES[self.dtype]
        workspace = max(arrays, activations) + caches[0] / self.target.layers
        return Memory(
            target=self.weights(self.target, quantization) / GIB,
            drafter=self.weights(self.drafter) / GIB,
            cache=sum(caches) / GIB,
            workspace=workspace / GIB + self.config.prefix_memory,
        )

    def fit(self) -> Fit:
        """Whether and how the row fits its machine: on cards, on one card with a quantised target, or not."""
        machine, own, room = self.hardware, self.quantization, USABLE * self.hardware.gib
        memory = self.memory(own, self.batch)
        needed, most = math.ceil(memory.total / room), room * machine.cards
        levels = [own] if machine.device == "cpu" else [own, *tighter(own)]
        batches = {level or "none": self.largest_batch(level, room) for level in levels}
        if needed == 1:
            text = "fits" if machine.device == "cpu" else "fits one card"
            return Fit(text, needed, own, 1, 0.0, True, batches)
        if needed <= machine.cards:
            return Fit(f"needs {needed} cards", needed, own, needed, 0.0, True, batches)
        for level in levels[1:]:
            if batches[level] == self.batch:
                return Fit(f"fits one card as {level}", needed, level, 1, 0.0, True, batches)
        possible = bool(machine.link) and memory.total - memory.target <= most  # only weights can lie elsewhere
        text = "does not fit: CPU offload" if possible else "does not fit"
        return Fit(text, needed, own, machine.cards, memory.total - most, possible, batches)

    def largest_batch(self, quantization: str | None, room: float) -> int:
        """The largest batch size that `room` GiB hold, up to the configured one; 0 if there is none."""
        fitting = (b for b in range(self.batch, 0, -1) if self.memory(quantization, b).total <= room)
        return next(fitting, 0)


def quantized_bytes(quantization: str, device: str) -> float:
    """Bytes of a quantised weight, with its part of the scales."""
    return 1.0 if device == "cpu" else BYTES_QUANTIZED[quantization]


def tighter(quantization: str | None) -> list[str]:
    """Quantisations that compress more than one, or than none."""
    names = list(KINDS)
    return names[names.index(quantization) + 1 :] if quantization else names
