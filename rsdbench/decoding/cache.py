"""Key/value storage of one model for a batch of sequences and the tree rows of the current block.

Keys and values of a layer stay on its device; neighbouring layers on one device share a tensor.
Columns of the storage: one for the token before the root ("previous", which only the drafter is given again), one for
the root, one for each tree node, and then the prefix, the token at position i in column `scratch + i`. A forward
writes its rows into the scratch columns; `commit` copies the accepted ones to their positions, for all layers of a
device at once.
Rejected rows stay where they are until the next block writes over them: `attention_bias` hides them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

UNLIMITED = 2**31  # positions of a model that names no limit


class StorageLayer(CacheLayerMixin):
    """One layer's view of the storage, in the interface that Hugging Face models expect of a cache layer.

    cache: a `TreeCache`, or what stands for it in an exported graph.
    """

    is_sliding = False

    def __init__(self, cache: Any, index: int) -> None:
        super().__init__()
        self.cache = weakref.proxy(cache)  # which holds this layer: its storage must go with its last user, not later
        self.index = index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the storage of all layers when the first keys show their shape."""
        self.cache.allocate(key_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, H, rows, D] at the current window; return all that the window reads."""
        if not self.cache.storage:
            self.lazy_initialization(key_states, value_states)
        return self.cache.write(self.index, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that attention reads, and their offset: for models that ask although the mask is given."""
        return self.cache.read.stop - self.cache.read.start, 0

    def get_seq_length(self) -> int:
        """Zero: positions are always given, so no model needs to derive them from the cache."""
        return 0

    def get_max_length(self) -> int:
        """Columns of the storage."""
        return self.cache.columns

    get_max_cache_shape = get_max_length  # its name in earlier releases of transformers


class TreeCache(Cache):
    """Storage [layers, 2, B, H, columns, D] for each run of layers on one device, allocated once; 2 is keys and values.

    devices: of each layer; allocate: gives the storage of a run, of a shape, dtype and device.
    """

    def __init__(
        self, devices: Sequence[torch.device], batch: int, nodes: int, positions: int,
        allocate: Callable[..., Tensor] = torch.zeros,
    ) -> None:  # fmt: skip
        super().__init__(layers=[StorageLayer(self, i) for i in range(len(devices))])
        self.runs = [(device, len(list(run))) for device, run in groupby(devices)]
        self.batch = batch
        self.scratch = 2 + nodes
        self.first = torch.tensor(self.scratch)  # the column of position 0, as compiled steps take it
        self.columns = self.scratch + positions
        self.make = allocate
        self.storage: list[Tensor] = []
        self.own: list[Tensor] = []  # of each layer, [2, B, H, columns, D]
        self.start = 0
        self.read = slice(0, 0)
        self.viewed: list[Tensor] = []

    def allocate(self, like: Tensor) -> None:
        """Zeroed, or at least finite: a hidden column has weight 0, and 0 times NaN would still be NaN."""
        _, heads, _, size = like.shape
        shape = (2, self.batch, heads, self.columns, size)
        self.storage = [self.make((count, *shape), dtype=like.dtype, device=device) for device, count in self.runs]
        self.own = [layer for storage in self.storage for layer in storage]

    def window(self, start: int, read: slice) -> None:
        """The next forward writes its rows from column `start` on and attends to the columns `read`."""
        self.start, self.read = start, read

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, H, rows, D] into one layer; returns its keys and values [B, H, read, D]."""
        own = self.own[layer][:, : keys.shape[0]]
        rows = slice(self.start, self.start + keys.shape[2])
        both = side_by_side(keys, values)
        if both is None:
            own[0, :, :, rows] = keys
            own[1, :, :, rows] = values
        else:
            own[:, :, :, rows] = both
        own = own[:, :, :, self.read]
        return own[0], own[1]

    def views(self, batch: int) -> list[Tensor]:
        """Keys and values of each layer in turn, [B, H, columns, D], of the first sequences."""
        if not self.viewed or self.viewed[0].shape[0] != batch:
            self.viewed = [half[:batch] for layer in self.own for half in layer]
        return self.viewed

    def commit(self, columns: Tensor, positions: Tensor) -> None:
        """Copy scratch columns [B, R] to the prefix positions [B, R], all layers of a device at once.

        Rows that were not accepted may be among them, at positions behind the accepted ones: they are hidden there
        until they are written over.
        """
        here = {d: (columns.to(d), positions.to(d) + self.scratch) for d in {s.device for s in self.storage}}
        for storage in self.storage:
            copy_columns(storage, *here[storage.device])

    def prefix(self, width: int) -> list[Tensor]:
        """Views of the first `width` positions of all sequences, [layers, 2, B, H, width, D]."""
        return [storage[:, :, :, :, self.scratch : self.scratch + width] for storage in self.storage]

    def restore(self, prefix: Sequence[Tensor]) -> None:
        """Begin with what `prefix` of another cache of the same model and batch gave."""
        self.allocate(prefix[0][0, 0])
        for own, kept in zip(self.prefix(prefix[0].shape[4]), prefix, strict=True):
            own.copy_(kept)

    def repeat(self, sources: Tensor, width: int) -> None:
        """Give each sequence the first `width` positions of the sequence that `sources` [B] names."""
        for prefix in self.prefix(width):
            prefix.copy_(prefix[:, :, sources.to(prefix.device)])

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy whole sequences to other places of the batch, to close the gaps that finished ones leave."""
        if sources:
            for storage in self.storage:
                storage[:, :, targets] = storage[:, :, sources]


