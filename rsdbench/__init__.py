"""rsdbench: what speculative decoding buys under an equal budget at the target model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rsdbench.errors import UsageError

if TYPE_CHECKING:
    from rsdbench.api import generate
    from rsdbench.backends.choice import register_backend
    from rsdbench.decoding.generation import Generation
    from rsdbench.drafters import DrafterKind, register_drafter
    from rsdbench.methods import Method, register_method
    from rsdbench.pair import Pair, load_pair
    from rsdbench.plotting.grid import plot_grid
    from rsdbench.results.frames import load_results
    from rsdbench.results.metrics import Metric, register_metric
    from rsdbench.tasks.scores import Score, register_score

__version__ = "0.2.0"
__all__ = [
    "DrafterKind", "Generation", "Method", "Metric", "Pair", "Score", "UsageError", "generate", "load_pair",
    "load_results", "plot_grid", "register_backend", "register_drafter", "register_method", "register_metric",
    "register_score",
]  # fmt: skip

for _library in ("torchao", "torch.utils._pytree"):  # at import they warn of kernels that were built for other machines
    logging.getLogger(_library).setLevel(logging.ERROR)

HOMES = {
    "Generation": "rsdbench.decoding.generation",
    "generate": "rsdbench.api",
    "Pair": "rsdbench.pair",
    "load_pair": "rsdbench.pair",
    "load_results": "rsdbench.results.frames",
    "plot_grid": "rsdbench.plotting.grid",
    # for plugins
    "Method": "rsdbench.methods",
    "register_method": "rsdbench.methods",
    "DrafterKind": "rsdbench.drafters",
    "register_drafter": "rsdbench.drafters",
    "Score": "rsdbench.tasks.scores",
    "register_score": "rsdbench.tasks.scores",
    "Metric": "rsdbench.results.metrics",
    "register_metric": "rsdbench.results.metrics",
    "register_backend": "rsdbench.backends.choice",
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
