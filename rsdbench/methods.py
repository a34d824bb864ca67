"""The catalogue of methods. It imports no torch, so that plans, tables and figures are at once there.

To add a method of your own, write its rule (`rsdbench.verification`) or its strategy (`rsdbench.decoding.strategies`)
as a file, and add one entry to `METHODS`: the grid, the figure, the certificate and the tests go through this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from rsdbench.decoding.shapes import TreeShape
from rsdbench.errors import UsageError
from rsdbench.structures import BEAM, BRANCHING, CHAIN, NO_DRAFTS, SEQUENCES, Form

BASELINE = "ar"  # what every ratio is relative to


@dataclass(frozen=True)
class Method:
    """A named pair of drafting strategy and verification rule.

    label: what figures and tables print; form: how its structures are written; structures: by budget, those that the
    benchmark compares; strategy, rule: "module:object" of each, or the objects; independent: whether the drafts below a
    node are independent draws, otherwise they are distinct; style: of its line, as matplotlib takes it.
    """

    label: str
    form: Form
    structures: Mapping[int, tuple[str, ...]]
    strategy: Any
    rule: Any
    independent: bool = False
    style: Mapping[str, Any] = field(default_factory=dict)

    @property
    def drafts(self) -> bool:
        """Whether it drafts at all."""
        return self.form is not NO_DRAFTS


def load(place: Any) -> Any:
    """The object at "module:object", which is imported now; what is no text is the object itself."""
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


CHAINS = {6: ("6",), 10: ("10",), 14: ("14",), 21: ("21",), 30: ("30",)}
BEAMS = {6: ("2x3", "3x2"), 10: ("2x5", "5x2"), 14: ("2x7", "7x2"), 21: ("3x7", "7x3"), 30: ("5x6", "6x5")}
BRANCHINGS = {
    6: ("2-1-1", "2-2", "3-1"),
    10: ("2-1-1-1-1", "2-2-1", "5-1"),
    14: ("2-1-1-1-1-1-1", "2-2-2", "7-1"),
    21: ("3-1-1-1-1-1-1", "3-2-2", "7-1-1"),
    30: ("2-2-2-2", "5-1-1-1-1-1", "6-1-1-1-1"),
}
STRATEGIES = "rsdbench.decoding.strategies"
REJECTION = "rsdbench.verification.recursive_rejection:recursive_rejection"
K_SEQ = "rsdbench.verification.k_seq:k_seq"

METHODS: dict[str, Method] = {
    BASELINE: Method("AR", NO_DRAFTS, {}, f"{STRATEGIES}:Sequences", REJECTION),
    "sd": Method(
        "SD", CHAIN, CHAINS, f"{STRATEGIES}:Sequences", REJECTION,
        style={"color": "tab:orange", "linestyle": ":", "marker": "x"},
    ),
    "spectr": Method(
        "SpecTr", SEQUENCES, BEAMS, f"{STRATEGIES}:Sequences", K_SEQ, independent=True,
        style={"color": "tab:red", "linestyle": "-.", "marker": "+"},
    ),
    "rsd_c": Method(
        "RSD-C", BRANCHING, BRANCHINGS, f"{STRATEGIES}:Branching", REJECTION,
        style={"color": "tab:green", "linestyle": "--", "marker": "D", "markersize": 2.6},
    ),
    "rsd_s": Method(
        "RSD-S", BEAM, BEAMS, f"{STRATEGIES}:StochasticBeam", REJECTION,
        style={"color": "tab:blue", "linestyle": "-", "marker": "o", "markersize": 2.8},
    ),
}  # fmt: skip


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method '{name}': choose from {', '.join(METHODS)}")
    return METHODS[name]


def default_structure(name: str) -> str:
    """The first structure of the benchmark's table at its smallest budget; '0' for a method without drafts."""
    table = get_method(name).structures
    return next(iter(table[min(table)])) if table else "0"


def structure_text(structure: object) -> object:
    """A structure as text: 6 is "6", and a list of branching factors, [2, 1, 1], is "2-1-1"."""
    if isinstance(structure, int) and not isinstance(structure, bool):
        return str(structure)
    if isinstance(structure, list | tuple) and structure and all(isinstance(factor, int) for factor in structure):
        return "-".join(map(str, structure))
    return structure


def get_shape(name: str, structure: object = None) -> TreeShape:
    """The tree shape of a method's structure, a text, a number or a list; None is `default_structure`.

    Raises:
        UsageError: unknown method, or a structure that is not of the method's form.
    """
    method = get_method(name)
    structure = default_structure(name) if structure is None else structure_text(structure)
    if not isinstance(structure, str):
        raise UsageError(f"method '{name}' needs a structure of the form {method.form.text}, not {structure!r}")
    try:
        return method.form.shape(structure)
    except UsageError as error:
        raise UsageError(f"method '{name}': {error}") from None
