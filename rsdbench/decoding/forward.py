"""One model at work on a batch: its cache and its forwards. Drafter and target have a lane each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rsdbench.backends.aot.forwards import CompiledForward, Rows
from rsdbench.backends.cuda_graphs.fused import fused
from rsdbench.decoding.cache import TreeCache, position_limit, prefix_bias, tree_bias
from rsdbench.decoding.tree import TreeShape, node_depths, own_rows, row_depths
from rsdbench.models.placement import head_device, layer_devices
from rsdbench.sampling.distributions import Warp, wide

PART = 2**20  # numbers of laws up to which a copy of them does not count


class Beginning(NamedTuple):
    """What all forwards of a model in one block share.

    length [B]: the root's position, at most `end`; bias [B, 1 + end], as `prefix_bias`, and positions [B, 2 + N], of
    the token before the root, of the root and of the nodes: not for compiled forwards, which make their own.
    """

    length: Tensor
    end: int
    bias: Tensor | None = None
    positions: Tensor | None = None


class Lane:
    """A Hugging Face causal LM with a cache of its own, for B sequences and trees of one shape.

    previous: whether the token before the root is given anew in each block, as it is to the drafter, which never saw
    its last draft: so it may be missing from the cache, and giving it always keeps shapes static; allocate: gives the
    storage of a lane whose forwards are recorded as CUDA graphs.
    Positions are always passed explicitly, and clamped to the model's last one: rows beyond it are never accepted.
    """

    def __init__(
        self, model: Any, shape: TreeShape, warp: Warp, batch: int, positions: int, previous: bool = False,
        compiled: CompiledForward | None = None, allocate: Callable[..., Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.shape, self.warp, self.compiled = model, shape, warp, compiled
        self.device = head_device(model)  # accelerate's hooks bring inputs to where they are read, and logits back
        self.dtype = model.dtype
        self.recorded = allocate is not None
        self.cache = TreeCache(layer_devices(model), batch, shape.budget, positions, allocate or torch.zeros)
        self.last_position = position_limit(model) - 1
        self.part = PART if self.device.type == "cpu" else 64 * PART
        self.previous = torch.tensor(int(previous), device=self.device)
        self.temperature = torch.tensor(float(warp.temperature), device=self.device)
        self.places: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # depths and columns of rows
        root = own_rows(shape, 0, self.device)
        self.two_rows = torch.cat([torch.zeros_like(root), root], 1)  # the token before the root, and the root

    def prefill(self, tokens: Tensor) -> None:
        """Put prompts into the cache, all but each one's last token: tokens [B, P], padded on the right.

        What padding writes lies behind each prompt's end, where it is hidden until it is written over.
        """
        if self.compiled is not None and self.compiled.tempered:
            self.compiled_prefill(tokens)
            return
        batch, width = tokens.shape
        start = self.cache.scratch
        self.cache.window(start, slice(start, start + width))
        future = torch.ones(width, width, dtype=torch.bool, device=self.device).triu(1)
        bias = torch.zeros(width, width, dtype=self.dtype, device=self.device)
        bias = bias.masked_fill_(future, torch.finfo(self.dtype).min).expand(batch, 1, -1, -1)
        positions = torch.arange(width, device=self.device).expand(batch, -1)
        self._model(tokens, positions, bias, keep=1, recorded=False)

    def compiled_prefill(self, tokens: Tensor) -> None:
        """`prefill` by the compiled forward, to which prompts are rows of a tree, in pieces whose laws are not large.

        It takes half the time, and leaves weights and code in the processor's caches as the first block needs them.
        """
        batch, width = tokens.shape
        if not self.cache.storage:
            self.cache.allocate(self.compiled.like)
        before = self.cache.scratch - 1  # columns that no row sees; a row's "ancestors" are the tokens before it
        seen = torch.ones(width, width, dtype=torch.bool, device=self.device).tril()
        seen = torch.nn.functional.pad(seen, (before, 0))
        start, steps = torch.zeros(batch, dtype=torch.long, device=self.device), row_numbers(0, 0, self.device)
        piece = max(1, self.part // (batch * self.model.config.vocab_size))
        for numbers in torch.arange(width, device=self.device).split(piece):
            first, stop = int(numbers[0]), int(numbers[-1]) + 1
            ancestors = seen[numbers, : before + stop].expand(batch, -1, -1)
            columns = numbers + self.cache.scratch
            rows = Rows(
                tokens[:, first:stop], numbers, ancestors, start, steps, torch.zeros_like(self.previous), columns,
                self.temperature,
            )  # fmt: skip
            self.compiled(rows, self.cache.views(batch))

    def begin(self, length: Tensor, end: int) -> Beginning:
        """What the forwards of a block share; length [B]: the root's position, at most `end`."""
        if self.is_compiled:
            return Beginning(length, end)
        bias = prefix_bias(length, row_numbers(0, end, self.device), self.previous, self.dtype)
        positions = length.unsqueeze(1) + node_depths(self.shape, self.device)
        return Beginning(length, end, bias, positions.clamp(0, self.last_position))

    def rows(self, tokens: Tensor, row: int, block: Beginning, ancestors: Tensor) -> Tensor:
        """Forward tree rows `row`, `row` + 1, ...: tokens [B, R] -> `Warp.tempered` laws [B, R, V].

        Row 0 is the root, -1 the token before it. ancestors [B or 1, R, 1 + N] bool, what each row sees.
        """
        if self.is_compiled:
            out = self.compiled(self.inputs(tokens, row, block, ancestors), self.cache.views(len(tokens)))
            return out if self.compiled.tempered else self.tempered(out)
        bias = fused(tree_bias)(ancestors, block.bias)
        self.cache.window(1 + row, slice(0, bias.shape[-1]))
        positions = block.positions[:, 1 + row : 1 + row + tokens.shape[1]]
        return self.tempered(self._model(tokens, positions, bias, keep=0, recorded=self.recorded))

    @property
    def is_compiled(self) -> bool:
        """A compiled forward writes where there is something: into the storage that a prefill has allocated."""
        return self.compiled is not None and bool(self.cache.storage)

    def inputs(self, tokens: Tensor, row: int, block: Beginning, ancestors: Tensor) -> Rows:
        """What a compiled forward takes in place of the arguments of `rows`."""
        batch, count = tokens.shape
        if (row, count) not in self.places:
            columns = row_numbers(1 + row, count, self.device)
            self.places[row, count] = row_depths(self.shape, row, count, self.device), columns
        depths, columns = self.places[row, count]
        ancestors = ancestors.expand(batch, -1, -1) if batch > 1 else ancestors
        steps = row_numbers(0, block.end, self.device)
        return Rows(tokens, depths, ancestors, block.length, steps, self.previous, columns, self.temperature)

    def tempered(self, logits: Tensor) -> Tensor:
        """`Warp.tempered`, of many numbers in the place of the logits, by rows: there is no room for a copy of them."""
        logits = wide(logits).contiguous()
        if logits.numel() <= self.part:
            return fused(self.warp.tempered)(logits)
        if self.warp.temperature:
            for part in logits.view(-1, logits.shape[-1]).split(max(1, self.part // logits.shape[-1])):
                part.copy_(self.warp.tempered(part))
        return logits

    def _model(self, tokens: Tensor, positions: Tensor, bias: Tensor, keep: int, recorded: bool) -> Tensor:
        with nullcontext() if recorded else attention(self.device):
            return self.model(
                input_ids=tokens, attention_mask=bias, position_ids=positions, past_key_values=self.cache,
                use_cache=True, logits_to_keep=keep,
            ).logits  # fmt: skip


def attention(device: torch.device) -> AbstractContextManager[None]:
    """Attention for lengths that do not recur: without cuDNN's, which makes a plan for every new one.

    Decoding one sequence with OPT-13B without CUDA graphs took 141 ms a token with these plans on an H100, and 35
    without. For graphs, whose lengths recur, its kernels are the faster ones.
    """
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


@lru_cache(maxsize=1024)
def row_numbers(start: int, count: int, device: torch.device) -> Tensor:
    """start, start + 1, ..., [count]."""
    stop = start + count
    return numbers(1 << max(0, stop - 1).bit_length(), device)[start:stop]


@cache
def numbers(count: int, device: torch.device) -> Tensor:
    """0, 1, ..., [count]: kept for good, because a CUDA graph knows its address."""
    return torch.arange(count, device=device)
