"""A model's forward as one compiled library, from the model itself; a drafter's with what is drawn from its laws.

A forward of a small model is mostly Python: OPT's modules take 0.3 ms for two layers whose arithmetic takes
microseconds. The very same Hugging Face modules are exported into a graph, with the mask before them and the tempered
law behind them, for any batch, any number of rows and any length. It is kept without its weights, so that models of one
architecture share it, and the loaded weights are used where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from rsdbench.backends.aot.gemm import is_small
from rsdbench.backends.aot.library import SMALL_VOCABULARY, Recipe, name_of, source, weights_of
from rsdbench.decoding.cache import StorageLayer, TreeCache, attention_bias, position_limit
from rsdbench.decoding.drafting import Drafting, Level
from rsdbench.decoding.tree import level_rows
from rsdbench.models.placement import layer_devices
from rsdbench.sampling.distributions import tempered
from rsdbench.sampling.gumbel import group_size, to_gumbel
from rsdbench.sources import PACKAGE, syntax_of

# of what is in a graph
SOURCES = (Path(__file__), PACKAGE / "decoding/cache.py", PACKAGE / "sampling/distributions.py")
DRAWING = (PACKAGE / "decoding/drafting.py", PACKAGE / "decoding/tree.py", PACKAGE / "sampling/gumbel.py")
UNLIKE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}  # of a configuration: not in the graph
WITHOUT_WEIGHTS = {"aot_inductor.package_constants_in_so": False}
DYNAMIC = torch.export.Dim.DYNAMIC


class Rows(NamedTuple):
    """What one forward of tree rows takes, beside the storage.

    tokens [B, R]; depths [R], their positions from the root's; ancestors [B, R, 1 + N] bool; length [B], the root's
    position; steps [end] and previous [], as in `attention_bias`; columns [R] of the storage that are written;
    temperature [].
    """

    tokens: Tensor
    depths: Tensor
    ancestors: Tensor
    length: Tensor
    steps: Tensor
    previous: Tensor
    columns: Tensor
    temperature: Tensor


SIZES = Rows(
    tokens={0: DYNAMIC, 1: DYNAMIC}, depths={0: DYNAMIC}, ancestors=dict.fromkeys(range(3), DYNAMIC),
    length={0: DYNAMIC}, steps={0: DYNAMIC}, previous={}, columns={0: DYNAMIC}, temperature={},
)  # fmt: skip


class GraphCache(Cache):
    """What stands for `TreeCache` inside the exported graph: its storage is an input, keys and values of each layer."""

    def __init__(self, storage: list[Tensor], written: Tensor, read: int) -> None:
        super().__init__(layers=[StorageLayer(self, i) for i in range(len(storage) // 2)])
        self.storage, self.written, self.read = storage, written, slice(0, read)
        self.columns = storage[0].shape[2]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, H, R, D] into one layer, in place; returns its keys and values [B, H, C, D]."""
        own_keys, own_values = self.storage[2 * layer : 2 * layer + 2]
        own_keys.index_copy_(2, self.written, keys)
        own_values.index_copy_(2, self.written, values)
        return own_keys[:, :, self.read], own_values[:, :, self.read]


class Step(torch.nn.Module):
    """What is exported: a model's own modules, and the mask before them.

    tempered: whether laws come out, `Warp.tempered`; otherwise logits do, whose place the laws of a large vocabulary
    are to take.
    """

    def __init__(self, model: Any, tempered: bool = True) -> None:
        super().__init__()
        self.model, self.tempered = model, tempered

    def forward(self, rows: tuple[Tensor, ...], storage: list[Tensor]) -> Tensor:
        """Rows, keys and values of each layer [B, H, columns, D] -> [B, R, V]. Exporting knows no names in tuples."""
        rows = Rows(*rows)
        bias = attention_bias(rows.ancestors, rows.length, rows.steps, rows.previous, self.model.dtype)
        positions = (rows.length.unsqueeze(1) + rows.depths).clamp(0, position_limit(self.model) - 1)
        cache = GraphCache(storage, rows.columns, bias.shape[-1])
        logits = self.model(
            input_ids=rows.tokens, attention_mask=bias, position_ids=positions, past_key_values=cache, use_cache=True
        ).logits
        if not self.tempered:
            return logits
        warm = rows.temperature > 0
        return torch.where(warm, tempered(logits, torch.where(warm, rows.temperature, 1.0)), logits)


class Drafted(NamedTuple):
    """What the calls of a block fill in, level by level, in place; N nodes, E of them expanded.

    Rows of tokens and ancestors are numbered like the storage's scratch columns: the token before the root, the root,
    the nodes. tokens [B, 2 + N]; ancestors [B, 2 + N, 1 + N]; parents and valid [B, N], laws [B, 1 + E, V], as in
    `DraftTree`.
    """

    tokens: Tensor
    ancestors: Tensor
    parents: Tensor
    valid: Tensor
    laws: Tensor


