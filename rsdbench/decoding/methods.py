"""The registry of methods: each is a drafting strategy and a verification rule.

To add a method, write its rule as a file in `rsdbench/verification` and add one line to `METHODS`: the grid, the
figure, the certificate and the tests of exactness go through this table.
"""

from __future__ import annotations

from dataclasses import dataclass

from rsdbench.decoding.drafting import BRANCHING, NO_DRAFTS, SEQUENCE, SEQUENCES, STOCHASTIC_BEAM, Drafting
from rsdbench.decoding.tree import TreeShape
from rsdbench.errors import UsageError
from rsdbench.verification import Rule
from rsdbench.verification.k_seq import k_seq
from rsdbench.verification.recursive_rejection import recursive_rejection

BASELINE = "ar"  # what every ratio is relative to


@dataclass(frozen=True)
class Method:
    """A named pair of drafting and rule; `label` is what figures and tables print."""

    label: str
    drafting: Drafting
    rule: Rule


METHODS: dict[str, Method] = {
    BASELINE: Method("AR", NO_DRAFTS, recursive_rejection),
    "sd": Method("SD", SEQUENCE, recursive_rejection),
    "spectr": Method("SpecTr", SEQUENCES, k_seq),
    "rsd_c": Method("RSD-C", BRANCHING, recursive_rejection),
    "rsd_s": Method("RSD-S", STOCHASTIC_BEAM, recursive_rejection),
}


def get_method(name: str) -> Method:
    """The registered method of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method '{name}': choose from {', '.join(METHODS)}")
    return METHODS[name]


def default_structure(name: str) -> str:
    """The first structure of the benchmark's table at its smallest budget; '0' for a method without drafts."""
    table = get_method(name).drafting.structures
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
        raise UsageError(f"method '{name}' needs a structure of the form {method.drafting.form}, not {structure!r}")
    try:
        return method.drafting.shape(structure)
    except UsageError as error:
        raise UsageError(f"method '{name}': {error}") from None
