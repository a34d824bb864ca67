"""Which method and structure is the best of a row, and which others it cannot be told apart from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from rsdbench.errors import UsageError
from rsdbench.results import metrics
from rsdbench.results.metrics import CATALOGUE, LEVEL, Estimate, Values
from rsdbench.results.points import MEMBER, values
from rsdbench.results.results import FEW, Results

AR = "AR"  # which has 1 in block efficiency, MBSU and token rate


@dataclass(frozen=True)
class Rival:
    """Another method and structure: the best one's value over its own, with an interval that holds for all rivals."""

    name: str
    ratio: float
    low: float
    high: float

    @property
    def ties(self) -> bool:
        """Whether the two cannot be told apart."""
        return self.low <= 1 <= self.high


@dataclass(frozen=True)
class Best:
    """The best of a row. estimate: in its interval each resample takes its own best; rivals: the closest first; ar: AR
    as a rival, whose ratio is below 1 where AR is better; prompts: that it rests on."""

    row: str
    metric: str
    name: str
    budget: int
    estimate: Estimate
    rivals: list[Rival]
    ar: Rival
    prompts: int

    @property
    def verdict(self) -> str:
        """A line: what it ties with, how far ahead it is of the rest, and whether it pays."""
        tied = [rival.name for rival in self.rivals if rival.ties]
        behind = [rival for rival in self.rivals if not rival.ties]
        parts = []
        if tied:
            parts.append(f"ties with {', '.join(tied[:3])}{f' and {len(tied) - 3} more' if len(tied) > 3 else ''}")
        if behind:
            ahead = f"ahead of {behind[0].name} by {percent(behind[0].ratio)}"
            parts.append(ahead if tied or len(behind) == 1 else f"{ahead}, and of all others by more")
        parts.append(against_ar(self.ar, self.metric))
        if self.prompts < FEW:
            parts.append(f"no more than a hint, of {self.prompts} prompt{'s' if self.prompts > 1 else ''}")
        return "; ".join(parts)


def against_ar(ar: Rival, metric: str) -> str:
    """Whether the best one is better than AR."""
    word = "faster" if metric == "token rate" else "better"
    if ar.ties:
        return "cannot be told from AR"
    if ar.ratio > 1:
        return f"{word} than AR by {percent(ar.ratio)}"
    return f"AR is {word} by {percent(1 / ar.ratio)}"


def percent(ratio: float) -> str:
    """1.213 -> "21 %"."""
    share = 100 * (ratio - 1)
    return f"{share:.0f} %" if share >= 10 else f"{share:.1f} %"


def bests(results: Results, metric: str, budget: int | None) -> list[Best]:
    """The best of each row, at one budget or of all.

    Raises:
        UsageError: no cell has this metric or budget.
    """
    known = values(results)
    known = known[known.metric == metric]
    if known.empty:
        raise UsageError(f"these results have no {metric}")
    budgets = sorted(set(known.budget))
    if budget is not None and budget not in budgets:
        raise UsageError(f"these results have no budget {budget}: choose from {', '.join(map(str, budgets))}")
    known = known if budget is None else known[known.budget == budget]
    return [best_of(row, known[known.row == row], results) for row in present(results, known)]


def present(results: Results, known: pd.DataFrame) -> Iterator[str]:
    """The rows that have cells of this kind, in order."""
    return (row for row in results.rows if row in set(known.row))


def best_of(row: str, own: pd.DataFrame, results: Results) -> Best:
    """The best of some cells of a row."""
    members = list(own.sort_values("value", ascending=False, kind="stable")[MEMBER].itertuples(index=False))
    first, *others = members
    found = [results.values(CATALOGUE[first.metric], member.cell_id) for member in members]
    drawn = [np.log(values) for values in found]
    z = NormalDist().inv_cdf(1 - (1 - LEVEL) / 2 / len(members))
    rivals = [
        rival(name_of(results, other), drawn[0] - theirs, z) for other, theirs in zip(others, drawn[1:], strict=True)
    ]
    estimate = metrics.best_of(found)
    prompts = results.cell(first.cell_id, CATALOGUE[first.metric].phase).prompt_id.nunique()
    if prompts == 1:  # all of its resamples are alike, and say nothing
        estimate = Estimate(estimate.value, float("nan"), float("nan"))
        rivals = [Rival(other.name, other.ratio, 0.0, float("inf")) for other in rivals]
    ar = Rival(AR, estimate.value, 0.0, float("inf")) if prompts == 1 else rival(AR, drawn[0], z)
    return Best(row, first.metric, name_of(results, first), first.budget, estimate, rivals, ar, prompts)


def rival(name: str, logarithms: Values, z: float) -> Rival:
    """From logarithms of ratios, of the sample and of each resample."""
    error = z * float(logarithms[1:].std(ddof=1))
    return Rival(name, *np.exp(logarithms[0] + np.array([0, -error, error])).tolist())


def name_of(results: Results, member: Any) -> str:
    """ "RSD-S 3x2"."""
    return f"{results.labels[member.method]} {member.structure}"