class Growth(NamedTuple):
    """What a level of W nodes below one of W' takes, beside the tree and the storage.

    columns [R], as in `Rows`, of the rows that are forwarded, of which the last W' are the level above; nodes [W], the
    level's own; numbers [4], float64: the depth of the level above, previous and temperature, as in `Rows`, and how
    many positions there are; length and steps, as in `Rows`; noise [B, noise_rows, S], as in `Numbers`; above [3, B,
    W']: valid, as 0 or 1, log_prob and score of the level above, 0 where it has none.
    """

    columns: Tensor
    nodes: Tensor
    numbers: Tensor
    length: Tensor
    steps: Tensor
    noise: Tensor
    above: Tensor


BATCHED = {0: DYNAMIC, 1: DYNAMIC}
GROWING = (
    tuple(Growth(
        columns={0: DYNAMIC}, nodes={0: DYNAMIC}, numbers={}, length={0: DYNAMIC}, steps={0: DYNAMIC}, noise=BATCHED,
        above={1: DYNAMIC, 2: DYNAMIC},
    )),
    tuple(Drafted(BATCHED, ancestors=BATCHED | {2: DYNAMIC}, parents=BATCHED, valid=BATCHED, laws=BATCHED)),
)  # fmt: skip


class DraftStep(torch.nn.Module):
    """What is exported for drafting: a drafter's forward and `Drafting.expand`, into `Drafted`."""

    def __init__(self, model: Any, drafting: Drafting) -> None:
        super().__init__()
        self.step, self.drafting = Step(model), drafting

    def forward(self, growth: tuple[Tensor, ...], drafted: tuple[Tensor, ...], storage: list[Tensor]) -> Tensor:
        """Fill in a level; returns what the next one takes as `above`."""
        columns, nodes, numbers, length, steps, noise, above = growth
        depth, previous, temperature, limit = numbers.unbind()
        tree, valid, given, width = Drafted(*drafted), above[0] > 0, columns.shape[0], above.shape[2]
        behind, depth = given - width, depth.long()
        # the rows before the level above are those of the level before it: of the first level the root's predecessor
        depths = depth - (torch.arange(given, device=columns.device) < behind).long()
        tokens, ancestors = (x.index_select(1, columns) for x in tree[:2])
        rows = Rows(tokens, depths, ancestors, length, steps, previous.long(), columns, temperature.float())
        laws, tokens, ancestors = (x.narrow(1, behind, width) for x in (self.step(rows, storage), tokens, ancestors))
        # nobody asks whose children the nodes above are: anything stands for their parents
        level = self.drafting.expand(
            Level(tokens, tokens, valid, *above[1:]), laws, to_gumbel(noise.clone()), nodes.shape[0]
        )

        columns = columns.narrow(0, behind, width)
        own = (nodes.unsqueeze(1) + 1 == torch.arange(ancestors.shape[2], device=nodes.device)).unsqueeze(0)
        tree.tokens.index_copy_(1, nodes + 2, level.tokens)
        tree.ancestors.index_copy_(1, nodes + 2, level_rows(ancestors, level.parents, own))
        tree.parents.index_copy_(1, nodes, (columns - 2).expand(tokens.shape[0], -1).gather(1, level.parents))
        tree.valid.index_copy_(1, nodes, level.valid & (length.unsqueeze(1) + depth + 1 < limit.long()))
        tree.laws.index_copy_(1, columns - 1, laws)
        found = level.valid.float()
        scores = (torch.zeros_like(found) if x is None else x for x in (level.log_prob, level.score))
        return torch.stack([found, *scores])


class CompiledForward:
    """A `Step` in a library, with the weights that it reads; tempered: as there, of small vocabularies.

    like [B, H, columns, D]: some keys, which show a cache what it is to hold.
    """

    def __init__(self, model: Any, drafts: bool = False) -> None:
        """drafts: whether the model is a drafter. Raises UsageError as `Recipe.build` does."""
        recipe = forward_recipe(model, drafts)
        self.tempered = recipe.module.tempered
        self.library = recipe.library()
        self.weights = self.library.set_weights(recipe.module)
        self.like = recipe.inputs[1][0]

    def __call__(self, rows: Rows, storage: list[Tensor]) -> Tensor:
        """See `Step`."""
        return self.library.run([*(x.contiguous() for x in rows), *storage])[0]


class CompiledGrow:
    """A level of drafting in a library, with the weights that it reads."""

    def __init__(self, model: Any, drafting: Drafting) -> None:
        """Raise UsageError as `Recipe.build` does."""
        recipe = grow_recipe(model, drafting)
        self.library = recipe.library()
        self.weights = self.library.set_weights(recipe.module)


