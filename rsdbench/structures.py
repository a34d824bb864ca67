"""How people write structures: "6", "2x3", "2-1-1". Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import accumulate
from operator import mul
from typing import NamedTuple

from rsdbench.decoding.shapes import TreeShape
from rsdbench.errors import UsageError

POSITIVE = "[1-9][0-9]{0,2}"


class Form(NamedTuple):
    """How structures of one kind are written.

    text: an example and its meaning, for messages; pattern: a regular expression; read: from the text to the shape.
    """

    text: str
    pattern: str
    read: Callable[[str], TreeShape]

    def shape(self, structure: str) -> TreeShape:
        """The shape of a structure's tree.

        Raises:
            UsageError: the text does not have this form.
        """
        if not re.fullmatch(self.pattern, structure):
            raise UsageError(f"structure '{structure}' is not of the form {self.text}")
        return self.read(structure)


def two_numbers(structure: str) -> tuple[int, int]:
    """ "3x2" -> (3, 2), and "6" -> (1, 6): a single sequence."""
    first, _, second = structure.rpartition("x")
    return int(first or 1), int(second)


def sequences(structure: str) -> TreeShape:
    """K sequences of length L side by side."""
    count, length = two_numbers(structure)
    return TreeShape((count,) * length, (count,) * length, (*[-1] * count, *range(count * (length - 1))))


def branching(structure: str) -> TreeShape:
    """The same number of children for each node of a level."""
    factors = tuple(int(b) for b in structure.split("-"))
    widths = tuple(accumulate(factors, mul))
    parents = [-1] * factors[0]
    for factor, start, width in zip(factors[1:], accumulate(widths, initial=0), widths, strict=False):
        parents += [start + i // factor for i in range(width * factor)]
    return TreeShape(widths, factors, tuple(parents))


def beam(structure: str) -> TreeShape:
    """K nodes a level, whose parents the draw decides."""
    width, length = two_numbers(structure)
    return TreeShape((width,) * length, (width,) * length, None)


NO_DRAFTS = Form("'0' (no drafts)", "0", lambda structure: TreeShape((), (), ()))
CHAIN = Form("'6' (a length)", POSITIVE, sequences)
SEQUENCES = Form("'2x3' (sequences x length)", f"{POSITIVE}x{POSITIVE}", sequences)
BRANCHING = Form("'2-2-1' (branching factors)", f"{POSITIVE}(-{POSITIVE})*", branching)
BEAM = Form("'2x3' (beam x length)", f"{POSITIVE}x{POSITIVE}", beam)
