"""One model at work on a batch: its cache and its forwards. Drafter and target have a lane each."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rsdbench.engine.cache import TreeCache, attention_bias, position_limit
from rsdbench.engine.compiled import Forward, Rows
from rsdbench.engine.placement import head_device, layer_devices
from rsdbench.engine.tree import TreeShape, own_rows, row_depths
from rsdbench.sampling.laws import Warp, wide

PART = 2**20  # numbers of laws up to which a copy of them does not count


class Lane:
    """A Hugging Face causal LM with a cache of its own, for B sequences and trees of one shape.

    previous: whether the token before the root is given anew in each block, as it is to the drafter, which never saw
    its last draft: so it may be missing from the cache, and giving it always keeps shapes static.
    Positions are always passed explicitly, and clamped to the model's last one: rows beyond it are never accepted.
    """

    def __init__(
        self, model: Any, shape: TreeShape, warp: Warp, batch: int, positions: int, previous: bool = False,
        compiled: Forward | None = None, allocate: Callable[..., Tensor] = torch.zeros,
    ) -> None:  # fmt: skip
        self.model, self.shape, self.warp, self.compiled = model, shape, warp, compiled
        self.device = head_device(model)  # accelerate's hooks bring inputs to where they are read, and logits back
        self.dtype = model.dtype
        self.cache = TreeCache(layer_devices(model), batch, shape.budget, positions, allocate)
        self.last_position = position_limit(model) - 1
        self.previous = torch.tensor(int(previous), device=self.device)
        self.temperature = torch.tensor(float(warp.temperature), device=self.device)
        self.places: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # depths and columns of rows
        root = own_rows(shape, 0, self.device)
        self.two_rows = torch.cat([torch.zeros_like(root), root], 1)  # the token before the root, and the root

    def prefill(self, tokens: Tensor) -> None:
        """Put prompts into the cache, all but each one's last token: tokens [B, P], padded on the right.

        What padding writes lies behind each prompt's end, where it is hidden until it is written over.
        """
        batch, width = tokens.shape
        start = self.cache.scratch
        self.cache.window(start, slice(start, start + width))
        future = torch.ones(width, width, dtype=torch.bool, device=self.device).triu(1)
        bias = torch.zeros(width, width, dtype=self.dtype, device=self.device)
        bias = bias.masked_fill_(future, torch.finfo(self.dtype).min).expand(batch, 1, -1, -1)
        positions = torch.arange(width, device=self.device).expand(batch, -1)
        self._model(tokens, positions, bias, keep=1)

    def rows(self, tokens: Tensor, row: int, length: Tensor, end: int, ancestors: Tensor) -> Tensor:
        """Forward tree rows `row`, `row` + 1, ...: tokens [B, R] -> `Warp.tempered` laws [B, R, V].

        Row 0 is the root, -1 the token before it. length [B] is the root's position, at most `end`; ancestors
        [B or 1, R, 1 + N] bool, what each row sees.
        """
        if self.is_compiled:
            return self.compiled(self.inputs(tokens, row, length, end, ancestors), self.cache.views(len(tokens)))
        depths = row_depths(self.shape, row, tokens.shape[1], self.device)
        bias = attention_bias(ancestors, length, row_numbers(0, end, self.device), self.previous, self.dtype)
        positions = (length.unsqueeze(1) + depths).clamp(0, self.last_position)
        self.cache.window(1 + row, slice(0, bias.shape[-1]))
        return self._tempered(self._model(tokens, positions, bias, keep=0))

    @property
    def is_compiled(self) -> bool:
        """A compiled forward writes where there is something: into the storage that a prefill has allocated."""
        return self.compiled is not None and bool(self.cache.storage)

    def inputs(self, tokens: Tensor, row: int, length: Tensor, end: int, ancestors: Tensor) -> Rows:
        """What a compiled forward takes in place of the arguments of `rows`."""
        batch, count = tokens.shape
        if (row, count) not in self.places:
            columns = row_numbers(1 + row, count, self.device)
            self.places[row, count] = row_depths(self.shape, row, count, self.device), columns
        depths, columns = self.places[row, count]
        ancestors = ancestors.expand(batch, -1, -1) if batch > 1 else ancestors
        steps = row_numbers(0, end, self.device)
        return Rows(tokens, depths, ancestors, length, steps, self.previous, columns, self.temperature)

    def _tempered(self, logits: Tensor) -> Tensor:
        """`Warp.tempered` in the place of the logits, by rows: those of a large vocabulary have no room for a copy."""
        logits = wide(logits).contiguous()
        if self.warp.temperature:
            for part in logits.view(-1, logits.shape[-1]).split(max(1, PART // logits.shape[-1])):
                part.copy_(self.warp.tempered(part))
        return logits

    def _model(self, tokens: Tensor, positions: Tensor, bias: Tensor, keep: int) -> Tensor:
        return self.model(
            input_ids=tokens, attention_mask=bias, position_ids=positions, past_key_values=self.cache,
            use_cache=True, logits_to_keep=keep,
        ).logits  # fmt: skip


@lru_cache(maxsize=1024)
def row_numbers(start: int, count: int, device: torch.device) -> Tensor:
    """start, start + 1, ..., [count]."""
    return torch.arange(start, start + count, device=device)
