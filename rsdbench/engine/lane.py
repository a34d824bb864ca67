"""One model at work on a batch: its cache and its forwards. Drafter and target have a lane each."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rsdbench.engine.cache import TreeCache, attention_bias
from rsdbench.engine.compiled import Forward
from rsdbench.engine.tree import TreeShape, node_depths


class Lane:
    """A Hugging Face causal LM with a cache of its own, for B sequences and trees of one shape.

    Positions are always passed explicitly, and clamped to the model's last one: rows beyond it are never accepted.
    """

    def __init__(
        self, model: Any, shape: TreeShape, batch: int, positions: int, compiled: Forward | None = None
    ) -> None:
        self.model, self.shape, self.compiled = model, shape, compiled
        self.device = model.get_input_embeddings().weight.device
        self.dtype = model.dtype
        self.cache = TreeCache(model.config.num_hidden_layers, batch, shape.budget, positions)
        self.last_position = position_limit(model) - 1
        self.depths = node_depths(shape, self.device)

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
        self._forward(tokens, positions, bias, keep=1)

    def bias(self, ancestors: Tensor, length: Tensor, end: int, previous: bool = False) -> Tensor:
        """`attention_bias` for this lane's dtype."""
        return attention_bias(ancestors, length, end, previous, self.dtype)

    def rows(self, tokens: Tensor, row: int, length: Tensor, bias: Tensor, keep: int = 0) -> Tensor:
        """Forward tree rows `row`, `row` + 1, ... (0 is the root): tokens [B, rows] -> logits [B, rows or keep, V].

        length [B] is the root's position; bias [B, 1, rows, columns] also tells how many columns are read.
        """
        positions = length.unsqueeze(1) + self.depths[row : row + tokens.shape[1]]
        return self._at(tokens, 1 + row, positions, bias, keep)

    def previous_and_root(self, tokens: Tensor, length: Tensor, bias: Tensor) -> Tensor:
        """Forward the token before the root and the root, [B, 2] -> the root's logits [B, 1, V].

        The drafter never saw its last draft, so the token before the root may be missing from its cache; giving it
        again in every block keeps shapes static.
        """
        steps = torch.arange(-1, 1, device=self.device)
        return self._at(tokens, 0, length.unsqueeze(1) + steps, bias, keep=1)

    def _at(self, tokens: Tensor, column: int, positions: Tensor, bias: Tensor, keep: int) -> Tensor:
        self.cache.window(column, slice(0, bias.shape[-1]))
        return self._forward(tokens, positions.clamp(0, self.last_position), bias, keep)

    def _forward(self, tokens: Tensor, positions: Tensor, bias: Tensor, keep: int) -> Tensor:
        # a compiled forward reads from column 0 on, which a prefill does not, and needs the storage of the first one
        if self.compiled is not None and self.cache.storage is not None and self.cache.read.start == 0:
            columns = column_range(self.cache.start, tokens.shape[1], self.device)
            logits = self.compiled(tokens, positions, bias, self.cache.views(len(tokens)), columns)
            return logits[:, -keep:]  # all of them where keep is 0
        return self.model(
            input_ids=tokens, attention_mask=bias, position_ids=positions, past_key_values=self.cache,
            use_cache=True, logits_to_keep=keep,
        ).logits  # fmt: skip


@lru_cache(maxsize=1024)
def column_range(start: int, rows: int, device: torch.device) -> Tensor:
    """The columns that a forward writes, [rows]."""
    return torch.arange(start, start + rows, device=device)


def position_limit(model: Any) -> int:
    """Positions that a model has, from its configuration; a model that names none has no limit."""
    return getattr(model.config, "max_position_embeddings", None) or 2**31
