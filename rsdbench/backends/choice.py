"""Which backend decodes a pair: the one place that knows them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from rsdbench.backends.aot.engine import AOTEngine
from rsdbench.backends.aot.library import compiler_at_hand
from rsdbench.backends.cuda_graphs.engine import CudaGraphsEngine
from rsdbench.backends.eager import EagerEngine
from rsdbench.decoding.backend import Backend, Job
from rsdbench.errors import UsageError
from rsdbench.models.prefixes import Prefixes
from rsdbench.plugins import register


class Engine(Protocol):
    """What makes backends for batches of one pair of models, and keeps what they share."""

    name: str
    prefixes: Prefixes

    def backend(self, job: Job) -> Backend:
        """A backend for a batch."""


EAGER, COMPILED, GRAPHED = EagerEngine.name, AOTEngine.name, CudaGraphsEngine.name
BACKENDS: dict[str, Callable[[Any, Any], Engine]] = {}  # by the names that `backend=NAME` takes


def register_backend(name: str, engine: Callable[[Any, Any], Engine]) -> None:
    """Put a backend into the catalogue: `backend=NAME` decodes with it.

    engine: takes the target and the drafter; its `name` is what records say, and it must be this one.

    Raises:
        UsageError: the name is taken.
    """
    register("backend", BACKENDS, name, engine)


register_backend(EAGER, EagerEngine)


def choose(target: Any, drafter: Any, compile: bool = False) -> Engine:
    """The backend of two models on their device; compile: the fastest one, for a pair that `can_compile`."""
    if not compile:
        return EagerEngine(target, drafter)
    return (CudaGraphsEngine if target.device.type == "cuda" else AOTEngine)(target, drafter)


def chosen(name: str, target: Any, drafter: Any) -> Engine:
    """The backend of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in BACKENDS:
        raise UsageError(f"unknown backend '{name}': choose from {', '.join(BACKENDS)}, or leave it to compile")
    return BACKENDS[name](target, drafter)


def can_compile(target: Any, drafter: Any, devices: Sequence[str]) -> str | None:
    """Why a pair, on these devices, cannot be compiled; None if it can."""
    if len(devices) == 1 and devices[0].startswith("cuda"):
        return None
    if list(devices) != ["cpu"]:
        return f"needs both models on a CPU or on a GPU, not {' and '.join(sorted(devices))}"
    if torch.float64 in (target.dtype, getattr(drafter, "dtype", None)):
        return "is not for models in double precision"
    if not compiler_at_hand():
        return "needs a C++ compiler: install g++, or set $CXX"
    return None
