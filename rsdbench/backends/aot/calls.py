"""Which compiled calls a method's blocks are made of, and what has to be compiled for them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from rsdbench.backends.aot.block import Calls
from rsdbench.backends.aot.forwards import CompiledGrow, forward_recipe, grow_recipe
from rsdbench.backends.aot.library import Recipe
from rsdbench.backends.aot.steps import accept_recipe, finish_recipe, library_of, verify_recipe
from rsdbench.decoding.descent import slots_of
from rsdbench.decoding.drafting import Drafting, NoDrafting
from rsdbench.decoding.methods import get_method, get_shape
from rsdbench.errors import UsageError
from rsdbench.models.pair import Pair
from rsdbench.notes import note
from rsdbench.sampling.distributions import Warp
from rsdbench.verification import Rule


def calls_of(pair: Pair, drafting: Drafting, rule: Rule, warp: Warp, fanout: int) -> Calls | None:
    """A method's compiled calls, if forwards are compiled, the laws are such as they know and all can be compiled.

    fanout: the most drafts below a node.
    """
    if pair.target_forward is None or not whole_blocks(pair, warp):
        return None
    if drafting not in pair.growers and not isinstance(drafting, NoDrafting):
        pair.growers[drafting] = grower(pair, drafting)
    grow = pair.growers.get(drafting)
    verify, accept = (library_of(*step) for step in steps(pair, drafting, rule, fanout))
    needed = (verify, accept) if isinstance(drafting, NoDrafting) else (grow, verify, accept)
    return None if None in needed else Calls(pair.target_forward, grow, verify, accept)


def whole_blocks(pair: Pair, warp: Warp) -> bool:
    """Whether compiled steps know the laws: at a temperature above 0, without top-p, and not in double precision."""
    return warp.temperature > 0 and warp.top_p == 1 and torch.float64 not in (pair.target.dtype, pair.drafter.dtype)


def steps(pair: Pair, drafting: Drafting, rule: Rule, fanout: int) -> list[tuple]:
    """Recipes of verification and commit, each as the function that makes it and its arguments."""
    vocabulary = pair.target.config.vocab_size
    if isinstance(drafting, NoDrafting):
        return [(finish_recipe, vocabulary), (accept_recipe, pair.target.dtype)]
    places = 1 if fanout == 1 else slots_of(fanout)
    return [(verify_recipe, rule, places, vocabulary), (accept_recipe, pair.target.dtype, pair.drafter.dtype)]


def grower(pair: Pair, drafting: Drafting) -> CompiledGrow | None:
    """A drafting's compiled levels, if it can be compiled."""
    try:
        return CompiledGrow(pair.drafter, drafting)
    except UsageError as error:
        note(f"{type(drafting).__name__} is drafted level by level: {error}")
        return None


def recipes(pair: Pair, cases: Iterable[tuple[str, str]], warp: Warp) -> dict[str, Recipe]:
    """All that is compiled for (method, structure) pairs on a CPU, by the name of its file."""
    pair.join()
    found = [forward_recipe(pair.target)]
    made = set()
    for name, structure in cases:
        method, shape = get_method(name), get_shape(name, structure)
        if not whole_blocks(pair, warp):
            wanted = [(forward_recipe, pair.drafter, True)] if shape.depth else []
        else:
            wanted = steps(pair, method.drafting, method.rule, max(shape.fanouts, default=1))
            wanted += [(grow_recipe, pair.drafter, method.drafting)] if shape.depth else []
        for make, *of in wanted:
            if (make, *of) not in made:
                made.add((make, *of))
                found.append(make(*of))
    return {recipe.path.name: recipe for recipe in found}
