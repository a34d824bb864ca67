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
    inputs: list[Tensor]
    outputs: tuple[Tensor, ...]
    replay: Callable[[], None]

    def take(self, inputs: Sequence[Tensor]) -> bool:
        """Copy inputs that lie elsewhere to where they are read; whether there were none."""
        elsewhere = [x for x in zip(self.inputs, inputs, strict=True) if x[0].data_ptr() != x[1].data_ptr()]
        for own, new in elsewhere:
            own.copy_(new)
        return not elsewhere


class Graphs:
    """Recordings of functions of tensors, and the memory that they read and write."""

    def __init__(self) -> None:
        self.recordings: OrderedDict[object, Recording] = OrderedDict()
        self.memories: dict[object, Tensor] = {}

    def run(self, function: Function, inputs: Sequence[Tensor], key: object) -> tuple[Tensor, ...]:
        """Replay a function, as `find` gives it. What is returned is overwritten by the next replay."""
        recording = self.find(function, inputs, key)
        recording.take(inputs)
        recording.replay()
        return recording.outputs

    def find(self, function: Function, inputs: Sequence[Tensor], key: object) -> Recording:
        """The recording of a function, which is made when its key or shapes are new.

        The function may read other tensors, if they are always the same for a key, and write to its inputs. Inputs in
        memory that stays (an output of another recording, or what `memory` gave) are read where they are, and what lies
        elsewhere must be copied there.
        """
        whole = key, tuple((x.shape, x.stride(), x.dtype) for x in inputs)
        if whole not in self.recordings:
            stay = {x.untyped_storage().data_ptr() for own in self.recordings.values() for x in own.outputs}
            stay |= {x.untyped_storage().data_ptr() for x in self.memories.values()}
            static = [x if x.untyped_storage().data_ptr() in stay else x.clone() for x in inputs]
            before = [x.clone() for x in static]
            self.recordings[whole] = Recording(function, static, *record(function, static))
            for own, value in zip(static, before, strict=True):
                own.copy_(value)  # to record, a function is called several times, and may write to its inputs
            if len(self.recordings) > KEPT:
                self.recordings.popitem(last=False)
        self.recordings.move_to_end(whole)
        return self.recordings[whole]

    def memory(self, owner: object, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory [count] that stays where it is as long as it is large enough. A larger one ends all recordings."""
        return self.at_least(owner, (count,), 0, dtype, device)[:count]

    def storage(self, owner: object, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Storage [layers, 2, 1, H, columns, D] of a model, in memory that stays.

        It may have more columns than asked for. What an earlier decoding has left in it is hidden by the mask, and
        finite.
        """
        return self.at_least(owner, shape, 4, dtype, device)

    def at_least(
        self, owner: object, shape: tuple[int, ...], growing: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:  # fmt: skip
        """What an owner has, of a shape, of whose dimension `growing` there may be more; new if it was too small."""
        kept = self.memories.get(owner)
        if kept is None or kept.shape[growing] < shape[growing]:
            self.memories[owner] = torch.zeros(shape, dtype=dtype, device=device)
            self.recordings.clear()
        return self.memories[owner]


def record(function: Function, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
    """Record a function on a GPU: its outputs, and what computes them anew from the inputs as they then are."""
    with torch.cuda.device(inputs[0].device), recording():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function(*inputs)
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
