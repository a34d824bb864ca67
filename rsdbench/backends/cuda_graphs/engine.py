"""The phases of one sequence's blocks as recordings, which are replayed as one piece each.

At batch 1 a GPU waits for Python: a drafter's forward is hundreds of kernels of microseconds each. A recording has
static shapes and static memory, so all that phases read and write lies in memory that stays, and forwards read the
prefix up to a multiple of `BUCKET` positions. Batches of several sequences, which shrink as sequences end, run as they
stand.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from rsdbench.backends.cuda_graphs.all_nodes import follow, verdicts, whole_tree
from rsdbench.backends.cuda_graphs.fused import fused
from rsdbench.backends.cuda_graphs.graphs import Function, Graphs, bucket, is_recording
from rsdbench.backends.cuda_graphs.row_layers import use_row_layers
from rsdbench.backends.eager import CachedLM, EagerBackend, EagerEngine, few_kernels
from rsdbench.backends.projections import join_projections
from rsdbench.decoding.backend import Backend, Job
from rsdbench.decoding.drafter import is_model
from rsdbench.decoding.forward import Rows, attention_bias
from rsdbench.decoding.grow import Growth, fill_level, grow
from rsdbench.decoding.kv_cache import commit
from rsdbench.decoding.randomness import Numbers
from rsdbench.decoding.tree import DraftTree, Memory
from rsdbench.decoding.verify import Verified, finish
from rsdbench.sampling.distributions import Sampling
from rsdbench.verification.lift import Lifted


class CudaGraphsEngine(EagerEngine):
    """Makes backends that record, and holds recordings and their memory."""

    name = "CUDA graphs"

    def __init__(self, target: Any, drafter: Any) -> None:
        for model in (target, drafter) if is_model(drafter) else (target,):
            join_projections(model)
            use_row_layers(model)
        super().__init__(target, drafter)
        self.graphs = Graphs()

    def backend(self, job: Job) -> Backend:
        """A backend for a batch."""
        if len(job.prompts) == 1:
            return CudaGraphsBackend(job, self)
        batch = EagerBackend(job, self)
        batch.name = self.name
        return batch


class CudaGraphsBackend(EagerBackend):
    """See `Backend`."""

    name = CudaGraphsEngine.name

    def __init__(self, job: Job, engine: CudaGraphsEngine) -> None:
        self.graphs, self.kv = engine.graphs, count()
        super().__init__(job, engine)
        self.place = torch.arange(bucket(job.positions), device=self.device)

    def memory(self, engine: CudaGraphsEngine) -> Memory:
        """The same for all batches that ask for such a buffer."""
        graphs, device = engine.graphs, self.device
        return lambda name, shape, dtype: graphs.memory((name, shape), shape, 0, dtype, device)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for a part of a KV cache. What an earlier batch has left in it is hidden by the mask, and finite."""
        return self.graphs.memory(("kv", next(self.kv)), shape, 4, dtype, device)

    def cached(self, model: Any, previous: bool) -> CachedLM:
        """A model with a KV cache in memory that stays."""
        job, layouts, device = self.job, self.engine.layouts[model], self.device
        return CachedLM(
            model, layouts, job.shape, 1, bucket(job.positions), previous, self.zeros,
            lambda: nullcontext() if is_recording() else few_kernels(device), self.engine.vocabulary,
        )  # fmt: skip

    def positions_read(self) -> int:
        """See `EagerBackend`."""
        return bucket(max(1, self.lengths[0]))

    def phase(self, function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Replay one of the functions below, recorded for what it depends on beside its inputs."""
        job, read = self.job, self.positions_read()
        key = function.__name__, read, job.strategy, job.rule, job.shape, job.sampling, job.limit
        return self.graphs.run(key, function, inputs)

    def draft(self, numbers: Numbers) -> DraftTree:
        """See `Backend`."""
        if self.proposer:
            return super().draft(numbers)
        if self.drafter is not None:
            self.phase(self.drafted, self.length, *self.tree, *numbers.drafts)
        return self.tree

    def drafted(self, length: Tensor, *inputs: Tensor) -> tuple[()]:
        """All levels."""
        tree, noise = DraftTree(*inputs[:5]), inputs[5:]
        frontier, prefix = self.root, self.place[: self.positions_read()]
        fill = partial(fused(fill_level), self.job.strategy, self.job.limit)
        for (slots, nodes, depth), own in zip(self.levels, noise, strict=True):
            frontier = grow(self.log_q, fill, Growth(slots, nodes, depth, length, prefix, own, frontier), tree)
        return ()

    def log_q(self, rows: Rows) -> Tensor:
        """See `EagerBackend`."""
        return fused(distribution)(self.job.sampling, self.drafter.logits(rows, bias=fused(attention_bias)))

    def score(self, tree: DraftTree) -> Tensor:
        """See `Backend`."""
        return self.phase(self.scored, self.length, tree.tokens, tree.ancestors)[0]

    def scored(self, length: Tensor, tokens: Tensor, ancestors: Tensor) -> tuple[Tensor]:
        """The target's log-probabilities."""
        prefix = self.place[: self.positions_read()]
        rows = Rows(tokens[:, 1:], self.depths, ancestors[:, 1:], length, prefix, self.rows + 1)
        logits = self.target.logits(rows, bias=fused(attention_bias))
        return (fused(Sampling.log_probs)(self.job.sampling, logits),)

    def verify(self, tree: DraftTree, log_p: Tensor, numbers: Numbers) -> Verified:
        """See `Backend`."""
        return Verified(*self.phase(self.verified, *tree, log_p, numbers.uniforms, numbers.last))

    def verified(self, *inputs: Tensor) -> Verified:
        """All nodes at once, where a rule looks at single nodes."""
        tree, (log_p, uniforms, noise) = DraftTree(*inputs[:5]), inputs[5:]
        job, shape = self.job, self.job.shape
        if shape.depth and isinstance(job.rule, Lifted):
            found = fused(verdicts)(
                job.rule.rule, job.sampling, tree, log_p, uniforms, self.depths, shape.depth, shape.fanout
            )  # fmt: skip
            outcome = follow(job.sampling, tree, log_p, found, shape.depth)
        else:
            outcome = fused(whole_tree)(job.rule, job.sampling, tree, log_p, uniforms, self.expanded, shape.fanout)
        return fused(finish)(tree, outcome, noise)

    def move(self, rows: Tensor, verified: Verified) -> None:
        """See `EagerBackend`."""
        self.phase(self.moved, *verified[:3], self.tree.tokens, self.length)

    def moved(self, *inputs: Tensor) -> tuple[()]:
        """Commit in all caches."""
        runs = [model.storage.runs for model in self.models]
        commit(*inputs, self.target.storage.scratch, *runs, *[()] * (2 - len(runs)))
        return ()


def distribution(sampling: Sampling, logits: Tensor) -> Tensor:
    """Log-probabilities after top-p."""
    return sampling.truncate(sampling.log_probs(logits))
