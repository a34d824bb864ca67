"""Work of a block as CUDA graphs: recorded once for its shapes, and then launched as one piece.

At batch 1 a GPU waits for Python: a drafter's forward is hundreds of kernels of microseconds each. A graph has static
shapes and static memory, so the keys and values of a single sequence live in a storage that stays, and forwards read
it up to a multiple of `BUCKET` positions. One recording reads where another has written: nothing is copied between
them. Batches of several sequences, which shrink as sequences end, run without.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

BUCKET = 256  # positions
KEPT = 32  # recordings: more than two structures need, which a run decodes by turns
WARM_UPS = 3  # calls before recording: libraries make their workspaces in the first ones
Function = Callable[..., tuple[Tensor, ...]]


class Recording(NamedTuple):
    """A function whose inputs and outputs lie where they lay when it was recorded.

    function: kept for the tensors that it reads beside its inputs, of which a graph knows the addresses only.
    """

    function: Function
    outputs: tuple[Tensor, ...]
    replay: Callable[[], None]


class Graphs:
    """Recordings of functions of tensors, and the memory that they read and write."""

    def __init__(self) -> None:
        self.recordings: OrderedDict[object, Recording] = OrderedDict()
        self.memories: dict[object, Tensor] = {}

    def run(self, key: object, function: Function, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Replay a function, which is recorded when its key or the place of an input is new.

        Inputs lie in memory that stays (an output of another recording, or what `memory` gave), and may be written to.
        The function may read other tensors, if they always hold the same for a key. What is returned is overwritten by
        the next replay.
        """
        whole = key, tuple((x.data_ptr(), x.shape, x.stride()) for x in inputs)
        if whole not in self.recordings:
            before = [x.clone() for x in inputs]

            def restore() -> None:
                for own, value in zip(inputs, before, strict=True):
                    own.copy_(value)  # to record, a function is called several times, and may write to its inputs

            self.recordings[whole] = Recording(function, *self.record(function, inputs, restore))
            restore()
            if len(self.recordings) > KEPT:
                self.recordings.popitem(last=False)
        self.recordings.move_to_end(whole)
        recording = self.recordings[whole]
        recording.replay()
        return recording.outputs

    def record(
        self, function: Function, inputs: Sequence[Tensor], restore: Callable[[], None]
    ) -> tuple[tuple[Tensor, ...], Callable[[], None]]:  # fmt: skip
        """See `record`."""
        return record(function, inputs, restore)

    def memory(
        self, owner: object, shape: tuple[int, ...], growing: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:  # fmt: skip
        """Memory of a shape, of whose dimension `growing` there may be more. A larger one ends all recordings."""
        kept = self.memories.get(owner)
        if kept is None or kept.shape[growing] < shape[growing]:
            if kept is not None:
                self.recordings.clear()
            self.memories[owner] = torch.zeros(shape, dtype=dtype, device=device)
        return self.memories[owner]


def record(
    function: Function, inputs: Sequence[Tensor], restore: Callable[[], None]
) -> tuple[tuple[Tensor, ...], Callable[[], None]]:  # fmt: skip
    """Record a function on a GPU: its outputs, and what computes them anew from the inputs as they then are.

    restore: gives the inputs what they held before.
    """
    with torch.cuda.device(inputs[0].device), recording():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function(*inputs)
                restore()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = tuple(function(*inputs))
    return outputs, graph.replay


under_way: list[None] = []  # one entry while a function is recorded


@contextmanager
def recording() -> Iterator[None]:
    """What runs meanwhile is recorded, or called to prepare it.

    No garbage is collected then: a graph among it cannot be freed while another is recorded, which would fail.
    """
    collecting = gc.isenabled()
    gc.disable()
    under_way.append(None)
    try:
        yield
    finally:
        under_way.pop()
        if collecting:
            gc.enable()


def is_recording() -> bool:
    """Whether what runs now is recorded: then launching a kernel may take the host long, because it is done once."""
    return bool(under_way)


def bucket(positions: int) -> int:
    """The next multiple of `BUCKET`."""
    return -(-positions // BUCKET) * BUCKET
