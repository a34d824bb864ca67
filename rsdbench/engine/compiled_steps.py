"""A level of drafting, verification and commit as compiled libraries: the same functions, in one call each.

For laws at a temperature above 0 without top-p; all else runs as it is. The libraries of verification and commit take
any batch, tree and vocabulary, so that all models and structures share them; those of drafting hold the drafter's
forward too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsdbench.engine import cache, walk
from rsdbench.engine.ahead import Library, library, source
from rsdbench.engine.cache import TreeCache
from rsdbench.engine.compiled import Grow
from rsdbench.engine.walk import Drafts, Outcome, Walk
from rsdbench.errors import UsageError
from rsdbench.rules import Rule
from rsdbench.sampling.laws import Warp

HERE = Path(__file__)
SOURCES = [HERE, *(HERE.with_name(f"{name}.py") for name in ("walk", "cache"))]
SOURCES += [HERE.parents[1] / "sampling" / f"{name}.py" for name in ("laws", "gumbel")]
SMALL = 8192  # a vocabulary up to which a second thread costs more than it helps
PLAIN = Warp(1.0)  # no top-p; the temperature is in the laws already
DYNAMIC = torch.export.Dim.DYNAMIC
# of the examples that are exported: all different, so that no size is taken for another
BATCH, NODES, WORDS = 2, 9, 11


class Function(torch.nn.Module):
    """A function of tensors as a module, which is what can be exported."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The function."""
        return tuple(self.function(*inputs))


def compiled(
    name: str, function: Callable[..., Any], of: object, vocabulary: int, *inputs: tuple[Tensor, str]
) -> Library:
    """A function as a library. of: what it depends on beside our sources; each input with the dimensions that vary.

    Raises:
        UsageError: as in `ahead.library`.
    """
    options = {"cpp.threads": 1} if vocabulary <= SMALL else {}
    parts = (name, of, *(file.read_text() for file in SOURCES))
    sizes = tuple({int(d): DYNAMIC for d in dimensions} for _, dimensions in inputs)
    return library(name, parts, Function(function), tuple(x for x, _ in inputs), (sizes,), **options)


def or_none(make: Callable[..., Library]) -> Callable[..., Library | None]:
    """What cannot be compiled runs as it is: None, which is remembered like a library."""

    @wraps(make)
    def attempt(*of: Any) -> Library | None:
        try:
            return make(*of)
        except UsageError:
            return None

    return attempt


@lru_cache(maxsize=64)
@or_none
def compiled_verify(rule: Rule, slots: int, vocabulary: int) -> Library:
    """The walk down with a rule, as in `verify.verify`, for a number of drafts below a node."""

    def function(uniforms: Tensor, noise: Tensor, root: Tensor, *x: Tensor) -> Outcome:
        drafts, depth = Drafts(*x), uniforms.shape[1]

        def unfinished(*state: Tensor) -> Tensor:
            return Walk(*state).going.any() & (Walk(*state).depth < depth)

        def down(*state: Tensor) -> tuple[Tensor, ...]:
            chances = uniforms.index_select(1, Walk(*state).depth.unsqueeze(0))[:, 0, :slots]
            return tuple(walk.descend(rule, PLAIN, drafts, chances, Walk(*state)))

        (batch, nodes), device = drafts.tokens.shape, root.device
        start = walk.start(batch, nodes, depth, drafts.tempered.shape[2], device)
        state = torch.while_loop(unfinished, down, tuple(start))
        return walk.finish(PLAIN, drafts.tempered, root, noise, Walk(*state))

    numbers = torch.zeros(BATCH, NODES, dtype=torch.long)
    return compiled(
        "verify", function, (rule.__qualname__, source(rule), slots), vocabulary,
        (torch.rand(BATCH, 5, 16 + slots), "012"), (torch.zeros(BATCH, WORDS), "01"),
        (torch.zeros(BATCH, 1, dtype=torch.long), "0"), (torch.zeros(BATCH, 1 + NODES, WORDS), "012"),
        (torch.zeros(BATCH, 7, WORDS), "012"), (numbers, "01"), (numbers.clone(), "01"), (numbers.bool(), "01"),
    )  # fmt: skip


@lru_cache(maxsize=8)
@or_none
def compiled_finish(vocabulary: int) -> Library:
    """`walk.finish` at the root: all there is of a tree without nodes."""

    def function(noise: Tensor, root: Tensor, tempered: Tensor) -> Outcome:
        start = walk.start(tempered.shape[0], 0, 0, tempered.shape[2], root.device)
        return walk.finish(PLAIN, tempered, root, noise, start)

    return compiled(
        "finish", function, None, vocabulary, (torch.zeros(BATCH, WORDS), "01"),
        (torch.zeros(BATCH, 1, dtype=torch.long), "0"), (torch.zeros(BATCH, 1, WORDS), "02"),
    )  # fmt: skip


@lru_cache(maxsize=8)
@or_none
def compiled_accept(lanes: int) -> Library:
    """`cache.accept`, with the storages of the target and, of two lanes, of the drafter."""

    def function(rows: Tensor, accepted: Tensor, length: Tensor, scratch: Tensor, *storages: Tensor) -> tuple[Tensor]:
        for storage, previous in zip(storages, (False, True), strict=False):
            columns, positions = cache.accepted_columns(rows, length, previous)
            cache.copy_columns(storage, columns, positions + scratch)
        return (length + accepted + 1,)

    rows, numbers = torch.arange(3).expand(BATCH, -1).contiguous(), torch.zeros(BATCH, dtype=torch.long)
    storages = [torch.zeros(3, 2, BATCH + 2, 4, 20, 5 + lane) for lane in range(lanes)]
    return compiled(
        "accept", function, lanes, 1, (rows, "01"), (numbers, "0"), (numbers.clone(), "0"), (torch.tensor(3), ""),
        *((storage, "02345") for storage in storages),
    )  # fmt: skip


class Steps:
    """The steps of one method, in libraries that are made, or taken from disk, when they are first needed.

    grow: a level of its drafting, where that could be compiled.
    """

    def __init__(self, rule: Rule, vocabulary: int, grow: Grow | None) -> None:
        self.rule, self.vocabulary, self.grow = rule, vocabulary, grow

    def verify(self, drafts: Drafts, slots: int, uniforms: Tensor, noise: Tensor, root: Tensor) -> Outcome | None:
        """The walk down, as in `verify.verify`, with a number of drafts below a node; None if it cannot be compiled."""
        if not uniforms.shape[1]:
            step, inputs = compiled_finish(self.vocabulary), (noise, root, drafts.tempered)
        else:
            step, inputs = compiled_verify(self.rule, slots, self.vocabulary), (uniforms, noise, root, *drafts)
        return None if step is None else Outcome(*run(step, *inputs))

    def accept(self, caches: Sequence[TreeCache], rows: Tensor, accepted: Tensor, length: Tensor) -> Tensor:
        """`cache.accept`."""
        step = compiled_accept(len(caches)) if all(len(c.storage) == 1 for c in caches) else None
        if step is None:
            return cache.accept(caches, rows, accepted, length)
        return run(step, rows, accepted, length, caches[0].first, *(c.storage[0] for c in caches))[0]


def run(function: Library, *inputs: Tensor) -> list[Tensor]:
    """Call a library."""
    return function.run([x.contiguous() for x in inputs])
