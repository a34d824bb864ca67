"""Token rate: each prompt at batch 1, in turns of a method and autoregressive decoding (AR) side by side.

AR decodes the same tokens in every cell of a row, so its times say how quiet the machine was. A turn beside which AR
was out of step with the row's other turns is taken again. AR alone decides that, never a method's own time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rsdbench.results.stalls import without_stalls

OFF = 0.2  # AR is out of step if its time differs by more than this share from the row's own
RETAKES = 3  # rounds in which turns are taken again


class Turn(NamedTuple):
    """One prompt, once: its place among the timed prompts, and the number of the turn."""

    prompt: int
    number: int


class Reference:
    """AR's seconds a block, of each prompt, over all turns that this process has taken in a row."""

    def __init__(self) -> None:
        self.seconds: dict[int, list[float]] = defaultdict(list)

    def add(self, prompt: int, blocks: Sequence[float]) -> float:
        """Note a turn of AR; returns its seconds a block, without stalls."""
        mean = float(without_stalls(np.asarray(blocks), np.zeros(len(blocks), int)).mean())
        self.seconds[prompt].append(mean)
        return mean

    def in_step(self, prompt: int, seconds: float) -> bool:
        """Whether a turn's seconds a block are those of the prompt's other turns."""
        return abs(seconds / float(np.median(self.seconds[prompt])) - 1) <= OFF


Taken = tuple[dict[str, Any], list[float]]  # a turn's record, and the seconds of AR's blocks beside it


def take(turns: Sequence[Turn], one: Callable[[Turn], Taken], reference: Reference) -> Iterator[dict[str, Any]]:
    """Records of turns, with `steady`: whether AR was in step. A turn that is taken again yields its record again.

    one: decodes a turn.
    """
    taken: dict[Turn, tuple[dict[str, Any], float]] = {}
    todo = list(turns)
    for _ in range(1 + RETAKES):
        for turn in todo:
            record, blocks = one(turn)
            seconds = reference.add(turn.prompt, blocks)
            taken[turn] = record, seconds
            yield {**record, "steady": reference.in_step(turn.prompt, seconds)}
        todo = [turn for turn, (_, seconds) in taken.items() if not reference.in_step(turn.prompt, seconds)]
    for turn, (record, seconds) in taken.items():  # what the row's own is, is known better now
        yield {**record, "steady": reference.in_step(turn.prompt, seconds)}
