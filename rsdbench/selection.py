"""Which methods and structures a configuration asks for. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf

from rsdbench.drafters import check_fits, is_certain
from rsdbench.errors import UsageError
from rsdbench.methods import BASELINE, METHODS, get_method, get_shape
from rsdbench.notes import note


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
    names = list(METHODS) if config.methods is None else config.methods
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"methods must be a list such as [sd,rsd_s], not '{names}'")
    if not isinstance(config.budgets, ListConfig) or not all(isinstance(b, int) for b in config.budgets):
        raise UsageError(f"budgets must be a list of numbers such as [6,30], not '{config.budgets}'")
    drafter = OmegaConf.select(config, "drafter.path")
    for name in names:
        check_fits(name, drafter, is_certain(drafter))
    drafting = [name for name in dict.fromkeys(names) if get_method(name).drafts]
    budgets = dict.fromkeys(config.budgets)
    pairs = [(BASELINE, "0")] + [(m, s) for m in drafting for b in budgets for s in structures_of(config, m, b)]
    return [Point(m, s, get_shape(m, s).budget, get_method(m).label) for m, s in pairs]


def structures_of(config: DictConfig, method: str, budget: Any) -> list[str]:
    """The structures of a method at a budget: from the configuration if it names any, else from the table.

    Raises:
        UsageError: there are none, or one has another number of nodes than the budget.
    """
    own: Mapping = own_structures(config).get(method, {})
    table = get_method(method).structures
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
