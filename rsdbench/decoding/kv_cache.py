"""The KV cache of one model for B sequences and the tree rows of the current block.

Slots: one for the token before the root ("previous", which only the drafter is given again), one for the root, one for
each node, and then the prefix, the token at position i in slot `scratch + i`. A forward writes its rows into their
scratch slots; `commit` copies the accepted ones to their positions. Rejected rows stay where they are until the next
block writes over them: the mask hides them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class LayerCache(CacheLayerMixin):
    """One layer of a `SlotCache`, in the interface that Hugging Face models expect."""

    is_sliding = False

    def __init__(self, cache: SlotCache, index: int) -> None:
        super().__init__()
        self.cache = weakref.proxy(cache)  # which holds this layer: its memory must go with its last user, not later
        self.index = index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to do: the slots are there."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, H, R, D] into their slots; return those of all slots that are read."""
        return self.cache.write(self.index, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Slots that attention reads, and their offset: for models that ask although the mask is given."""
        return self.cache.read, 0

    def get_seq_length(self) -> int:
        """Zero: positions are always given, so no model needs to derive them from the cache."""
        return 0

    def get_max_length(self) -> int:
        """All slots."""
        return self.cache.slots

    get_max_cache_shape = get_max_length  # its name in earlier releases of transformers


class SlotCache(Cache):
    """Keys and values of each layer in turn, [B, H, slots, D], and which slots the next forward writes and reads."""

    def __init__(self, layers: list[Tensor]) -> None:
        super().__init__(layers=[LayerCache(self, i) for i in range(len(layers) // 2)])
        self.keys_values, self.slots = layers, layers[0].shape[2]
        self.read, self.written = 0, {}

    def window(self, written: Tensor, read: int) -> None:
        """The next forward writes its rows to the slots `written` [R], and attends to the first `read` slots."""
        self.read, self.written = read, {x.device: written.to(x.device) for x in self.keys_values[::2]}

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, H, R, D] into one layer, in place; returns its keys and values [B, H, read, D]."""
        own_keys, own_values = self.keys_values[2 * layer : 2 * layer + 2]
        written = self.written[own_keys.device]
        own_keys.index_copy_(2, written, keys)
        own_values.index_copy_(2, written, values)
        return own_keys[:, :, : self.read], own_values[:, :, : self.read]


class Layout(NamedTuple):
    """Where a layer's keys and values are, how many heads of which size they have, and their dtype."""

    device: torch.device
    heads: int
    size: int
    dtype: torch.dtype


class KVStorage:
    """The memory of a model's KV cache: [layers, 2, B, H, slots, D] for each run of layers that are alike.

    2 is keys and values. It is zeroed, or at least finite: a hidden slot has weight 0, and 0 times NaN would be NaN.
    """

    def __init__(
        self, layouts: Sequence[Layout], batch: int, nodes: int, positions: int,
        zeros: Callable[..., Tensor] = torch.zeros,
    ) -> None:  # fmt: skip
        self.scratch = 2 + nodes
        self.runs = []
        for layout, run in groupby(layouts):
            shape = (len(list(run)), 2, batch, layout.heads, self.scratch + positions, layout.size)
            self.runs.append(zeros(shape, dtype=layout.dtype, device=layout.device))

    def views(self, batch: int) -> list[Tensor]:
        """Keys and values of each layer in turn, [B, H, slots, D], of the first sequences."""
        return [half[:batch] for run in self.runs for layer in run for half in layer]

    def prefix(self, width: int) -> list[Tensor]:
        """Views of the first `width` positions of all sequences, [layers, 2, B, H, width, D]."""
        return [run[:, :, :, :, self.scratch : self.scratch + width] for run in self.runs]

    def restore(self, prefix: Sequence[Tensor]) -> None:
        """Begin with what `prefix` of another storage of the same model and batch gave."""
        for own, kept in zip(self.prefix(prefix[0].shape[4]), prefix, strict=True):
            own.copy_(kept)

    def repeat(self, sources: Tensor, width: int) -> None:
        """Give each sequence the first `width` positions of the sequence that `sources` [B] names."""
        for prefix in self.prefix(width):
            prefix.copy_(prefix[:, :, sources.to(prefix.device)])

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy whole sequences to other places of the batch, to close the gaps that finished ones leave."""
        if sources:
            for run in self.runs:
                run[:, :, targets] = run[:, :, sources]


def commit(
    accepted: Tensor, rows: Tensor, last_two: Tensor, tokens: Tensor, length: Tensor, scratch: int | Tensor,
    target: Sequence[Tensor], drafter: Sequence[Tensor],
) -> None:  # fmt: skip
    """Move accepted rows behind the prefix in both caches, and each sequence forward; all in place.

    accepted [B]; rows [B, R]: the root and the accepted rows of the tree, and behind these others, which are
    hidden where they go until they are written over; last_two [B, 2]: of the sequence with what the block
    gives; tokens [B, 2 + N], of the tree, the first two of which become these; length [B], the root's position, which
    becomes the next one's; target, drafter: runs of a `KVStorage`.
    """
    slots, positions = rows + 1, length.unsqueeze(1) + torch.arange(rows.shape[1], device=rows.device)
    for run in target:
        copy_slots(run, slots, positions + scratch)
    # the drafter has not seen its deepest drafts; its token before the root is in the scratch slot 0
    slots, positions = torch.nn.functional.pad(slots[:, :-1], (1, 0)), positions - 1
    for run in drafter:
        copy_slots(run, slots, positions + scratch)
    tokens[:, :2].copy_(last_two)
    length += accepted + 1


def copy_slots(run: Tensor, sources: Tensor, targets: Tensor) -> None:
    """Copy slots [B, R] of a run of layers to others [B, R], all layers at once."""
    sources, targets = sources.to(run.device), targets.to(run.device)
    if sources.shape[0] == 1:
        run[:, :, :1].index_copy_(4, targets[0], run[:, :, :1].index_select(4, sources[0]))
    else:
        sequence = torch.arange(sources.shape[0], device=run.device).unsqueeze(1)
        run[:, :, sequence, :, targets] = run[:, :, sequence, :, sources]
