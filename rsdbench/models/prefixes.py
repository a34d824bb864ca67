"""Keys and values of prompts that are decoded again and again, as every cell of a row does: computed once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Prefixes:
    """Batches of prompts' keys and values, up to `limit` bytes; what does not fit is computed anew each time.

    Nothing is ever dropped for something newer: prompts come in the same order in every cell, and what is dropped just
    before it is needed again would never be found.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit, self.size = limit, 0
        self.kept: dict[tuple[object, ...], list[Tensor]] = {}

    def get(self, model: object, prompts: Sequence[Sequence[int]]) -> list[Tensor] | None:
        """What a model wrote for a batch of prompts, if it was kept: as `TreeCache.prefix`."""
        return self.kept.get(name(model, prompts))

    def keep(self, model: object, prompts: Sequence[Sequence[int]], prefix: list[Tensor]) -> None:
        """Keep a copy of what a model has written, if there is room."""
        size = sum(part.nbytes for part in prefix)
        if self.size + size <= self.limit:
            self.kept[name(model, prompts)] = [part.clone() for part in prefix]
            self.size += size


def name(model: object, prompts: Sequence[Sequence[int]]) -> tuple[object, ...]:
    """What a batch is found by: the model itself, and all token ids."""
    return (model, *map(tuple, prompts))
