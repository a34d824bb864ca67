"""What the paper's figure shows, as claims that a grid of results can be held against.

A claim is a set of quantities, each with the region in which it must lie. It holds if all their intervals lie inside,
fails if one of them lies wholly outside, and is undecided otherwise. Intervals are simultaneous within a claim
(Bonferroni) at 95 %, from the resamples of `metrics`. Structures are chosen once, on the sample, as for the figure.

Source of the claims: Jeon et al., arXiv 2402.14160, figure 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rsdbench.results import metrics
from rsdbench.results.metrics import CATALOGUE, LEVEL, Values
from rsdbench.results.points import best, values
from rsdbench.results.results import ORDER, Results

EFFICIENCY, MBSU, RATE, ACCURACY = (
    m.label for m in (metrics.BLOCK_EFFICIENCY, metrics.MBSU, metrics.TOKEN_RATE, metrics.ACCURACY)
)
RECURSIVE, OTHERS = ORDER[2:], ORDER[:2]
TASKS = ("bleu", "rouge2")  # by what their answers are scored: WMT and XSum, or what stands for them
ABOVE_ONE, BELOW_ONE = (1.0, np.inf), (0.0, 1.0)  # of ratios
AT_ONE = (0.95, 1.05)
HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
DIFFERS = "does not hold here"  # of models of which the paper says nothing


Named = Iterator[tuple[str, Values | None]]  # logarithms of ratios; None where the results lack what they need
NAMES = {"sd": "SD", "spectr": "SpecTr", "rsd_c": "RSD-C", "rsd_s": "RSD-S"}


class Quantity(NamedTuple):
    """A ratio with its interval, and the ends of the region in which the claim wants it."""

    name: str
    value: float
    low: float
    high: float
    wanted: tuple[float, float]


@dataclass(frozen=True)
class Claim:
    """One sentence on the figure; without quantities, the results lack what it speaks of.

    lacks: what of it; paper: whether the results are of the paper's models or their stand-ins, so that it can fail.
    """

    text: str
    quantities: list[Quantity]
    lacks: tuple[str, ...] = ()
    paper: bool = True

    @property
    def verdict(self) -> str:
        """Holds, fails (or, of others than the paper's models, differs) or undecided."""
        if not self.quantities or any(np.isnan([q.low, q.high]).any() for q in self.quantities):
            return UNDECIDED
        if any(q.low > q.wanted[1] or q.high < q.wanted[0] for q in self.quantities):
            return FAILS if self.paper else DIFFERS
        inside = all(q.wanted[0] < q.low and q.high < q.wanted[1] for q in self.quantities)
        return HOLDS if inside else UNDECIDED


def claims(results: Results) -> list[Claim]:
    """Every claim of the paper's figure, held against a results folder.

    Raises:
        UsageError: as in `Results`.
    """
    curves = Curves(results)
    return [
        curves.claim("block efficiency rises with the budget", rises(curves, EFFICIENCY), ABOVE_ONE),
        curves.claim("MBSU rises with the budget", rises(curves, MBSU), ABOVE_ONE),
        curves.claim("block efficiency: RSD-S > RSD-C > SpecTr > SD", steps(curves, EFFICIENCY), ABOVE_ONE),
        curves.claim("MBSU: RSD-S > RSD-C > SpecTr > SD", steps(curves, MBSU), ABOVE_ONE),
        curves.claim("token rate falls as the budget grows", rises(curves, RATE), BELOW_ONE),
        curves.claim("token rate falls fastest for SD", slower_falls(curves), ABOVE_ONE),
        curves.claim("accuracy stays at 1.0 (within 5 %)", levels(curves), AT_ONE),
        curves.claim("XSum lies above WMT in block efficiency", tasks(curves), ABOVE_ONE),
        curves.claim("RSD lies above SpecTr and SD for every target", advantages(curves), ABOVE_ONE),
    ]


class Curves:
    """The figure's points as `Values`, each computed when it is asked for."""

    def __init__(self, results: Results) -> None:
        chosen = best(values(results))
        self.results = results
        self.labels = results.labels
        self.rows = results.cells.drop_duplicates("row").set_index("row")  # drafter, target, metric of each row
        self.budgets = sorted(set(chosen.budget))
        self.chosen = {(p.metric, p.row, p.method, p.budget): p.cell_id for p in chosen.itertuples()}
        self.lacking: dict[str, None] = {}  # what a claim asked for and is not there, as text, each once
        self.points: dict[tuple[str, str, str, int], Values | None] = {}

    def point(self, *key: Any) -> Values | None:
        """The point of a metric, row, method and budget; None if the results lack it."""
        if key not in self.points:
            metric, row, *rest = key
            cell = self.chosen.get((EFFICIENCY if metric == ACCURACY else metric, row, *rest))
            self.points[key] = None if cell is None else self.results.values(CATALOGUE[metric], cell)
        if self.points[key] is None:
            self.lacking[self.text(*key)] = None
        return self.points[key]

    def text(self, metric: str, row: str, method: str, budget: int) -> str:
        """A point that is not there, in words: of more of them at once, where whole methods or columns lack."""
        if method not in self.labels:
            return NAMES[method]
        if metric == ACCURACY and row not in self.results.base:
            return f"AR in {row}"
        if metric == RATE and not any(key[0] == RATE for key in self.chosen):
            return "token rates"
        return f"{NAMES[method]} at {budget} in {row}"

    def claim(self, text: str, named: Named, wanted: tuple[float, float]) -> Claim:
        """A claim with its quantities: of the paper's models all of them or none, of others those that there are."""
        self.lacking = {}
        found = list(named)
        lacks = tuple(self.lacking)
        if any(own is None for _, own in found) and self.results.is_papers:
            return Claim(text, [], lacks)
        known = [(name, own) for name, own in found if own is not None]
        return Claim(text, quantities(known, wanted), lacks, self.results.is_papers)

    def mean(self, metric: str, method: str, budgets: Iterable[int], rows: Iterable[str]) -> Values | None:
        """Mean logarithm over rows and budgets; None where a point is missing."""
        points = [self.point(metric, row, method, budget) for row in rows for budget in budgets]
        if not points or any(point is None for point in points):
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(np.array(points)).mean(0)


def rises(curves: Curves, metric: str) -> Named:
    """Each method's value at the largest budget over that at the smallest."""
    least, most = curves.budgets[0], curves.budgets[-1]
    if most == least:
        curves.lacking["a second budget"] = None
    for method in ORDER:
        ends = [curves.mean(metric, method, [budget], curves.rows.index) for budget in (most, least)]
        yield f"{NAMES[method]} at {most} / at {least}", difference(*ends) if most > least else None


def steps(curves: Curves, metric: str) -> Named:
    """Each method over the one that the paper has below it, over all budgets."""
    for worse, better in itertools.pairwise(ORDER):
        both = [curves.mean(metric, method, curves.budgets, curves.rows.index) for method in (better, worse)]
        yield f"{NAMES[better]} / {NAMES[worse]}", difference(*both)


def slower_falls(curves: Curves) -> Named:
    """What is left of each method's token rate over what is left of SD's."""
    left = dict(zip(ORDER, (values for _, values in rises(curves, RATE)), strict=True))
    for method in ORDER[1:]:
        yield f"what is left of {NAMES[method]} / of SD", difference(left[method], left["sd"])


def levels(curves: Curves) -> Named:
    """Each method's accuracy over all rows and budgets."""
    for method in ORDER:
        yield NAMES[method], curves.mean(ACCURACY, method, curves.budgets, curves.rows.index)


def tasks(curves: Curves) -> Named:
    """Each method on summaries over itself on translations, with the same models."""
    pairs = [set(map(tuple, own[["drafter", "target"]].to_numpy())) for own in by_task(curves)]
    both = pairs[0] & pairs[1]
    if not both:
        curves.lacking["a pair on both tasks"] = None
    rows = [[r.Index for r in own.itertuples() if (r.drafter, r.target) in both] for own in by_task(curves)]
    for method in ORDER:
        means = [curves.mean(EFFICIENCY, method, curves.budgets, own) for own in rows]
        yield NAMES[method], difference(means[1], means[0])


def by_task(curves: Curves) -> list[pd.DataFrame]:
    """The rows of translations and of summaries."""
    return [curves.rows[curves.rows.metric == metric] for metric in TASKS]


def advantages(curves: Curves) -> Named:
    """Block efficiency of both RSD methods over that of both others, by target."""
    for target, own in curves.rows.sort_values("target_params").groupby("target", sort=False):
        for method, other in itertools.product(RECURSIVE, OTHERS):
            both = [curves.mean(EFFICIENCY, m, curves.budgets, own.index) for m in (method, other)]
            yield f"{target}: {NAMES[method]} / {NAMES[other]}", difference(*both)


def difference(one: Values | None, other: Values | None) -> Values | None:
    """One minus the other, if both are there."""
    return None if one is None or other is None else one - other


def quantities(found: list[tuple[str, Values]], wanted: tuple[float, float]) -> list[Quantity]:
    """Ratios with intervals that hold together."""
    if not found:
        return []
    z = NormalDist().inv_cdf(1 - (1 - LEVEL) / 2 / len(found))
    made = []
    for text, logarithms in found:
        with np.errstate(invalid="ignore"):
            error = z * logarithms[1:].std(ddof=1)
        made.append(Quantity(text, *np.exp(logarithms[0] + np.array([0, -error, error])).tolist(), wanted))
    return made
