"""The catalogue of drafters that are no causal LMs, by names that stand in place of a model's. It imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rsdbench.errors import UsageError
from rsdbench.methods import METHODS, get_method, load
from rsdbench.plugins import register


@dataclass(frozen=True)
class DrafterKind:
    """make: "module:object" of what makes a `decoding.drafter.Drafter`, or the object; it takes no arguments.

    certain: whether its drafts are taken for certain, which leaves no distribution to draw others from.
    """

    make: Any
    certain: bool = True


DRAFTERS: dict[str, DrafterKind] = {}


def register_drafter(name: str, kind: DrafterKind) -> None:
    """Put a drafter into the catalogue: `drafter.path=NAME` and `load_pair(target, NAME)` know it.

    Raises:
        UsageError: the name is taken.
    """
    register("drafter", DRAFTERS, name, kind)


register_drafter("lookup", DrafterKind("rsdbench.models.lookup:Lookup"))


def is_drafter(name: object) -> bool:
    """Whether a name is one of the catalogue's, and no model's."""
    return isinstance(name, str) and name in DRAFTERS


def make_drafter(name: str) -> Any:
    """The drafter of that name."""
    return load(DRAFTERS[name].make)()


def is_certain(drafter: object) -> bool:
    """Whether a drafter, by its name or a model's path, takes its drafts for certain."""
    return is_drafter(drafter) and DRAFTERS[drafter].certain


def fitting(methods: list[str], certain: bool) -> list[str]:
    """Those methods that make sense for a drafter; certain: it takes its drafts for certain, and others need more."""
    return [m for m in methods if not (certain and METHODS[m].drafts) or METHODS[m].certain_rule]


def check_fits(method: str, drafter: str, certain: bool) -> None:
    """See that a drafter can draft for a method. certain: as in `fitting`.

    Raises:
        UsageError: it cannot.
    """
    get_method(method)
    if not fitting([method], certain):
        raise UsageError(
            f"method '{method}' draws its drafts from a distribution, and drafter '{drafter}' has none: choose from "
            f"{', '.join(fitting(list(METHODS), certain))}"
        )
