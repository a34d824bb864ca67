"""Verification and commit as compiled libraries: the same functions, in one call each.

For laws at a temperature above 0 without top-p; all else runs as it is. They take any batch, tree and vocabulary, so
that all models and structures share them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsdbench.backends.aot.library import SMALL_VOCABULARY, Library, Recipe, source
from rsdbench.decoding import cache, descent
from rsdbench.decoding.descent import Drafts, Outcome, Walk
from rsdbench.errors import UsageError
from rsdbench.notes import note
from rsdbench.sampling.distributions import Warp
from rsdbench.sampling.gumbel import group_size, to_gumbel
from rsdbench.sources import PACKAGE, syntax_of
from rsdbench.verification import Rule

SOURCES = [Path(__file__), *(PACKAGE / "decoding" / f"{name}.py" for name in ("descent", "cache"))]
SOURCES += [PACKAGE / "sampling" / f"{name}.py" for name in ("distributions", "gumbel")]
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


def recipe(
    title: str, function: Callable[..., Any], of: object, vocabulary: int, *inputs: tuple[Tensor, str]
) -> Recipe:  # fmt: skip
    """A function to compile. of: what it depends on beside our sources; each input with the dimensions that vary."""
    options = {"cpp.threads": 1} if vocabulary <= SMALL_VOCABULARY else {}
    name = title.partition(" ")[0]
    parts = (name, of, *map(syntax_of, SOURCES))
    sizes = tuple({int(d): DYNAMIC for d in dimensions} for _, dimensions in inputs)
    return Recipe(title, name, parts, Function(function), tuple(x for x, _ in inputs), (sizes,), options=options)


@lru_cache(maxsize=128)
def library_of(make: Callable[..., Recipe], *of: Any) -> Library | None:
    """The library of one of the recipes below; None, which is remembered too, where it cannot be compiled."""
    try:
        return make(*of).library()
    except UsageError as error:
        note(f"a step of decoding is not compiled: {error}")
        return None


def verify_recipe(rule: Rule, fanout: int, vocabulary: int) -> Recipe:
    """The walk down with a rule, as in `verify.verify`, for at most `fanout` drafts below a node.

    Inputs: uniforms, noise as in `Numbers`, then as in `Drafted` and `Drafts` tokens [B, 2 + N], tempered, laws,
    parents, valid. The first two tokens become the sequence's last two. Outputs: report, rows, accepted, as in
    `Outcome`.
    """
    at_once = fanout == 1 and vocabulary <= SMALL_VOCABULARY  # of a large vocabulary there is no room for that

    def function(uniforms: Tensor, noise: Tensor, tokens: Tensor, tempered: Tensor, *x: Tensor) -> tuple[Tensor, ...]:
        laws, parents, valid = x
        drafts, depth = Drafts(tempered, laws, tokens[:, 2:].clone(), parents, valid), uniforms.shape[1]

        def unfinished(*state: Tensor) -> Tensor:
            return Walk(*state).going.any() & (Walk(*state).depth < depth)

        def down(*state: Tensor) -> tuple[Tensor, ...]:
            chances = uniforms.index_select(1, Walk(*state).depth.unsqueeze(0))[:, 0, :fanout]
            return tuple(descent.descend(rule, PLAIN, drafts, chances, Walk(*state)))

        if at_once:
            state = descent.chain(rule, PLAIN, drafts, uniforms[:, :, :1])
        else:
            (batch, nodes), device = drafts.tokens.shape, tokens.device
            start = descent.start(batch, nodes, depth, tempered.shape[2], device)
            state = Walk(*torch.while_loop(unfinished, down, tuple(start)))
        return ended(descent.finish(PLAIN, tempered, tokens[:, 1:2], to_gumbel(noise.clone()), state), tokens)

    nodes, levels = (5, 5) if at_once else (NODES, 7)
    numbers = torch.zeros(BATCH, nodes, dtype=torch.long)
    return recipe(
        f"verify by {rule.__name__}, {fanout} drafts a node", function,
        (rule.__qualname__, source(rule), fanout, at_once), vocabulary,
        (torch.rand(BATCH, 5, 16 + fanout), "012"), (torch.zeros(BATCH, 2, group_size(WORDS)), "02"),
        (torch.zeros(BATCH, 2 + nodes, dtype=torch.long), "01"), (torch.zeros(BATCH, 1 + nodes, WORDS), "012"),
        (torch.zeros(BATCH, levels, WORDS), "012"), (numbers, "01"), (numbers.bool(), "01"),
    )  # fmt: skip


def ended(outcome: Outcome, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Write the last two tokens of each sequence where the next block begins; returns report, rows, accepted."""
    tokens[:, :2].copy_(outcome.last_two)
    return outcome.report, outcome.rows, outcome.accepted


def finish_recipe(vocabulary: int) -> Recipe:
    """`descent.finish` at the root, all there is of a tree without nodes: inputs and outputs as of `verify_recipe`."""

    def function(noise: Tensor, tokens: Tensor, tempered: Tensor) -> tuple[Tensor, ...]:
        start = descent.start(tempered.shape[0], 0, 0, tempered.shape[2], tokens.device)
        return ended(descent.finish(PLAIN, tempered, tokens[:, 1:2], to_gumbel(noise.clone()), start), tokens)

    return recipe(
        "finish (the last token)", function, None, vocabulary, (torch.zeros(BATCH, 2, group_size(WORDS)), "02"),
        (torch.zeros(BATCH, 2, dtype=torch.long), "0"), (torch.zeros(BATCH, 1, WORDS), "02"),
    )  # fmt: skip


def accept_recipe(*dtypes: torch.dtype) -> Recipe:
    """`cache.accept`, with storages of these types, the target's and, if there is one, the drafter's.

    Inputs: rows, accepted, length, which becomes the new one, the storages' first column, the storages.
    """

    def function(rows: Tensor, accepted: Tensor, length: Tensor, scratch: Tensor, *storages: Tensor) -> tuple[()]:
        for storage, previous in zip(storages, (False, True), strict=False):
            columns, positions = cache.accepted_columns(rows, length, previous)
            cache.copy_columns(storage, columns, positions + scratch)
        length += accepted + 1
        return ()

    rows, numbers = torch.arange(3).expand(BATCH, -1).contiguous(), torch.zeros(BATCH, dtype=torch.long)
    storages = [torch.zeros(3, 2, BATCH + 2, 4, 20, 5 + lane, dtype=dtype) for lane, dtype in enumerate(dtypes)]
    return recipe(
        "accept (moves keys and values)", function, dtypes, 1,
        (rows, "01"), (numbers, "0"), (numbers.clone(), "0"), (torch.tensor(3), ""),
        *((storage, "02345") for storage in storages),
    )  # fmt: skip
