"""Ways to be wrong that have been seen or are easy to fall into. Level 2 must reject every one of them.

Some can befall any method, one of a user's own too; others belong to a method that ships.

Each mutant is a context manager that replaces a piece of the engine from outside; the engine knows nothing of them.
Most of them raise block efficiency, which is why a benchmark that does not look for them would be misled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from rsdbench.decoding import forward, loop, randomness
from rsdbench.decoding.descent import Outcome
from rsdbench.decoding.drafting import Drafting, Level
from rsdbench.decoding.methods import METHODS, get_shape
from rsdbench.decoding.tree import TreeShape
from rsdbench.sampling.distributions import Warp
from rsdbench.verification import Rule, Verdict
from rsdbench.verification.k_seq import k_seq

T1, SHARP = Warp(), Warp(0.3, 0.9)


@dataclass(frozen=True)
class Mutant:
    """What is broken, in which method and structure, at which warp, and the context in which it is."""

    description: str
    method: str
    structure: str | None
    warp: Warp
    broken: Callable[[], AbstractContextManager]


@contextmanager
def with_drafting(method: str, reorder: Callable[[Level, Tensor], Tensor]) -> Iterator[None]:
    """`method` with each level's siblings sorted by a key [B, W] of the level and of its drafts' log-probabilities."""
    honest = METHODS[method]
    kind = type(honest.drafting)

    class Reordered(kind):
        def expand(self, above: Level, log_q: Tensor, noise: Tensor, width: int) -> Level:
            level = super().expand(above, log_q, noise, width)
            row = torch.arange(len(log_q)).unsqueeze(1)
            key = reorder(level, log_q[row, level.parents, level.tokens])
            by_key = key.argsort(dim=1, stable=True)
            by_parent = level.parents.gather(1, by_key).argsort(dim=1, stable=True)
            order = by_key.gather(1, by_parent)
            return Level(*(None if x is None else x.expand_as(order).gather(1, order) for x in level))

    drafting = Reordered(honest.drafting.form, honest.drafting.pattern, honest.drafting.structures)
    with registered(method, drafting, honest.rule):
        yield


@contextmanager
def registered(method: str, drafting: Drafting, rule: Rule) -> Iterator[None]:
    """`method` means another pair of drafting and rule."""
    with patch.dict(METHODS, {method: replace(METHODS[method], drafting=drafting, rule=rule)}):
        yield


@contextmanager
def with_rule(method: str, rule: Rule) -> Iterator[None]:
    """`method` verifies with another rule."""
    with registered(method, METHODS[method].drafting, rule):
        yield


@contextmanager
def noise_drawn_once() -> Iterator[None]:
    """The noise of a batch's first block serves in all its blocks. The first token's law stays right."""
    fresh: Any = randomness.fresh
    kept: list[Any] = [None, None]  # a batch has a generator of its own

    def stale(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if kept[0] is not generator:
            kept[:] = generator, fresh(shape, generator)
        return kept[1][: shape[0]].clone()  # batches only shrink; Gumbel noise takes the uniforms' place

    with patch.object(randomness, "fresh", stale):
        yield


@contextmanager
def with_broken_rule(method: str, broken: Callable[..., Verdict]) -> Iterator[None]:
    """`method` verifies with `broken`, which is given its own rule first."""
    with with_rule(method, partial(broken, METHODS[method].rule)):
        yield


def sharper_q(rule: Rule, p: Tensor, q: Tensor, drafts: Tensor, present: Tensor) -> Verdict:
    """A rule that is told a q at half the temperature that the drafts were drawn at."""
    squared = q * q
    return rule(p, squared / squared.sum(-1, keepdim=True), drafts, present)


def residual_is_p(rule: Rule, p: Tensor, q: Tensor, drafts: Tensor, present: Tensor) -> Verdict:
    """A rule after whose rejections the token comes from p itself: what the drafts have taken is counted twice."""
    return Verdict(rule(p, q, drafts, present).accept, p)


def not_renormalised(rule: Rule, p: Tensor, q: Tensor, drafts: Tensor, present: Tensor) -> Verdict:
    """A rule applied draft by draft, in which the draft law keeps its mass when siblings leave it."""
    accept, residual = [], p
    for x, here in zip(drafts.split(1, 1), present.split(1, 1), strict=True):
        step = rule(residual, q, x, here)
        accept.append(step.accept)
        residual = step.residual
        q = torch.where(here, q.scatter(1, x, 0.0), q)
    return Verdict(torch.cat(accept, 1), residual)


def initial_number(p: Tensor, q: Tensor, drafts: Tensor, present: Tensor) -> Verdict:
    """K-SEQ whose rho and residual count the sequences that were drafted, not those that survive at this level."""
    everyone = k_seq(p, q, drafts, torch.ones_like(present))
    return Verdict(everyone.accept * present, everyone.residual)


@contextmanager
def untempered_bonus() -> Iterator[None]:
    """The token behind a wholly accepted path comes from the law at temperature 1 and top-p 1."""
    honest = loop.verify

    class LastLawUntempered(Warp):
        """Levels ask for a law each; the call after them is the bonus token's."""

        def cut(self, log_p: Tensor) -> Tensor:
            object.__setattr__(self, "calls", getattr(self, "calls", 0) + 1)
            return super().cut(log_p) if self.calls <= self.levels else (log_p * self.temperature).log_softmax(-1)

    def mutant(shape: TreeShape, tree: Any, tempered: Tensor, rule: Rule, warp: Warp, *noise: Tensor) -> Outcome:
        counting = LastLawUntempered(warp.temperature, warp.top_p)
        object.__setattr__(counting, "levels", shape.depth)
        return honest(shape, tree, tempered, rule, counting, *noise)

    with patch.object(loop, "verify", mutant):
        yield


