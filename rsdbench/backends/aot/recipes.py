"""What is compiled for a method: a recipe for each phase, with examples of its inputs and which of their sizes vary.

Graphs of models are kept without weights, so that models of one architecture share them, and the loaded weights are
used where they lie. The others take any batch, tree and vocabulary: all models and structures share them. Sizes of the
examples are all different, so that none is taken for another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rsdbench.backends.aot.gemm import is_small
from rsdbench.backends.aot.library import SMALL_VOCABULARY, Recipe, identity, weights_of
from rsdbench.backends.aot.modules import CommitStep, DraftStep, FinishStep, Kind, TargetStep, VerifyStep
from rsdbench.backends.projections import join_projections
from rsdbench.decoding.drafter import is_model
from rsdbench.decoding.forward import Rows
from rsdbench.decoding.grow import Growth
from rsdbench.decoding.kv_cache import KVStorage, Layout
from rsdbench.decoding.shapes import TreeShape
from rsdbench.decoding.strategies import Strategy
from rsdbench.decoding.tree import DraftTree
from rsdbench.models.layouts import layouts_of
from rsdbench.models.loading import name_of
from rsdbench.sampling.distributions import Sampling
from rsdbench.sampling.gumbel import group_size
from rsdbench.sources import folders_syntax
from rsdbench.verification import TreeRule
from rsdbench.verification.lift import Lifted

UNLIKE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}  # of a configuration: not in the graph
WITHOUT_WEIGHTS = {"aot_inductor.package_constants_in_so": False}
DYNAMIC = torch.export.Dim.DYNAMIC
BATCH, END, WORDS = 2, 5, 11

Make = tuple[Any, ...]  # a function that makes a recipe, and its arguments


def one() -> Tensor:
    """A number; not the same tensor twice, which would be taken for one input."""
    return torch.tensor(1.0)


def varying(dimensions: str) -> dict[int, Any]:
    """Sizes that vary, of an input: "01" are the first two."""
    return {int(d): DYNAMIC for d in dimensions}


ROWS = tuple(map(varying, ("01", "0", "012", "0", "0", "0")))
GROWTH = tuple(map(varying, ("0", "0", "", "0", "0", "01", "12")))
TREE = tuple(map(varying, ("01", "012", "01", "01", "01")))


class Phases(NamedTuple):
    """What is to be compiled for the blocks of a method; draft is None without drafts, or where no model drafts."""

    target: Make
    draft: Make | None
    verify: Make
    commit: Make


def phases(
    target: Any, drafter: Any, layouts: Mapping[Any, Sequence[Layout]], strategy: Strategy, rule: TreeRule,
    shape: TreeShape, sampling: Sampling,
) -> Phases:  # fmt: skip
    """Which recipes a method's blocks are made of; layouts: of the two models' caches."""
    runs = {model: tuple(layout.dtype for layout, _ in groupby(own)) for model, own in layouts.items()}
    kind = sampling.greedy, sampling.nucleus
    vocabulary = target.config.get_text_config().vocab_size
    forward = (forward_recipe, target, normalised(target, sampling))
    if not shape.depth:
        return Phases(forward, None, (finish_recipe, vocabulary, kind), (commit_recipe, runs[target], ()))
    verify = (verify_recipe, rule, served_fanout(rule, shape.fanout), vocabulary, kind)
    commit = (commit_recipe, runs[target], runs.get(drafter, ()))
    return Phases(
        forward, (draft_recipe, drafter, strategy, kind, vocabulary) if drafter in runs else None, verify, commit
    )


def needed(
    target: Any, drafter: Any, cases: Iterable[tuple[Strategy, TreeRule, TreeShape]], sampling: Sampling
) -> dict[str, Recipe]:  # fmt: skip
    """All that is compiled for some methods and structures, by the name of its file; joins the models' projections."""
    models = [target, drafter] if is_model(drafter) else [target]
    for model in models:
        join_projections(model)
    layouts = {model: layouts_of(model, torch.device("cpu")) for model in models}
    makes = dict.fromkeys(
        make for case in cases for make in phases(target, drafter, layouts, *case, sampling) if make is not None
    )
    recipes = [make(*of) for make, *of in makes]
    return {recipe.path.name: recipe for recipe in recipes}


