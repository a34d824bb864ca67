"""Ways to be wrong that have been seen or are easy to fall into. Level 2 must reject every one of them.

Some can befall any method, one of a user's own too; others belong to a method that ships.

Each mutant is a context manager that replaces a piece of the engine from outside; the engine knows nothing of them.
Most of them raise block efficiency, which is why a benchmark that does not look for them would be misled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from rsdbench.backends.aot.engine import AOTEngine
from rsdbench.backends.aot.library import compiler_at_hand
from rsdbench.backends.choice import COMPILED, EAGER
from rsdbench.backends.eager import CachedLM, EagerBackend, EagerEngine
from rsdbench.backends.repeat import stop_early
from rsdbench.decoding.backend import Backend
from rsdbench.decoding.forward import Rows, Window, attention_bias
from rsdbench.decoding.randomness import Numbers
from rsdbench.decoding.strategies import Frontier, Level
from rsdbench.decoding.tree import DraftTree
from rsdbench.decoding.verify import Verified, finish, view
from rsdbench.methods import METHODS, get_shape, load
from rsdbench.sampling.distributions import Sampling
from rsdbench.verification import Distributions, NodeRule, Outcome, Repeat, TreeRule, TreeView, Verdict
from rsdbench.verification.bottom_up import BottomUp
from rsdbench.verification.k_seq import k_seq

T1, SHARP = Sampling.at(), Sampling.at(0.3, 0.9)


@dataclass(frozen=True)
class Mutant:
    """What is broken, in which method and structure, at which sampling, and the context in which it is.

    backend: that decodes it.
    """

    description: str
    method: str
    structure: str | None
    sampling: Sampling
    broken: Callable[[], AbstractContextManager]
    backend: str = EAGER


@contextmanager
def with_order(method: str, key: Callable[[Level, Tensor], Tensor]) -> Iterator[None]:
    """`method` with each level's siblings sorted by a key [B, W] of the level and of its drafts' log-probabilities."""
    honest = load(METHODS[method].strategy)

    class Reordered(honest):
        @staticmethod
        def expand(above: Frontier, log_q: Tensor, noise: Tensor, width: int) -> Level:
            level = honest.expand(above, log_q, noise, width)
            row = torch.arange(len(log_q)).unsqueeze(1)
            by_key = key(level, log_q[row, level.parents, level.tokens]).argsort(dim=1, stable=True)
            by_parent = level.parents.gather(1, by_key).argsort(dim=1, stable=True)
            order = by_key.gather(1, by_parent)
            tokens, parents, *frontier = (x.gather(1, order) for x in (level.tokens, level.parents, *level.frontier))
            return Level(tokens, parents, Frontier(*frontier))

    with patch.dict(METHODS, {method: replace(METHODS[method], strategy=Reordered)}):
        yield


@contextmanager
def with_rule(method: str, rule: NodeRule | TreeRule) -> Iterator[None]:
    """`method` verifies with another rule."""
    with patch.dict(METHODS, {method: replace(METHODS[method], rule=rule)}):
        yield


@contextmanager
def with_backend(broken: type[EagerBackend]) -> Iterator[None]:
    """All methods run on a broken backend."""
    with patch.object(EagerEngine, "backend", lambda engine, job: broken(job, engine)):
        yield


@contextmanager
def with_stale_noise(engine: type[EagerEngine]) -> Iterator[None]:
    """The noise of a batch's first block serves in all its blocks. The first token's distribution stays right."""
    honest = engine.backend
    with patch.object(engine, "backend", lambda self, job: with_first_noise(honest(self, job))):
        yield


def with_first_noise(backend: Backend) -> Backend:
    """A backend that gives fresh uniforms and stale noise. Batches only shrink."""
    honest, first = backend.numbers, []

    def numbers() -> Numbers:
        fresh = honest()
        if not first:
            first.append(Numbers(tuple(x.clone() for x in fresh.drafts), fresh.last.clone(), fresh.uniforms))
        batch = len(fresh.last)
        return Numbers(tuple(x[:batch] for x in first[0].drafts), first[0].last[:batch], fresh.uniforms)

    backend.numbers = numbers
    return backend


@contextmanager
def with_broken_rule(method: str, broken: Callable[..., Verdict | Outcome]) -> Iterator[None]:
    """`method` verifies with `broken`, which is given its own rule first."""
    with with_rule(method, partial(broken, load(METHODS[method].rule))):
        yield


def sharper_q(rule: NodeRule, p: Tensor, q: Tensor, drafts: Tensor, present: Tensor) -> Verdict:
    """A rule that is told a q at half the temperature that the drafts were drawn at."""
    squared = q * q
    return rule(p, squared / squared.sum(-1, keepdim=True), drafts, present)


def residual_is_p(rule: NodeRule, p: Tensor, q: Tensor, drafts: Tensor, present: Tensor) -> Verdict:
    """A rule after whose rejections the token comes from p itself: what the drafts have taken is counted twice."""
    return Verdict(rule(p, q, drafts, present).accept, p)


def not_renormalised(rule: NodeRule, p: Tensor, q: Tensor, drafts: Tensor, present: Tensor) -> Verdict:
    """A rule applied draft by draft, in which the draft law keeps its mass when siblings leave it."""
    accept, residual = [], p
    for x, here in zip(drafts.split(1, 1), present.split(1, 1), strict=True):
        step = rule(residual, q, x, here)
        accept.append(step.accept)
        residual = step.residual
        q = torch.where(here, q.scatter(1, x, 0.0), q)
    return Verdict(torch.cat(accept, 1), residual)


def sharper_q_of_trees(rule: TreeRule, tree: TreeView, uniforms: Tensor, repeat: Repeat) -> Outcome:
    """As `sharper_q`, for a rule that sees whole trees."""
    squared = Distributions((2 * tree.q.log).log_softmax(-1), tree.q.truncate)
    return rule(tree._replace(q=squared), uniforms, repeat)


def last_from_p(rule: TreeRule, tree: TreeView, uniforms: Tensor, repeat: Repeat) -> Outcome:
    """As `residual_is_p`, for a rule that sees whole trees."""
    rows = rule(tree, uniforms, repeat).rows
    return Outcome(rows, tree.p.at(rows.gather(1, (rows > 0).sum(1, keepdim=True)).squeeze(1)))


class StopsTooLittle(BottomUp):
    """Bottom-up verification in which a row stops with the mass itself."""

    def left(self, scale: Tensor, mass: Tensor) -> Tensor:
        """Not s / (s + 1 - a)."""
        return mass


class ParentsFirst(BottomUp):
    """Bottom-up verification that begins at the root's children."""

    def accepted_path(self, tree: TreeView, stops: Tensor) -> Tensor:
        """Rows below others that stop are not looked at."""
        above = tree.ancestors[:, 1:, 1:] & ~torch.eye(stops.shape[1], dtype=torch.bool)
        return super().accepted_path(tree, stops & ~(above & stops.unsqueeze(1)).any(2))


