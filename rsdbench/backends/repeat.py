"""How a rule's steps are repeated: the two ways that need no compiler (`rsdbench.verification.Repeat`)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def run_to_the_end(
    times: int, going: Callable[..., Tensor], body: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:  # fmt: skip
    """A `Repeat` that never looks whether it could stop: where looking is dearer than a step."""
    for _ in range(times):
        state = body(*state)
    return state


def stop_early(
    times: int, going: Callable[..., Tensor], body: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:  # fmt: skip
    """A `Repeat` that stops as soon as it can."""
    for _ in range(times):
        if not going(*state):
            break
        state = body(*state)
    return state
