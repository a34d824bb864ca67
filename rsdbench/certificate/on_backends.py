"""The backends that a certificate is about: what decodes the published token rates, beside the eager one.

CUDA graphs are certified on a CPU too, as traced graphs: like a recording they run without Python, and read and write
where they did when they were made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from rsdbench.backends.choice import COMPILED, EAGER
from rsdbench.backends.cuda_graphs.engine import CudaGraphsEngine
from rsdbench.backends.cuda_graphs.graphs import Function, Graphs
from rsdbench.certificate.tiny import tiny_pair
from rsdbench.pair import Pair

ALONE = ", batch 1"
EAGER_ALONE = EAGER + ALONE
TRACED = "traced graphs, batch 1"
OTHERS = (COMPILED, COMPILED + ALONE, TRACED)


class TracedGraphs(Graphs):
    """Graphs that `make_fx` records, with what is no input baked in."""

    def record(
        self, function: Function, inputs: Sequence[Tensor], restore: Callable[[], None]
    ) -> tuple[tuple[Tensor, ...], Callable[[], None]]:  # fmt: skip
        """See `graphs.record`."""
        return traced(function, inputs, restore)


def traced(
    function: Function, inputs: Sequence[Tensor], restore: Callable[[], None]
) -> tuple[tuple[Tensor, ...], Callable[[], None]]:  # fmt: skip
    """As `graphs.record`: static inputs and outputs, and no Python of ours when it is replayed."""
    graph = make_fx(lambda *x: tuple(function(*x)))(*inputs)
    restore()
    outputs = tuple(x.clone() for x in graph(*inputs))

    def replay() -> None:
        for own, new in zip(outputs, graph(*inputs), strict=True):
            own.copy_(new)

    return outputs, replay


@lru_cache
def pair_on(backend: str) -> Pair:
    """The tiny pair on a backend of `OTHERS`, or the eager one.

    Raises:
        UsageError: it cannot be compiled.
    """
    if backend in (EAGER, EAGER_ALONE):
        return tiny_pair()
    pair = Pair(*(model for model in tiny_pair.__wrapped__().models))
    if backend == TRACED:
        pair.compiled = CudaGraphsEngine(pair.target, pair.drafter)
        pair.compiled.graphs = TracedGraphs()
    else:
        pair.compile()
    return pair


def is_alone(backend: str) -> bool:
    """Whether it decodes one sequence at a time."""
    return backend.endswith(ALONE)
