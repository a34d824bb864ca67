"""rsdbench: what speculative decoding buys under an equal budget at the target model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rsdbench.errors import UsageError

if TYPE_CHECKING:
    from rsdbench.engine.decode import Generation, generate
    from rsdbench.engine.models import Pair, load_pair
    from rsdbench.experiment.frames import load_results
    from rsdbench.faces.grid import plot_grid

__version__ = "0.2.0"
__all__ = ["Generation", "Pair", "UsageError", "generate", "load_pair", "load_results", "plot_grid"]

for _library in ("torchao", "torch.utils._pytree"):  # at import they warn of kernels that were built for other machines
    logging.getLogger(_library).setLevel(logging.ERROR)

HOMES = {
    "Generation": "rsdbench.engine.decode",
    "generate": "rsdbench.engine.decode",
    "Pair": "rsdbench.engine.models",
    "load_pair": "rsdbench.engine.models",
    "load_results": "rsdbench.experiment.frames",
    "plot_grid": "rsdbench.faces.grid",
}


def __getattr__(name: str) -> object:
    """Import torch and transformers only when they are needed: bad input on the command line is answered at once."""
    if name in HOMES:
        import importlib

        return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module 'rsdbench' has no attribute '{name}'")
