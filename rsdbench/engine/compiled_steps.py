"""Drafting and verification of a level as compiled libraries: the same functions, in one call each.

For laws at a temperature above 0 without top-p; all else runs as it is. A library takes any batch, tree and
vocabulary, so that all models and structures share it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsdbench.engine import cache, walk
from rsdbench.engine.ahead import Library, library
from rsdbench.engine.cache import TreeCache
from rsdbench.engine.drafting import Drafting, Level
from rsdbench.engine.tree import level_rows
from rsdbench.engine.walk import Below, Drafts, Outcome, Walk
from rsdbench.errors import UsageError
from rsdbench.rules import Rule
from rsdbench.sampling.laws import Warp

HERE = Path(__file__)
SOURCES = [HERE, *(HERE.with_name(f"{name}.py") for name in ("walk", "cache", "drafting", "tree"))]
SOURCES += [HERE.parents[1] / "sampling" / f"{name}.py" for name in ("laws", "gumbel")]
SMALL = 8192  # a vocabulary up to which a second thread costs more than it helps
PLAIN = Warp(1.0)  # no top-p; the temperature is in the laws already
DYNAMIC = torch.export.Dim.DYNAMIC
# of the examples that are exported: all different, so that no size is taken for another
BATCH, NODES, WIDTH, ABOVE, WORDS = 2, 9, 4, 3, 11


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


def source(thing: Any) -> str:
    """The text of the file that a rule or a drafting is in."""
    return inspect.getsource(inspect.getmodule(thing))


@lru_cache(maxsize=64)
@or_none
def compiled_descend(rule: Rule, slots: int, vocabulary: int) -> Library:
    """`walk.descend` with a rule, for a number of drafts below a node."""

    def function(*x: Tensor) -> Walk:
        return walk.descend(rule, PLAIN, Drafts(*x[:5]), Below(*x[5:8]), x[8], Walk(*x[9:]))

    numbers, level, one = torch.zeros(BATCH, NODES, dtype=torch.long), torch.arange(WIDTH), torch.tensor(1)
    return compiled(
        "descend", function, (rule.__qualname__, source(rule), slots), vocabulary,
        (torch.zeros(BATCH, 1 + NODES, WORDS), "012"), (torch.zeros(BATCH, 7, WORDS), "012"),
        (numbers, "01"), (numbers.clone(), "01"), (numbers.bool(), "01"),
        (level, "0"), (one, ""), (one.clone(), ""), (torch.rand(BATCH, slots), "0"), *example_walk(),
    )  # fmt: skip


@lru_cache(maxsize=8)
@or_none
def compiled_finish(vocabulary: int) -> Library:
    """`walk.finish`."""

    def function(tempered: Tensor, root: Tensor, noise: Tensor, *state: Tensor) -> Outcome:
        return walk.finish(PLAIN, tempered, root, noise, Walk(*state))

    return compiled(
        "finish", function, None, vocabulary, (torch.zeros(BATCH, 1 + NODES, WORDS), "012"),
        (torch.zeros(BATCH, 1, dtype=torch.long), "0"), (torch.zeros(BATCH, WORDS), "01"), *example_walk(),
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

    rows, numbers = torch.arange(ABOVE).expand(BATCH, -1).contiguous(), torch.zeros(BATCH, dtype=torch.long)
    storages = [torch.zeros(3, 2, BATCH + 2, 4, 20, 5 + lane) for lane in range(lanes)]
    return compiled(
        "accept", function, lanes, 1, (rows, "01"), (numbers, "0"), (numbers.clone(), "0"), (torch.tensor(3), ""),
        *((storage, "02345") for storage in storages),
    )  # fmt: skip


def example_walk() -> list[tuple[Tensor, str]]:
    """A `Walk`, and the dimensions that vary."""
    line = torch.zeros(BATCH, 5, dtype=torch.long)
    going, prefix = torch.ones(BATCH, dtype=torch.bool), torch.ones(BATCH, ABOVE, dtype=torch.bool)
    last = torch.full((BATCH, WORDS), 1 / WORDS)
    state = Walk(line[:, 0].clone(), going, prefix, last, line, line.clone())
    return list(zip(state, Walk("0", "0", "01", "01", "01", "01"), strict=True))


@lru_cache(maxsize=8)
@or_none
def compiled_expand(drafting: Drafting, vocabulary: int) -> Library:
    """`Drafting.expand` where the draws decide the parents, with the rows of ancestors that follow from them."""

    def function(log_q: Tensor, noise: Tensor, rows: Tensor, own: Tensor, *above: Tensor) -> tuple[Tensor, ...]:
        level = drafting.expand(Level(*above), log_q, noise, own.shape[1])
        return (*level, level_rows(rows, level.parents, own))

    rows = torch.ones(BATCH, ABOVE, 1 + NODES, dtype=torch.bool)
    numbers, scores = torch.zeros(BATCH, ABOVE, dtype=torch.long), torch.zeros(BATCH, ABOVE)
    above = Level(numbers, numbers.clone(), numbers.bool(), scores, scores.clone())
    return compiled(
        "expand", function, (type(drafting).__qualname__, source(type(drafting))), vocabulary,
        (torch.zeros(BATCH, ABOVE, WORDS), "012"), (torch.zeros(BATCH, ABOVE, WORDS), "012"), (rows, "012"),
        (torch.ones(1, WIDTH, 1 + NODES, dtype=torch.bool), "12"), *((x, "01") for x in above),
    )  # fmt: skip


class Steps:
    """The steps of one method, in libraries that are made, or taken from disk, when they are first needed."""

    def __init__(self, drafting: Drafting, rule: Rule, vocabulary: int) -> None:
        self.drafting, self.rule, self.vocabulary = drafting, rule, vocabulary

    def expand(self, above: Level, log_q: Tensor, noise: Tensor, rows: Tensor, own: Tensor) -> tuple[Level, Tensor]:
        """The next level, and its rows of ancestors."""
        step = compiled_expand(self.drafting, self.vocabulary)
        if step is None:
            level = self.drafting.expand(above, log_q, noise, own.shape[1])
            return level, level_rows(rows, level.parents, own)
        found = run(step, log_q, noise, rows, own, *above)
        return Level(*found[:5]), found[5]

    def descend(self, drafts: Drafts, level: Below, uniforms: Tensor, state: Walk) -> Walk:
        """`walk.descend`; uniforms [B, `walk.slots_of` drafts below a node]."""
        step = compiled_descend(self.rule, uniforms.shape[1], self.vocabulary)
        if step is None:
            return walk.descend(self.rule, PLAIN, drafts, level, uniforms, state)
        return Walk(*run(step, *drafts, *level, uniforms, *state))

    def finish(self, tempered: Tensor, root: Tensor, noise: Tensor, state: Walk) -> Outcome:
        """`walk.finish`."""
        step = compiled_finish(self.vocabulary)
        if step is None:
            return walk.finish(PLAIN, tempered, root, noise, state)
        return Outcome(*run(step, tempered, root, noise, *state))

    def accept(self, caches: Sequence[TreeCache], rows: Tensor, accepted: Tensor, length: Tensor) -> Tensor:
        """`cache.accept`."""
        step = compiled_accept(len(caches)) if all(len(c.storage) == 1 for c in caches) else None
        if step is None:
            return cache.accept(caches, rows, accepted, length)
        return run(step, rows, accepted, length, caches[0].first, *(c.storage[0] for c in caches))[0]


def run(function: Library, *inputs: Tensor) -> list[Tensor]:
    """Call a library."""
    return function.run([x.contiguous() for x in inputs])
