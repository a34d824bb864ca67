"""What a configuration asks for: its methods and structures; and whether its settings are usable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig

from rsdbench.decoding.drafting import NoDrafting
from rsdbench.decoding.methods import BASELINE, METHODS, get_method, get_shape
from rsdbench.errors import UsageError
from rsdbench.models.pair import DTYPES
from rsdbench.notes import note
from rsdbench.sampling.distributions import Warp


class Point(NamedTuple):
    """A method and a structure, and what the figure calls the method."""

    method: str
    structure: str
    budget: int
    label: str


def points_of(config: DictConfig) -> list[Point]:
    """What a row job asks for: autoregressive decoding first, then method by method and budget by budget.

    Raises:
        UsageError: an unknown method, a budget without structures, or a structure of another budget.
    """
    check_own_structures(config)
    names = list(METHODS) if config.methods is None else config.methods
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"methods must be a list such as [sd,rsd_s], not '{names}'")
    if not isinstance(config.budgets, ListConfig) or not all(isinstance(b, int) for b in config.budgets):
        raise UsageError(f"budgets must be a list of numbers such as [6,30], not '{config.budgets}'")
    drafting = [name for name in dict.fromkeys(names) if not isinstance(get_method(name).drafting, NoDrafting)]
    budgets = dict.fromkeys(config.budgets)
    pairs = [(BASELINE, "0")] + [(m, s) for m in drafting for b in budgets for s in structures_of(config, m, b)]
    return [Point(m, s, get_shape(m, s).budget, get_method(m).label) for m, s in pairs]


def structures_of(config: DictConfig, method: str, budget: Any) -> list[str]:
    """The structures of a method at a budget: from the configuration if it names any, else from the table.

    Raises:
        UsageError: there are none, or one has another number of nodes than the budget.
    """
    own: Mapping = own_structures(config).get(method, {})
    table = get_method(method).drafting.structures
    chosen = own.get(budget, own.get(str(budget))) or table.get(budget)
    if not chosen:
        known = ", ".join(map(str, table))
        raise UsageError(
            f"method '{method}' has no structures of budget {budget}: choose from {known}, or give "
            f"structures={{{method}: {{{budget}: [...]}}}}"
        )
    for structure in map(str, chosen):
        check_budget(method, structure, budget)
    return [str(s) for s in chosen][: config.max_structures]


def own_structures(config: DictConfig) -> Mapping:
    """The structures that a configuration names in place of the table's.

    Raises:
        UsageError: they are not by method and budget.
    """
    own = config.structures or {}
    if not isinstance(own, Mapping) or not all(
        isinstance(budgets, Mapping) and all(isinstance(s, ListConfig) for s in budgets.values())
        for budgets in own.values()
    ):
        raise UsageError(
            f"structures must be lists by method and budget, such as {{rsd_s: {{12: [4x3]}}}}, not '{own}'"
        )
    return own


def check_own_structures(config: DictConfig) -> None:
    """See that the structures that a configuration names are well formed, and say which are not used.

    Raises:
        UsageError: one is of another form or budget, or its method is unknown.
    """
    for method, budgets in own_structures(config).items():
        for budget, structures in budgets.items():
            for structure in structures:
                check_budget(method, str(structure), budget)
            asked = (config.methods is None or method in config.methods) and int(budget) in list(config.budgets)
            if not asked:
                note(f"structures of {method} at {budget} are not used: methods or budgets do not name them")


def check_budget(method: str, structure: str, budget: Any) -> None:
    """See that a structure has as many nodes as its budget.

    Raises:
        UsageError: it has not.
    """
    nodes = get_shape(method, structure).budget
    if str(nodes) != str(budget):
        raise UsageError(
            f"structure '{structure}' of method '{method}' has {nodes} nodes, but its budget is {budget}: "
            "they must be equal"
        )


def check_settings(config: DictConfig) -> None:
    """Everything about a row job that can be wrong and seen without loading a model.

    Raises:
        UsageError: the first thing that is wrong.
    """
    decode = config.decode
    for key, value, kind in (
        ("decode.temperature", decode.temperature, (int, float)),
        ("decode.top_p", decode.top_p, (int, float)),
        ("decode.max_new_tokens", decode.max_new_tokens, int),
        ("quality.batch_size", config.quality.batch_size, int),
        ("speed.num_prompts", config.speed.num_prompts, int),
        ("speed.turns", config.speed.turns, int),
        ("prefix_memory", config.prefix_memory, (int, float)),
        ("seed", config.seed, int),
    ):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UsageError(f"{key} must be a number, not '{value}'")
    Warp(decode.temperature, decode.top_p)
    for key, value, least in (
        ("decode.max_new_tokens", decode.max_new_tokens, 1),
        ("quality.batch_size", config.quality.batch_size, 1),
        ("speed.num_prompts", config.speed.num_prompts, 0),
        ("speed.turns", config.speed.turns, 1),
        ("prefix_memory", config.prefix_memory, 0),
    ):
        if value < least:
            raise UsageError(f"{key} must be at least {least}, not {value}")
    width = config.speed.half_width
    if width is not None and (not isinstance(width, int | float) or isinstance(width, bool) or width <= 0):
        raise UsageError(f"speed.half_width must be null or a number above 0, such as 0.05, not '{width}'")
    if config.dtype != "auto" and config.dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{config.dtype}': choose auto, {', '.join(DTYPES)}")
    if config.compile not in ("auto", True, False):
        raise UsageError(f"unknown compile '{config.compile}': choose auto, true or false")
    if config.check not in (True, False):
        raise UsageError(f"unknown check '{config.check}': choose true or false")
    if decode.profile not in (True, False):
        raise UsageError(f"unknown decode.profile '{decode.profile}': choose true or false")
    if decode.profile and not config.speed.num_prompts:
        raise UsageError(
            "decode.profile=true needs speed.num_prompts of at least 1, which is what it decodes once more"
        )
    if config.speed.num_prompts > config.dataset.num_prompts:
        raise UsageError(
            f"speed.num_prompts ({config.speed.num_prompts}) must not exceed dataset.num_prompts "
            f"({config.dataset.num_prompts})"
        )
