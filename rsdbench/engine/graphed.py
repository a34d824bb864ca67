"""Work of a block as CUDA graphs: recorded once for its shapes, and then launched as one piece.

At batch 1 a GPU waits for Python: a drafter's forward is hundreds of kernels of microseconds each. A graph has static
shapes and static memory, so the keys and values of a single sequence live in a storage that stays, and forwards read
it up to a multiple of `BUCKET` positions. Batches of several sequences, which shrink as sequences end, run without.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BUCKET = 256  # positions
KEPT = 32  # recordings: more than two structures need, which a run decodes by turns
WARM_UPS = 3  # calls before recording: libraries make their workspaces in the first ones
Function = Callable[..., tuple[Tensor, ...]]


class Graphs:
    """Recordings of functions of tensors, and the storages that they read and write."""

    def __init__(self) -> None:
        self.replays: OrderedDict[object, tuple[Function, Function]] = OrderedDict()
        self.storages: dict[object, Tensor] = {}

    def run(self, function: Function, inputs: Sequence[Tensor], key: object) -> tuple[Tensor, ...]:
        """Replay a function; it is recorded when its key or shapes are new.

        The function may read other tensors, if they are always the same for a key. What is returned is the caller's:
        the next replay does not change it.
        """
        whole = key, tuple((x.shape, x.dtype) for x in inputs)
        if whole not in self.replays:
            # a graph knows addresses only: the function is kept for the tensors that it reads
            self.replays[whole] = function, record(function, inputs)
            if len(self.replays) > KEPT:
                self.replays.popitem(last=False)
        self.replays.move_to_end(whole)
        return self.replays[whole][1](*inputs)

    def storage(self, owner: object, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Storage [layers, 2, 1, H, columns, D] of a model: always the same memory, as long as it is large enough.

        It may have more columns than asked for. What an earlier decoding has left in it is hidden by the mask, and
        finite. A larger one ends all recordings.
        """
        kept = self.storages.get(owner)
        if kept is None or kept.shape[4] < shape[4]:
            self.storages[owner] = torch.zeros(shape, dtype=dtype, device=device)
            self.replays.clear()
        return self.storages[owner]


def record(function: Function, inputs: Sequence[Tensor]) -> Function:
    """Record a function on a GPU, with copies of its inputs as its static ones."""
    static = [x.clone() for x in inputs]
    with torch.cuda.device(static[0].device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function(*static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function(*static)

    def replay(*inputs: Tensor) -> tuple[Tensor, ...]:
        torch._foreach_copy_(static, inputs)
        graph.replay()
        return tuple(x.clone() for x in outputs)

    return replay


def bucket(positions: int) -> int:
    """The next multiple of `BUCKET`."""
    return -(-positions // BUCKET) * BUCKET
