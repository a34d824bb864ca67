"""Token rate: each prompt at batch 1, in turns of a method and autoregressive decoding (AR) side by side.

AR decodes the same tokens in every cell of a row, so its times say how quiet the machine was. A turn beside which AR
was out of step with the row's other turns is taken again. AR alone decides that, never a method's own time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

STALL = 3.0  # a block that takes so many times a quick one of its prompt has met a stall, not work of its own
QUICK = 0.25  # share of a prompt's blocks that are quicker than what counts as a quick one
OFF = 0.2  # AR is out of step if its time differs by more than this share from the row's own
RETAKES = 3  # rounds in which turns are taken again


class Turn(NamedTuple):
    """One prompt, once: its place among the timed prompts, and the number of the turn."""

    prompt: int
    number: int


def without_stalls(blocks: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Times of blocks [N] with each stall replaced by a quick block of its prompt, the lower quartile.

    prompts [N]: which blocks are of one prompt, and therefore of one length and one kind of work. On a quiet machine no
    block takes `STALL` times the quartile, and nothing is replaced. It is a quartile and not the median because a
    disturbance may last for a whole turn, which is half of a prompt's blocks.
    """
    if not len(blocks):
        return blocks
    order = np.lexsort((blocks, prompts))
    starts = np.flatnonzero(np.diff(prompts[order], prepend=prompts[order[0]] - 1))
    counts = np.diff(starts, append=len(order))
    quick = np.empty(len(blocks))
    quick[order] = np.repeat(blocks[order[starts + ((counts - 1) * QUICK).astype(int)]], counts)
    return np.where(blocks > STALL * quick, quick, blocks)


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