def normalised(target: Any, sampling: Sampling) -> bool:
    """Whether a compiled forward gives log-probabilities: those of a large vocabulary take the logits' place."""
    return target.config.get_text_config().vocab_size <= SMALL_VOCABULARY and not sampling.greedy


def forward_recipe(model: Any, normalised: bool, drafts: bool = False) -> Recipe:
    """A forward of the target, or of a drafter alone."""
    rows, storage = row_examples(model, 6)
    layers = storage.views(BATCH)
    return model_recipe(
        "forward", model, (normalised,), TargetStep(model, normalised), (tuple(rows), one(), layers),
        (ROWS, {}, layer_sizes(layers)), drafts,
    )  # fmt: skip


def draft_recipe(drafter: Any, strategy: Strategy, kind: Kind, words: int) -> Recipe:
    """A level of drafting over `words` tokens: one of 6 nodes below 3, behind another row, of a tree of 11."""
    nodes = 11
    rows, storage = row_examples(drafter, nodes)
    layers, given = storage.views(BATCH), rows.tokens.shape[1]
    above, width = given - 1, 2 * (given - 1)
    growth = Growth(
        slots=rows.slots, nodes=torch.arange(width) + above + 1, depth=torch.tensor(1), length=rows.length,
        prefix=rows.prefix, noise=torch.zeros(BATCH, strategy.noise_rows(above, width), group_size(words)),
        frontier=torch.ones(3, BATCH, above),
    )  # fmt: skip
    name = getattr(strategy, "__name__", type(strategy).__name__)
    return model_recipe(
        f"drafting of {name}", drafter, (name, identity(strategy), kind, words),
        DraftStep(drafter, strategy, kind, words),
        (tuple(growth), tuple(tree_examples(nodes, 9, words)), one(), one(), torch.tensor(9), layers),
        (GROWTH, TREE, {}, {}, {}, layer_sizes(layers)), drafts=True,
    )  # fmt: skip


def model_recipe(
    title: str, model: Any, of: tuple[object, ...], module: torch.nn.Module, inputs: tuple, sizes: tuple, drafts: bool
) -> Recipe:  # fmt: skip
    """A recipe with a model in it, which depends on its architecture, its sizes and how its weights lie in memory."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in UNLIKE}
    strides = [(name, weight.stride()) for name, weight in weights_of(model).items()]
    parts = (title, type(model).__name__, sorted(config.items(), key=str), str(model.dtype), strides, drafts, *of)
    during = partial(plain_attention, model) if drafts else None
    return Recipe(
        f"{title} {'by' if drafts else 'of'} {name_of(model)}", f"{type(model).__name__}-{title.split()[-1]}",
        (*parts, folders_syntax(), model.config._attn_implementation), module, inputs, sizes,
        small=drafts and is_small(model), options=WITHOUT_WEIGHTS, **({"during": during} if during else {}),
    )  # fmt: skip


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """A drafter's few rows attend by products of matrices: an operator of its own takes longer to call than to run."""
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def served_fanout(rule: TreeRule, fanout: int) -> int:
    """For how many drafts below a node a rule is compiled.

    A walk looks at one node of a level, and further drafts cost next to nothing: 1, 8, 16 or 32 serve all structures.
    """
    return fanout if fanout == 1 or not isinstance(rule, Lifted) else max(8, 1 << (fanout - 1).bit_length())


