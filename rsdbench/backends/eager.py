"""The phases of a block as they stand, operator by operator. It is the backend that the others are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rsdbench.backends.clock import Clock
from rsdbench.backends.proposer import Proposer
from rsdbench.backends.repeat import run_to_the_end, stop_early
from rsdbench.decoding.backend import Job
from rsdbench.decoding.drafter import is_model
from rsdbench.decoding.forward import Rows, attention_bias, forward, prompt_rows
from rsdbench.decoding.grow import Growth, fill_level, grow
from rsdbench.decoding.kv_cache import KVStorage, Layout, SlotCache, commit
from rsdbench.decoding.randomness import Numbers, Randomness
from rsdbench.decoding.shapes import TreeShape
from rsdbench.decoding.tree import DraftTree, Memory, new_tree
from rsdbench.decoding.verify import Verified, finish, view
from rsdbench.models.layouts import layouts_of, masks, width_of, windows_of
from rsdbench.models.placement import head_device
from rsdbench.models.prefixes import Prefixes
from rsdbench.sampling.distributions import Sampling, wide
from rsdbench.sampling.gumbel import group_size

PIECE = 2**20  # numbers; what is larger is tempered piece by piece in its own memory


class CachedLM:
    """A causal LM with the KV cache of one batch. previous: whether it is given the token before the root anew.

    vocabulary: as in `forward`.
    """

    def __init__(
        self, model: Any, layouts: Sequence[Layout], shape: TreeShape, batch: int, positions: int, previous: bool,
        zeros: Callable[..., Tensor] = torch.zeros, guard: Callable[[], AbstractContextManager] = nullcontext,
        vocabulary: int | None = None,
    ) -> None:  # fmt: skip
        """zeros: gives memory of a shape, dtype and device; guard: what holds while the model computes."""
        self.model, self.previous, self.guard, self.vocabulary = model, previous, guard, vocabulary
        self.windows = windows_of(model.config)
        self.storage = KVStorage(layouts, batch, shape.budget, positions, zeros)
        self.use(batch)

    def use(self, batch: int) -> None:
        """From now on the first so many sequences are decoded."""
        self.cache = SlotCache(self.storage.views(batch))

    def logits(self, rows: Rows, keep: int = 0, bias: Callable[..., Tensor] = attention_bias) -> Tensor:
        """Forward rows: logits [B, R, V], or those of the last `keep` rows."""
        mask = masks(self.windows, bias, rows, self.previous, self.model.dtype)
        self.cache.window(rows.slots, width_of(mask))
        with self.guard():
            return forward(self.model, rows, mask, self.cache, keep, self.vocabulary)


class EagerEngine:
    """Makes backends of operators as they stand."""

    name = "eager"

    def __init__(self, target: Any, drafter: Any) -> None:
        self.target, self.drafter, self.prefixes = target, drafter, Prefixes()
        self.models = [target, drafter] if is_model(drafter) else [target]
        self.vocabulary = target.config.get_text_config().vocab_size
        self.layouts = {model: layouts_of(model, head_device(model)) for model in self.models}

    def backend(self, job: Job) -> EagerBackend:
        """A backend for a batch."""
        return EagerBackend(job, self)


class EagerBackend:
    """See `Backend`."""

    name = EagerEngine.name
    fallbacks: tuple[str, ...] = ()

    def __init__(self, job: Job, engine: EagerEngine) -> None:
        self.job, self.engine = job, engine
        shape, batch = job.shape, len(job.prompts)
        self.device = head_device(engine.target)
        self.empty = self.memory(engine)
        self.lengths = [len(prompt) - 1 for prompt in job.prompts]  # the host's copy of `length`
        last_two = torch.tensor([(p[-2] if len(p) > 1 else 0, p[-1]) for p in job.prompts], device=self.device)
        vocabulary = engine.vocabulary
        self.buffers = new_tree(shape, last_two, vocabulary, self.empty)  # of all sequences
        self.all_lengths = self.empty("length", (batch,), torch.long)
        self.all_lengths.copy_(torch.tensor(self.lengths))
        self.target = self.cached(engine.target, False)
        own = shape.depth > 0 and not is_model(engine.drafter)
        self.proposer = Proposer(engine.drafter, job, vocabulary) if own else None
        self.drafter = self.cached(engine.drafter, True) if shape.depth and not own else None
        self.models = [m for m in (self.target, self.drafter) if m is not None]
        levels = zip((1, *shape.widths), shape.widths, strict=False)
        noise = [job.strategy.noise_rows(above, width) for above, width in levels if not own]
        self.random = Randomness(
            job.seed, noise, group_size(vocabulary), shape.budget, self.device, self.empty,
        )  # fmt: skip
        self.place = torch.arange(job.positions, device=self.device)
        self.levels = level_tables(shape, self.device)
        self.rows = torch.arange(1 + shape.budget, device=self.device)  # of the tree
        self.depths = torch.tensor(shape.depths[1:], device=self.device)
        self.expanded = rows_by_level(shape).to(self.device)
        self.use(batch)

    def memory(self, engine: EagerEngine) -> Memory:
        """Where buffers come from. It must not hold this backend: its memory is to go with its last user."""
        device = self.device
        return lambda name, shape, dtype: torch.empty(shape, dtype=dtype, device=device)

    def cached(self, model: Any, previous: bool) -> CachedLM:
        """A model with the KV cache of this batch."""
        job, layouts, guard = self.job, self.engine.layouts[model], partial(few_kernels, self.device)
        return CachedLM(
            model, layouts, job.shape, len(job.prompts), job.positions, previous, guard=guard,
            vocabulary=self.engine.vocabulary,
        )  # fmt: skip

    def use(self, batch: int) -> None:
        """Point at the first so many rows of all buffers."""
        self.tree, self.length = self.buffers.of(batch), self.all_lengths[:batch]
        self.root = root_frontier(batch, self.device)
        for model in self.models:
            model.use(batch)

    def clock(self) -> Clock:
        """A clock that starts now."""
        return Clock(self.device)

    def numbers(self) -> Numbers:
        """See `Backend`."""
        return self.random.block(len(self.lengths))

    def prefill(self) -> None:
        """See `Backend`. Equal prompts are computed once, and so are prompts that were seen before."""
        prompts, width, prefixes = self.job.prompts, max(self.lengths), self.engine.prefixes
        for cached in self.models if width else ():
            kept = prefixes.get(cached.model, prompts)
            if kept is not None:
                cached.storage.restore(kept)
                continue
            place: dict[tuple[int, ...], int] = {}
            copies = [place.setdefault(tuple(p), len(place)) for p in prompts]
            tokens = torch.tensor([[*p[:-1], *[0] * (width + 1 - len(p))] for p in place], device=self.device)
            cached.use(len(place))
            self.forward_prompts(cached, tokens)
            cached.use(len(prompts))
            if len(place) < len(prompts):
                cached.storage.repeat(torch.tensor(copies), width)
            prefixes.keep(cached.model, prompts, cached.storage.prefix(width))

    def forward_prompts(self, cached: CachedLM, tokens: Tensor) -> None:
        """Put prompts [B, P], padded on the right, into a cache."""
        cached.logits(prompt_rows(tokens, 0, tokens.shape[1], cached.storage.scratch), keep=1)

    def positions_read(self) -> int:
        """Positions of the prefix that this block's forwards read."""
        return max(self.lengths)

    def draft(self, numbers: Numbers) -> DraftTree:
        """See `Backend`."""
        if self.proposer:
            self.proposer.fill(self.tree, self.lengths)
            return self.tree
        frontier = self.root
        for (slots, nodes, depth), noise in zip(self.levels, numbers.drafts, strict=True):
            growth = Growth(slots, nodes, depth, self.length, self.place[: self.positions_read()], noise, frontier)
            frontier = grow(self.log_q, partial(fill_level, self.job.strategy, self.job.limit), growth, self.tree)
        return self.tree

    def log_q(self, rows: Rows) -> Tensor:
        """The drafter's log-probabilities of rows, after top-p."""
        sampling = self.job.sampling
        return sampling.truncate(log_probs_in_place(sampling, self.drafter.logits(rows)))

    def score(self, tree: DraftTree) -> Tensor:
        """See `Backend`."""
        return log_probs_in_place(self.job.sampling, self.target.logits(self.target_rows(tree)))

    def target_rows(self, tree: DraftTree) -> Rows:
        """The root and all nodes."""
        prefix = self.place[: self.positions_read()]
        return Rows(tree.tokens[:, 1:], self.depths, tree.ancestors[:, 1:], self.length, prefix, self.rows + 1)

    def verify(self, tree: DraftTree, log_p: Tensor, numbers: Numbers) -> Verified:
        """See `Backend`."""
        job, repeat = self.job, stop_early if self.device.type == "cpu" else run_to_the_end
        seen = view(job.sampling, tree, log_p, self.expanded, job.shape.fanout)
        return finish(tree, job.rule(seen, numbers.uniforms, repeat), numbers.last)

    def commit(self, verified: Verified) -> list[list[int]]:
        """See `Backend`."""
        read = to_host(verified.report)
        rows = verified.rows
        if self.device.type == "cpu":  # deeper rows than were accepted need not move
            rows = rows[:, : max(accepted for accepted, *_ in read()) + 1]
        self.move(rows, verified)
        return self.count(read())

    def move(self, rows: Tensor, verified: Verified) -> None:
        """Commit in all caches."""
        runs = [model.storage.runs for model in self.models]
        commit(
            verified.accepted, rows, verified.last_two, self.tree.tokens, self.length, self.target.storage.scratch,
            *runs, *[()] * (2 - len(runs)),
        )  # fmt: skip

    def count(self, report: list[list[int]]) -> list[list[int]]:
        """Move the host's lengths forward."""
        self.lengths = [length + line[0] + 1 for length, line in zip(self.lengths, report, strict=True)]
        if self.proposer:
            self.proposer.append(report)
        return report

    def keep(self, rows: list[int]) -> None:
        """See `Backend`."""
        if not rows or len(rows) == len(self.lengths):
            return
        # beside tokens and lengths, what a tree's buffers hold is drafted anew, or is the same in all rows
        moved = [(source, target) for target, source in enumerate(rows) if source != target]
        if moved:
            sources, targets = map(list, zip(*moved, strict=True))
            for model in self.models:
                model.storage.move(sources, targets)
            for buffer in (self.all_lengths, self.buffers.tokens):
                buffer[targets] = buffer[sources]
        self.lengths = [self.lengths[row] for row in rows]
        if self.proposer:
            self.proposer.keep(rows)
        self.use(len(rows))


