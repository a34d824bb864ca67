"""The catalogue of methods. It imports no torch, so that plans, tables and figures are at once there.

To add a method of your own, write its rule (`rsdbench.verification`) or its strategy (`rsdbench.decoding.strategies`)
as a file, and register it here: the grid, the figure, the certificate and the tests go through this table. A method of
your own repository comes as a plugin (`rsdbench.plugins`), through the same function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from rsdbench.decoding.shapes import TreeShape
from rsdbench.errors import UsageError
from rsdbench.plugins import register
from rsdbench.structures import BEAM, BRANCHING, CHAIN, NO_DRAFTS, SEQUENCES, Form

BASELINE = "ar"  # what every ratio is relative to


@dataclass(frozen=True)
class Method:
    """A named pair of drafting strategy and verification rule.

    label: what figures and tables print; form: how its structures are written; structures: by budget, those that the
    benchmark compares; strategy, rule: "module:object" of each, or the objects; whole_tree: whether the rule is a
    `TreeRule`, otherwise it is a `NodeRule`; independent: whether the drafts below a node are independent draws,
    otherwise they are distinct; certain_rule: a `NodeRule` for drafts that are taken for certain, None if the method
    makes no sense with them; style: of its line, as matplotlib takes it.
    """

    label: str
    form: Form
    structures: Mapping[int, tuple[str, ...]]
    strategy: Any
    rule: Any
    whole_tree: bool = False
    independent: bool = False
    certain_rule: Any = None
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


def tree_rule(method: Method, certain: bool = False) -> Any:
    """How a method verifies a tree: its rule, or the walk of it; certain: of drafts that are taken for certain."""
    rule = load(method.certain_rule if certain else method.rule)
    return rule if method.whole_tree and not certain else load("rsdbench.verification.lift:lift")(rule)


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
BOTTOM_UP = "rsdbench.verification.bottom_up:bottom_up"
MATCH = "rsdbench.verification.sample_and_match:sample_and_match"
K_SEQ = "rsdbench.verification.k_seq:k_seq"

METHODS: dict[str, Method] = {}


def register_method(name: str, method: Method) -> None:
    """Put a method into the catalogue: grid, figure, certificate and tests go through it.

    name: on the command line and in records. What its rule and strategy take and give, with shapes: `NodeRule`,
    `TreeRule` (`rsdbench.verification`) and `Strategy` (`rsdbench.decoding.strategies`).

    Raises:
        UsageError: the name is taken, or a structure of the table has another number of nodes than its budget.
    """
    for budget, structures in method.structures.items():
        for structure in structures:
            nodes = method.form.shape(structure).budget
            if nodes != budget:
                raise UsageError(
                    f"method '{name}': structure '{structure}' has {nodes} nodes, but its budget is {budget}"
                )
    register("method", METHODS, name, method)


register_method(BASELINE, Method("AR", NO_DRAFTS, {}, f"{STRATEGIES}:Sequences", REJECTION))
register_method(
    "sd",
    Method(
        "SD", CHAIN, CHAINS, f"{STRATEGIES}:Sequences", REJECTION, certain_rule=MATCH,
        style={"color": "tab:orange", "linestyle": ":", "marker": "x"},
    ),
)  # fmt: skip
register_method(
    "sd_bv",
    Method(
        "SD-BV", CHAIN, CHAINS, f"{STRATEGIES}:Sequences", BOTTOM_UP, whole_tree=True,
        style={"color": "tab:brown", "linestyle": (0, (1, 2)), "marker": "1"},
    ),
)  # fmt: skip
register_method(
    "spectr",
    Method(
        "SpecTr", SEQUENCES, BEAMS, f"{STRATEGIES}:Sequences", K_SEQ, independent=True,
        style={"color": "tab:red", "linestyle": "-.", "marker": "+"},
    ),
)  # fmt: skip
register_method(
    "rsd_c",
    Method(
        "RSD-C", BRANCHING, BRANCHINGS, f"{STRATEGIES}:Branching", REJECTION, certain_rule=MATCH,
        style={"color": "tab:green", "linestyle": "--", "marker": "D", "markersize": 2.6},
    ),
)  # fmt: skip
register_method(
    "rsd_s",
    Method(
        "RSD-S", BEAM, BEAMS, f"{STRATEGIES}:StochasticBeam", REJECTION,
        style={"color": "tab:blue", "linestyle": "-", "marker": "o", "markersize": 2.8},
    ),
)  # fmt: skip


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
