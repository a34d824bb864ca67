"""rsdbench: what speculative decoding buys under an equal budget at the target model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rsdbench.errors import UsageError

if TYPE_CHECKING:
    from rsdbench.api import generate
    from rsdbench.decoding.generation import Generation
    from rsdbench.pair import Pair, load_pair
    from rsdbench.plotting.grid import plot_grid
    from rsdbench.results.frames import load_results

__version__ = "0.2.0"
__all__ = ["Generation", "Pair", "UsageError", "generate", "load_pair", "load_results", "plot_grid"]

for _library in ("torchao", "torch.utils._pytree"):  # at import they warn of kernels that were built for other machines
    logging.getLogger(_library).setLevel(logging.ERROR)

HOMES = {
    "Generation": "rsdbench.decoding.generation",
    "generate": "rsdbench.api",
    "Pair": "rsdbench.pair",
    "load_pair": "rsdbench.pair",
    "load_results": "rsdbench.results.frames",
    "plot_grid": "rsdbench.plotting.grid",
}


def __dir__() -> list[str]:
    """What is imported when it is needed, too."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    """Import torch and transformers only when they are needed: bad input on the command line is answered at once."""
    if name in HOMES:
        import importlib

        return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module 'rsdbench' has no attribute '{name}'")
