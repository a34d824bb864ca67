"""Functions of tensors whose small operators `torch.compile` makes into few, for what is recorded as CUDA graphs.

An operator of a few numbers takes a GPU 2 to 3 microseconds, and one that reads distributions over a large vocabulary 5
or more, whatever it does with them: in a block there are hundreds beside the models. The functions are the same ones
that run elsewhere, and compiling takes part in recording alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from typing import ParamSpec, TypeVar

import torch

from rsdbench.backends.cuda_graphs.graphs import is_recording

VARIANTS = 64  # of a function that are compiled, for numbers of drafts and of rows, before it runs as it is
P, R = ParamSpec("P"), TypeVar("R")


@cache
def fused(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose operators are fused while it is recorded, for tensors of any sizes."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not is_recording() or not fusing_is_possible():
            return function(*args, **kwargs)
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):
            return compiled(function)(*args, **kwargs)

    return call


@cache
def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """What `torch.compile`, which takes long to import, makes of a function."""
    return torch.compile(function, dynamic=True)


@cache
def fusing_is_possible() -> bool:
    """Whether there is a GPU, Triton, and the C compiler that Triton calls."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    return torch.cuda.is_available() and find_spec("triton") is not None and any(map(shutil.which, compilers))