def initial_number(p: Tensor, q: Tensor, drafts: Tensor, present: Tensor) -> Verdict:
    """K-SEQ whose rho and residual count the sequences that were drafted, not those that survive at this level."""
    everyone = k_seq(p, q, drafts, torch.ones_like(present))
    return Verdict(everyone.accept * present, everyone.residual)


class UntemperedBonus(EagerBackend):
    """The token behind a wholly accepted path comes from the distribution at temperature 1 and top-p 1."""

    def verify(self, tree: DraftTree, log_p: Tensor, numbers: Numbers) -> Verified:
        """The path is honest, the token behind it is not."""
        job = self.job
        seen = view(job.sampling, tree, log_p, self.expanded, job.shape.fanout)
        found = job.rule(seen, numbers.uniforms, stop_early)
        end = found.rows[:, -1]
        untempered = (log_p[torch.arange(len(end)), end] * job.sampling.temperature).softmax(-1)
        return finish(
            tree, Outcome(found.rows, torch.where(end.unsqueeze(1) > 0, untempered, found.last)), numbers.last
        )


class LeakyLM(CachedLM):
    """A model whose mask shows one position too many, once `leaks` is set."""

    leaks = False

    def logits(self, rows: Rows, keep: int = 0, bias: Callable[..., Tensor] = attention_bias) -> Tensor:
        """Forward rows."""
        if self.leaks:
            prefix = torch.arange(len(rows.prefix) + 1)

            def bias(rows: Rows, previous: bool, dtype: torch.dtype, window: Window) -> Tensor:
                return attention_bias(rows._replace(length=rows.length + 1, prefix=prefix), previous, dtype, window)

        return super().logits(rows, keep, bias)


