"""What a certificate is made of: evidence, whose parts run side by side, and the findings it comes to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Finding:
    """One check: a row of the certificate.

    level: 1 the rule, 2 the engine, 3 the shipped models. Either `bound` is the most that `statistic` may be, or
    `p_value` is given, which must not be too small, or, for a mutant, must be. low and high: 95 % interval
    of the statistic; acceptance and optimum: probability that a draft is accepted, and the most any rule could reach.
    """

    level: int
    check: str
    method: str
    structure: str
    setting: str
    samples: int
    statistic: float
    bound: float | None = None
    freedom: int | None = None
    p_value: float | None = None
    low: float | None = None
    high: float | None = None
    acceptance: float | None = None
    optimum: float | None = None
    mutant: bool = False


class Done(NamedTuple):
    """A part's result: the places of its evidence and of itself, what it came to, and the seconds it took."""

    evidence: int
    part: int
    result: Any
    seconds: float


class Evidence(ABC):
    """Something to be checked; `parts` are independent and picklable, so that worker processes can share them."""

    @abstractmethod
    def parts(self) -> Sequence[Callable[[], Any]]:
        """The work, in pieces of seconds."""

    @abstractmethod
    def conclude(self, results: list[Any]) -> list[Finding]:
        """What the results of all parts, in order, amount to."""