def few_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Attention for lengths that do not recur: without cuDNN's, which makes a plan for every new one.

    Decoding one sequence with OPT-13B without CUDA graphs took 141 ms a token with these plans on an H100, and 35
    without. For graphs, whose lengths recur, its kernels are the faster ones.
    """
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def to_host(x: Tensor) -> Callable[[], list]:
    """Begin to copy a tensor to the host: what waits for the copy alone, not for work queued after it, and reads it."""
    if x.device.type == "cpu":
        here = x.tolist()
        return lambda: here
    here = x.to("cpu", non_blocking=True)  # in pinned memory
    copied = torch.Event(x.device.type)
    copied.record(torch.accelerator.current_stream(x.device))

    def wait() -> list:
        copied.synchronize()
        return here.tolist()

    return wait


def log_probs_in_place(sampling: Sampling, logits: Tensor) -> Tensor:
    """`Sampling.log_probs`, of many numbers in the logits' own memory: there is no room for a copy of them."""
    logits = wide(logits).contiguous()
    if logits.numel() <= PIECE:
        return sampling.log_probs(logits)
    if not sampling.greedy:
        for piece in logits.view(-1, logits.shape[-1]).split(max(1, PIECE // logits.shape[-1])):
            piece.copy_(sampling.log_probs(piece))
    return logits


def root_frontier(batch: int, device: torch.device) -> Tensor:
    """The root as the level above the first one, [3, B, 1]: valid, with log-probability and score 0."""
    return torch.tensor([1.0, 0.0, 0.0], device=device).view(3, 1, 1).expand(3, batch, 1).contiguous()


def rows_by_level(shape: TreeShape) -> Tensor:
    """`TreeShape.levels`, [L, W]."""
    return torch.tensor(shape.levels, dtype=torch.long).view(shape.depth, max(1, *map(len, shape.levels), 0))


def level_tables(shape: TreeShape, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
    """slots, nodes and depth of each level, as in `Growth`."""
    tables = []
    for level, (node, width) in enumerate(zip(shape.starts, shape.widths, strict=False)):
        # the first level is drawn behind the token before the root and the root
        first, count = (0, 2) if level == 0 else (2 + shape.starts[level - 1], shape.widths[level - 1])
        ranges = torch.arange(first, first + count), torch.arange(node, node + width), torch.tensor(level)
        tables.append(tuple(x.to(device) for x in ranges))
    return tables