@contextmanager
def rejected_rows_visible() -> Iterator[None]:
    """Behind the accepted path lies a row of a rejected branch, and from the second block on the mask shows it."""
    move, block, bias = loop.Decoder.move, loop.Decoder.block, forward.prefix_bias

    def leaving(self: loop.Decoder, most: int, rows: Tensor, accepted: Tensor, length: Tensor) -> tuple[Tensor]:
        level = torch.arange(self.shape.depth + 1)
        first_nodes = torch.tensor([0, *(start + 1 for start in self.shape.starts[:-1])])
        rows = torch.where(level > accepted.unsqueeze(1), first_nodes, rows)
        return move(self, min(most + 1, self.shape.depth), rows, accepted, length)

    def showing(length: Tensor, steps: Tensor, previous: Tensor, dtype: torch.dtype) -> Tensor:
        return bias(length + 1, torch.arange(len(steps) + 1), previous, dtype)

    def leaky(self: loop.Decoder, clock: Any) -> None:
        with ExitStack() as stack:
            if any(self.out.blocks):
                stack.enter_context(patch.object(forward, "prefix_bias", showing))
            block(self, clock)

    with patch.object(loop.Decoder, "move", leaving), patch.object(loop.Decoder, "block", leaky):
        yield


def by_id(level: Level, log_q: Tensor) -> Tensor:
    """Siblings by rising token id."""
    return level.tokens


def by_probability(level: Level, log_q: Tensor) -> Tensor:
    """Siblings by falling probability."""
    return -log_q


TOKEN_ID, PROBABILITY = "siblings in token-id order", "siblings in probability order"
STALE = "noise drawn once and reused in every block"
OWN = (
    Mutant(PROBABILITY, "rsd_c", "3-1", T1, partial(with_drafting, "rsd_c", by_probability)),
    Mutant(PROBABILITY, "rsd_s", "3x2", T1, partial(with_drafting, "rsd_s", by_probability)),
    Mutant("bonus token from the untempered law", "rsd_c", "2-2", SHARP, untempered_bonus),
    Mutant("K-SEQ with the initial K at every level", "spectr", "3x2", T1,
           partial(with_rule, "spectr", initial_number)),
    Mutant("cache rows of a rejected branch left visible", "sd", "6", T1, rejected_rows_visible),
)  # fmt: skip


def mutants(methods: Iterable[str]) -> list[Mutant]:
    """All that these methods must be told from: what can befall any method, and what belongs to one that ships."""
    methods = list(methods)
    return [m for name in methods for m in generic(name)] + [m for m in OWN if m.method in methods]


def generic(method: str) -> list[Mutant]:
    """Ways for any method to be wrong, of those that make a difference to it."""
    drafting = METHODS[method].drafting
    stale = Mutant(STALE, method, None, SHARP, noise_drawn_once)  # at T = 1 blocks of many tokens hardly show it
    if not drafting.structures:
        return [stale]
    smallest = drafting.structures[min(drafting.structures)]
    structure = max(smallest, key=lambda s: max(get_shape(method, s).fanouts))
    broken = {"q at another temperature than the drafts'": sharper_q, "residual is p itself": residual_is_p}
    siblings = max(get_shape(method, structure).fanouts) > 1 and not drafting.replacement
    if siblings:
        broken["residual not renormalised over removed siblings"] = not_renormalised
    made = [
        Mutant(text, method, structure, T1, partial(with_broken_rule, method, rule)) for text, rule in broken.items()
    ]
    if siblings:
        made.append(Mutant(TOKEN_ID, method, structure, T1, partial(with_drafting, method, by_id)))
    return [replace(stale, structure=structure), *made]
