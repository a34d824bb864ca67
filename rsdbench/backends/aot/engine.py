"""The phases of a block in compiled calls, with all arguments prepared that do not change from block to block.

After a large model's forward nothing else is left in the processor's caches: there an operator or a line of Python
costs 10 microseconds, and a function of a few lines 50. So next to nothing is left between the calls, and what they
write lies in memory that stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rsdbench.backends.aot.library import SMALL_VOCABULARY, Library
from rsdbench.backends.aot.recipes import Make, Phases, forward_recipe, phases
from rsdbench.backends.eager import PIECE, CachedLM, EagerBackend, EagerEngine, log_probs_in_place
from rsdbench.backends.projections import join_projections
from rsdbench.decoding.backend import Backend, Job
from rsdbench.decoding.forward import prompt_rows
from rsdbench.decoding.randomness import Numbers
from rsdbench.decoding.tree import DraftTree
from rsdbench.decoding.verify import Verified
from rsdbench.errors import UsageError
from rsdbench.notes import note


class AOTEngine(EagerEngine):
    """Makes backends of compiled code, and holds the libraries. Models and code live on a CPU."""

    name = "compiled"

    def __init__(self, target: Any, drafter: Any) -> None:
        """Raise UsageError as `Recipe.build` does, for the target's forward."""
        super().__init__(target, drafter)
        for model in self.models:
            join_projections(model)
        self.libraries: dict[Make, Library | None] = {}
        small = target.config.get_text_config().vocab_size <= SMALL_VOCABULARY
        self.libraries[forward_recipe, target, small] = forward_recipe(target, small).library()

    def backend(self, job: Job) -> Backend:
        """Of compiled code; where a phase of the job's method cannot be compiled, all phases run as they stand."""
        wanted = phases(self.target, self.drafter, self.layouts, job.strategy, job.rule, job.shape, job.sampling)
        found = Phases(*(make and self.library(make) for make in wanted))
        missing = [name for name in Phases._fields if getattr(wanted, name) and getattr(found, name) is None]
        if not missing:
            return AOTBackend(job, self, found)
        eager = EagerBackend(job, self)
        eager.fallbacks = tuple(missing)
        return eager

    def library(self, make: Make) -> Library | None:
        """The library of a recipe; None, which is remembered too, where it cannot be compiled."""
        if make not in self.libraries:
            function, *of = make
            try:
                with torch.inference_mode(False), torch.no_grad():  # a loop cannot be exported in inference mode
                    self.libraries[make] = function(*of).library()
            except UsageError as error:
                note(f"a method runs uncompiled: {error}")
                self.libraries[make] = None
        return self.libraries[make]


class AOTBackend(EagerBackend):
    """See `Backend`."""

    name = AOTEngine.name

    def __init__(self, job: Job, engine: AOTEngine, libraries: Phases) -> None:
        self.call = Phases(*(library and library.run for library in libraries))
        self.temperature = torch.tensor(float(job.sampling.temperature))
        self.top_p, self.limit = torch.tensor(float(job.sampling.top_p)), torch.tensor(job.limit)
        self.vocabulary = engine.target.config.get_text_config().vocab_size
        self.normalised = self.vocabulary <= SMALL_VOCABULARY and not job.sampling.greedy
        super().__init__(job, engine)
        self.scratch = torch.tensor(self.target.storage.scratch)

    def use(self, batch: int) -> None:
        """Point at the first so many rows of all buffers, and prepare the calls of the blocks to come."""
        super().use(batch)
        tree, length = self.tree, self.length
        self.given = tree.tokens[:, 1:], tree.ancestors[:, 1:]  # to the target: without the token before the root
        self.behind = [self.rows + 1, self.temperature, *self.target.cache.keys_values]
        if self.drafter is not None:
            self.before = [[*table, length] for table in self.levels]
            numbers = [self.temperature, self.top_p, self.limit]
            self.after = [*tree, *numbers, *self.drafter.cache.keys_values]

    def forward_prompts(self, cached: CachedLM, tokens: Tensor) -> None:
        """The target's by the compiled forward, in pieces whose log-probabilities are not large.

        It takes half the time, and leaves weights and code in the processor's caches as the first block needs them.
        """
        if cached is not self.target or not self.normalised:
            super().forward_prompts(cached, tokens)
            return
        batch, width = tokens.shape
        piece = max(1, PIECE // (batch * self.vocabulary))
        for first in range(0, width, piece):
            rows = prompt_rows(tokens, first, min(first + piece, width), cached.storage.scratch)
            rows = rows._replace(ancestors=rows.ancestors.expand(batch, -1, -1))
            inputs = (x.contiguous() for x in rows)
            self.call.target([*inputs, self.temperature, *cached.cache.keys_values])

    def draft(self, numbers: Numbers) -> DraftTree:
        """See `Backend`."""
        if self.proposer:
            return super().draft(numbers)
        frontier, prefix = self.root, self.place[: max(self.lengths)]
        for before, noise in zip(self.before, numbers.drafts, strict=True) if self.drafter else ():
            (frontier,) = self.call.draft([*before, prefix, noise.contiguous(), frontier, *self.after])
        return self.tree

    def score(self, tree: DraftTree) -> Tensor:
        """See `Backend`."""
        tokens, ancestors = self.given
        prefix = self.place[: max(self.lengths)]
        (out,) = self.call.target(
            [tokens.contiguous(), self.depths, ancestors.contiguous(), self.length, prefix, *self.behind]
        )
        return out if self.normalised else log_probs_in_place(self.job.sampling, out)

    def verify(self, tree: DraftTree, log_p: Tensor, numbers: Numbers) -> Verified:
        """See `Backend`."""
        if not self.job.shape.depth:
            return Verified(*self.call.verify([tree.tokens, log_p, numbers.last, self.top_p]))
        last = numbers.last.contiguous()
        return Verified(*self.call.verify([*tree, log_p, numbers.uniforms, last, self.top_p, self.expanded]))

    def move(self, rows: Tensor, verified: Verified) -> None:
        """Commit in all caches."""
        runs = [run for model in self.models for run in model.storage.runs]
        self.call.commit(
            [
                verified.accepted,
                rows.contiguous(),
                verified.last_two,
                self.tree.tokens,
                self.length,
                self.scratch,
                *runs,
            ]
        )