class RejectedRowsVisible(EagerBackend):
    """Behind the accepted path lies a row of a rejected branch, and from the second block on the mask shows it."""

    def cached(self, model: Any, previous: bool) -> CachedLM:
        """A leaky model."""
        found = super().cached(model, previous)
        found.__class__ = LeakyLM
        return found

    def move(self, rows: Tensor, verified: Verified) -> None:
        """Commit a row more."""
        shape = self.job.shape
        first_nodes = torch.tensor([0, *(start + 1 for start in shape.starts[:-1])])
        behind = torch.arange(shape.depth + 1) > verified.accepted.unsqueeze(1)
        super().move(torch.where(behind, first_nodes, verified.rows)[:, : rows.shape[1] + 1], verified)
        for model in self.models:
            model.leaks = True


def by_id(level: Level, log_q: Tensor) -> Tensor:
    """Siblings by rising token id."""
    return level.tokens


def by_probability(level: Level, log_q: Tensor) -> Tensor:
    """Siblings by falling probability."""
    return -log_q


TOKEN_ID, PROBABILITY = "siblings in token-id order", "siblings in probability order"
STALE = "noise drawn once and reused in every block"
OWN = (
    Mutant(PROBABILITY, "rsd_c", "3-1", T1, partial(with_order, "rsd_c", by_probability)),
    Mutant(PROBABILITY, "rsd_s", "3x2", T1, partial(with_order, "rsd_s", by_probability)),
    Mutant("bonus token from the untempered law", "rsd_c", "2-2", SHARP,
           partial(with_backend, UntemperedBonus)),
    Mutant("K-SEQ with the initial K at every level", "spectr", "3x2", T1,
           partial(with_rule, "spectr", initial_number)),
    Mutant("a row stops with the mass that is left", "sd_bv", "6", T1, partial(with_rule, "sd_bv", StopsTooLittle())),
    Mutant("the shallowest row first", "sd_bv", "6", T1, partial(with_rule, "sd_bv", ParentsFirst())),
    Mutant("cache rows of a rejected branch left visible", "sd", "6", T1,
           partial(with_backend, RejectedRowsVisible)),
)  # fmt: skip


def mutants(methods: Iterable[str]) -> list[Mutant]:
    """All that these methods must be told from: what can befall any method, and what belongs to one that ships."""
    methods = list(methods)
    return [m for name in methods for m in generic(name)] + [m for m in OWN if m.method in methods]


def generic(method: str) -> list[Mutant]:
    """Ways for any method to be wrong, of those that make a difference to it."""
    own = METHODS[method]
    # at T = 1 blocks of many tokens hardly show it
    stale = Mutant(STALE, method, None, SHARP, partial(with_stale_noise, EagerEngine))
    if not own.structures:
        return on_engines(stale)
    smallest = own.structures[min(own.structures)]
    structure = max(smallest, key=lambda s: get_shape(method, s).fanout)
    broken = {"q at another temperature than the drafts'": sharper_q, "residual is p itself": residual_is_p}
    if own.whole_tree:
        broken = dict(zip(broken, (sharper_q_of_trees, last_from_p), strict=True))
    siblings = get_shape(method, structure).fanout > 1 and not own.independent
    if siblings and not own.whole_tree:
        broken["residual not renormalised over removed siblings"] = not_renormalised
    made = [
        Mutant(text, method, structure, T1, partial(with_broken_rule, method, rule)) for text, rule in broken.items()
    ]
    if siblings:
        made.append(Mutant(TOKEN_ID, method, structure, T1, partial(with_order, method, by_id)))
    return [*on_engines(replace(stale, structure=structure)), *made]


def on_engines(stale: Mutant) -> list[Mutant]:
    """The same on the eager backend and on the compiled one, where there is a compiler."""
    compiled = replace(stale, broken=partial(with_stale_noise, AOTEngine), backend=COMPILED)
    return [stale, compiled] if compiler_at_hand() else [stale]