def forward_recipe(model: Any, drafts: bool = False) -> Recipe:
    """A model's forward; drafts: whether it is a drafter's."""
    step, (rows, storage) = Step(model, model.config.vocab_size <= SMALL_VOCABULARY), examples(model)
    during = partial(attention, model, drafts)
    with during():
        whole = parts(model)
    return Recipe(
        f"forward of {name_of(model)}", type(model).__name__, whole, step,
        (tuple(rows), storage), (tuple(SIZES), storage_sizes(storage)), drafts and is_small(model), WITHOUT_WEIGHTS,
        during,
    )  # fmt: skip


def grow_recipe(model: Any, drafting: Drafting) -> Recipe:
    """A level of drafting."""
    kind, during = type(drafting), partial(attention, model)
    growth, drafted, storage = growing_examples(model, drafting)
    with during():
        whole = *parts(model), kind.__qualname__, source(kind), *map(syntax_of, DRAWING)
    return Recipe(
        f"drafting of {kind.__name__} by {name_of(model)}", f"{type(model).__name__}-{kind.__name__}", whole,
        DraftStep(model, drafting), (tuple(growth), tuple(drafted), storage), (*GROWING, storage_sizes(storage)),
        is_small(model), WITHOUT_WEIGHTS, during,
    )  # fmt: skip


@contextmanager
def attention(model: Any, drafts: bool = True) -> Iterator[None]:
    """A drafter's few rows attend by products of matrices: an operator of its own takes longer to call than to run."""
    if not drafts:
        yield
        return
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def storage_sizes(storage: list[Tensor]) -> list[dict[int, Any]]:
    """Which sizes of keys and values may differ."""
    return [{0: DYNAMIC, 2: DYNAMIC}] * len(storage)


def growing_examples(model: Any, drafting: Drafting) -> tuple[Growth, Drafted, list[Tensor]]:
    """Inputs of a level of 6 nodes below 3, behind another row, of trees of 11; sizes that differ are different."""
    nodes, words, dtype = 11, model.config.vocab_size, torch.long
    rows, storage = examples(model, nodes)
    batch, given = rows.tokens.shape
    above, width = given - 1, 2 * (given - 1)
    growth = Growth(
        columns=rows.columns, nodes=torch.arange(width) + above + 1, numbers=torch.ones(4, dtype=torch.float64),
        length=rows.length, steps=rows.steps, above=torch.ones(3, batch, above),
        noise=torch.zeros(batch, drafting.noise_rows(above, width), group_size(words)),
    )  # fmt: skip
    drafted = Drafted(
        tokens=torch.zeros(batch, 2 + nodes, dtype=dtype), parents=torch.zeros(batch, nodes, dtype=dtype),
        ancestors=torch.ones(batch, 2 + nodes, 1 + nodes, dtype=torch.bool),
        valid=torch.zeros(batch, nodes, dtype=torch.bool), laws=torch.zeros(batch, 9, words),
    )  # fmt: skip
    return growth, drafted, storage


def examples(model: Any, nodes: int = 6) -> tuple[Rows, list[Tensor]]:
    """Inputs of `Step` with B = 2, R = 4, N = `nodes` and end = 5."""
    batch, rows, end = 2, 4, 5
    tokens, row = torch.zeros(batch, rows, dtype=torch.long), torch.arange(rows)
    cache = TreeCache(layer_devices(model), batch, nodes, end + 3)  # more columns than are read
    cache.window(0, slice(0, rows))
    with torch.no_grad():  # shows the shape of the storage
        model(
            input_ids=tokens, attention_mask=torch.zeros(batch, 1, rows, rows, dtype=model.dtype),
            position_ids=row.expand(batch, -1), past_key_values=cache, use_cache=True,
        )  # fmt: skip
    ancestors = torch.ones(batch, rows, 1 + nodes, dtype=torch.bool)
    length, steps, one = torch.tensor([end, end]), torch.arange(end), torch.tensor(1)
    inputs = Rows(tokens, row, ancestors, length, steps, one, row + 1, torch.tensor(1.0))
    return inputs, [x.clone() for x in cache.views(batch)]


def parts(model: Any) -> tuple[object, ...]:
    """What a compiled forward depends on: architecture and sizes, type, how the weights lie in memory, our code."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in UNLIKE}
    strides = [(name, weight.stride()) for name, weight in weights_of(model).items()]
    return (
        type(model).__name__, sorted(config.items(), key=str), str(model.dtype), model.config._attn_implementation,
        strides, *map(syntax_of, SOURCES),
    )  # fmt: skip