def side_by_side(a: Tensor, b: Tensor) -> Tensor | None:
    """Both as one view [2, ...], if they lie one behind the other in one memory: then one copy does for two."""
    behind = b.storage_offset() - a.storage_offset()
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr() or a.stride() != b.stride() or behind <= 0:
        return None
    return a.as_strided((2, *a.shape), (behind, *a.stride()), a.storage_offset())


def accept(caches: Sequence[TreeCache], rows: Tensor, accepted: Tensor, length: Tensor) -> Tensor:
    """Move accepted rows behind the prefix in the target's cache and the drafter's, if there is one; the new lengths.

    rows [B, R], as in `accepted_columns`; accepted, length [B].
    """
    for cache, previous in zip(caches, (False, True), strict=False):
        cache.commit(*accepted_columns(rows, length, previous))
    return length + accepted + 1


def accepted_columns(rows: Tensor, length: Tensor, previous: bool) -> tuple[Tensor, Tensor]:
    """What `TreeCache.commit` copies of a block, and where to: scratch columns and positions, both [B, R].

    rows [B, R]: the root and the accepted rows of the tree; length [B]: the root's position; previous: of a drafter,
    that is the token before the root, and all but the deepest row, which it may not have.
    """
    columns, positions = rows + 1, length.unsqueeze(1) + torch.arange(rows.shape[1], device=rows.device)
    if not previous:
        return columns, positions
    return torch.nn.functional.pad(columns[:, :-1], (1, 0)), positions - 1


def copy_columns(storage: Tensor, sources: Tensor, targets: Tensor) -> None:
    """Copy columns [B, R] of a storage to others [B, R]."""
    if sources.shape[0] == 1:
        storage[:, :, :1].index_copy_(4, targets[0], storage[:, :, :1].index_select(4, sources[0]))
    else:
        sequence = torch.arange(sources.shape[0], device=storage.device).unsqueeze(1)
        storage[:, :, sequence, :, targets] = storage[:, :, sequence, :, sources]


def attention_bias(ancestors: Tensor, length: Tensor, steps: Tensor, previous: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask of tree rows over [previous, root, nodes, prefix], 0 or the least number of `dtype`.

    ancestors [B or 1, rows, 1 + N] bool; length [B], the root's position, which is the number of tokens before it;
    steps [end]: the prefix positions to cover; previous []: 1 if the token before the root is seen in its scratch
    column (the drafter's case) rather than in the prefix. Returns [B, 1, rows, 2 + N + end].
    """
    return tree_bias(ancestors, prefix_bias(length, steps, previous, dtype))


def prefix_bias(length: Tensor, steps: Tensor, previous: Tensor, dtype: torch.dtype) -> Tensor:
    """The part of `attention_bias` that all rows of a block share: of [previous, prefix], [B, 1 + end]."""
    length = length.unsqueeze(1)
    visible = torch.cat([(length > 0) & (previous > 0), steps < length - previous], 1)
    return additive(visible, dtype)


def tree_bias(ancestors: Tensor, prefix: Tensor) -> Tensor:
    """`attention_bias` of rows, from what they see of their tree and the part that all share."""
    batch, rows = prefix.shape[0], ancestors.shape[1]
    prefix = prefix.unsqueeze(1).expand(-1, rows, -1)
    own = additive(ancestors, prefix.dtype).expand(batch, -1, -1)
    return torch.cat([prefix[:, :, :1], own, prefix[:, :, 1:]], -1).unsqueeze(1)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where something is visible, and the least number of `dtype` elsewhere."""
    return torch.where(visible, 0.0, torch.finfo(dtype).min).to(dtype)


def position_limit(model: Any) -> int:
    """Positions that a model has, from its configuration; a model that names none has no limit."""
    return getattr(model.config, "max_position_embeddings", None) or UNLIMITED