def verify_recipe(rule: TreeRule, fanout: int, vocabulary: int, kind: Kind) -> Recipe:
    """Verification by a rule."""
    own = rule.rule if isinstance(rule, Lifted) else rule
    name = getattr(own, "__name__", type(own).__name__)
    nodes, expanded, depth, width = 9, 7, 6, 3
    inputs = (
        tuple(tree_examples(nodes, expanded, WORDS)), torch.zeros(BATCH, 1 + nodes, WORDS), torch.rand(BATCH, nodes),
        torch.zeros(BATCH, 2, group_size(WORDS)), one(), torch.zeros(depth, width, dtype=torch.long),
    )  # fmt: skip
    sizes = (*TREE[:4], varying("012")), varying("012"), varying("01"), varying("02"), {}, varying("01")
    return phase_recipe(
        f"verify by {name}, {fanout} drafts a node", (identity(own), fanout), VerifyStep(rule, fanout, kind),
        inputs, sizes, vocabulary, kind,
    )  # fmt: skip


def finish_recipe(vocabulary: int, kind: Kind) -> Recipe:
    """Verification without drafts."""
    inputs = torch.zeros(BATCH, 2, dtype=torch.long), torch.zeros(BATCH, 1, WORDS), torch.zeros(
        BATCH, 2, group_size(WORDS)
    ), one()  # fmt: skip
    sizes = varying("0"), varying("02"), varying("02"), {}
    return phase_recipe("finish (the last token)", (), FinishStep(kind), inputs, sizes, vocabulary, kind)


def commit_recipe(target: tuple[torch.dtype, ...], drafter: tuple[torch.dtype, ...]) -> Recipe:
    """Commit in caches whose runs of layers have these types."""
    number = torch.zeros(BATCH, dtype=torch.long)
    kinds = enumerate((*target, *drafter))
    runs = [torch.zeros(3, 2, BATCH + 2, 4, 20, 5 + i, dtype=dtype) for i, dtype in kinds]
    two, split = torch.zeros(BATCH, 2, dtype=torch.long), len(target)
    inputs = (
        number, torch.arange(3).expand(BATCH, -1).contiguous(), two, torch.zeros(BATCH, 7, dtype=torch.long),
        number.clone(), torch.tensor(3), runs[:split], runs[split:],
    )  # fmt: skip
    sizes = [varying("02345")] * len(runs)
    return phase_recipe(
        "commit (moves keys and values)", (target, drafter), CommitStep(), inputs,
        (varying("0"), varying("01"), varying("0"), varying("01"), varying("0"), {}, sizes[:split], sizes[split:]), 1,
    )  # fmt: skip


def phase_recipe(
    title: str, of: object, module: torch.nn.Module, inputs: tuple, sizes: tuple, vocabulary: int,
    kind: Kind = (False, False),
) -> Recipe:  # fmt: skip
    """A recipe without a model; of: what it depends on beside our sources."""
    name = title.partition(" ")[0]
    options = {"cpp.threads": 1} if vocabulary <= SMALL_VOCABULARY else {}
    return Recipe(title, name, (name, of, kind, folders_syntax()), module, inputs, sizes, options=options)


def layer_sizes(layers: list[Tensor]) -> list[dict[int, Any]]:
    """Which sizes of keys and values may differ."""
    return [varying("02")] * len(layers)


def tree_examples(nodes: int, expanded: int, words: int) -> DraftTree:
    """Buffers of a tree, of which `expanded` rows have children."""
    numbers = torch.zeros(BATCH, 2 + nodes, dtype=torch.long)
    return DraftTree(
        numbers, torch.ones(BATCH, 2 + nodes, 1 + nodes, dtype=torch.bool), torch.zeros_like(numbers[:, 2:]),
        torch.zeros(BATCH, nodes, dtype=torch.bool), torch.zeros(BATCH, expanded, words),
    )  # fmt: skip


def row_examples(model: Any, nodes: int) -> tuple[Rows, KVStorage]:
    """Four rows of a tree behind `END` tokens, and a cache with more slots than are read."""
    rows = torch.arange(4)
    inputs = Rows(
        tokens=torch.zeros(BATCH, len(rows), dtype=torch.long), depths=rows,
        ancestors=torch.ones(BATCH, len(rows), 1 + nodes, dtype=torch.bool), length=torch.tensor([END] * BATCH),
        prefix=torch.arange(END), slots=rows + 1,
    )  # fmt: skip
    return inputs, KVStorage(layouts_of(model, torch.device("cpu")), BATCH, nodes, END + 3)
