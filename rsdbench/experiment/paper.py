"""What the paper's figure shows, as claims that a grid of results can be held against.

A claim is a set of quantities, each with the region in which it must lie. It holds if all their intervals lie inside,
fails if one of them lies wholly outside, and is undecided otherwise. Intervals are simultaneous within a claim
(Bonferroni) at 95 %, from the Bayesian bootstrap over prompts (Rubin, Annals of Statistics 1981): exponential weights,
one for a prompt in all cells that have it, so that what cells share cancels out of their differences. Structures are
chosen once, on the sample, as for the figure.

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

from rsdbench.experiment import metrics
from rsdbench.experiment.points import METRICS, Results, best, values
from rsdbench.experiment.scores import of_resamples
from rsdbench.seeds import seed_from

RESAMPLES = 400  # the standard error of an interval's width is then 3.5 %
LEVEL = 0.95
EFFICIENCY, MBSU, RATE, ACCURACY = METRICS
ORDER = ("sd", "spectr", "rsd_c", "rsd_s")  # the paper's, from the lowest curve to the highest
RECURSIVE, OTHERS = ORDER[2:], ORDER[:2]
TASKS = ("bleu", "rouge2")  # by what their answers are scored: WMT and XSum, or what stands for them
ABOVE_ONE, BELOW_ONE = (1.0, np.inf), (0.0, 1.0)  # of ratios
AT_ONE = (0.95, 1.05)
HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"

Values = np.ndarray  # [1 + RESAMPLES]: of the sample, and of each resample


class Quantity(NamedTuple):
    """A ratio with its interval, and the ends of the region in which the claim wants it."""

    name: str
    value: float
    low: float
    high: float
    wanted: tuple[float, float]


@dataclass(frozen=True)
class Claim:
    """One sentence on the figure; without quantities, the results lack what it speaks of."""

    text: str
    quantities: list[Quantity]

    @property
    def verdict(self) -> str:
        """Holds, fails or undecided."""
        if not self.quantities or any(np.isnan([q.low, q.high]).any() for q in self.quantities):
            return UNDECIDED
        if any(q.low > q.wanted[1] or q.high < q.wanted[0] for q in self.quantities):
            return FAILS
        inside = all(q.wanted[0] < q.low and q.high < q.wanted[1] for q in self.quantities)
        return HOLDS if inside else UNDECIDED


def claims(results: Results) -> list[Claim]:
    """Every claim of the paper's figure, held against a results folder.

    Raises:
        UsageError: as in `Results`.
    """
    curves = Curves(results)
    return [
        Claim("block efficiency rises with the budget", quantities(rises(curves, EFFICIENCY), ABOVE_ONE)),
        Claim("MBSU rises with the budget", quantities(rises(curves, MBSU), ABOVE_ONE)),
        Claim("block efficiency: RSD-S > RSD-C > SpecTr > SD", quantities(steps(curves, EFFICIENCY), ABOVE_ONE)),
        Claim("MBSU: RSD-S > RSD-C > SpecTr > SD", quantities(steps(curves, MBSU), ABOVE_ONE)),
        Claim("token rate falls as the budget grows", quantities(rises(curves, RATE), BELOW_ONE)),
        Claim("token rate falls fastest for SD", quantities(slower_falls(curves), ABOVE_ONE)),
        Claim("accuracy stays at 1.0 (within 5 %)", quantities(levels(curves), AT_ONE)),
        Claim("XSum lies above WMT in block efficiency", quantities(tasks(curves), ABOVE_ONE)),
        Claim("RSD lies above SpecTr and SD for every target", quantities(advantages(curves), ABOVE_ONE)),
    ]


class Curves:
    """The figure's points as `Values`, each computed when it is asked for."""

    def __init__(self, results: Results) -> None:
        chosen = best(values(results))
        self.results, self.labels = results, results.labels
        self.rows = results.cells.drop_duplicates("row").set_index("row")  # drafter, target, metric of each row
        self.budgets = sorted(set(chosen.budget))
        self.chosen = {(p.metric, p.row, p.method, p.budget): p.cell_id for p in chosen.itertuples()}
        self.cells = dict(iter(results.records.groupby(["cell_id", "phase"])))
        base = results.cells[results.cells.budget == 0]
        self.base = dict(zip(base.row, base.cell_id, strict=True))  # row -> AR's cell
        self.weights: dict[tuple[str, str], np.ndarray] = {}
        self.points: dict[tuple[str, str, str, int], Values | None] = {}

    def point(self, *key: Any) -> Values | None:
        """The point of a metric, row, method and budget; None if the results lack it."""
        if key not in self.points:
            metric, row, *rest = key
            cell = self.chosen.get((EFFICIENCY if metric == ACCURACY else metric, row, *rest))
            functions = {EFFICIENCY: self.efficiency, MBSU: self.mbsu, RATE: self.rate, ACCURACY: self.accuracy}
            self.points[key] = None if cell is None else functions[metric](cell)
        return self.points[key]

    def efficiency(self, cell: str) -> Values:
        """Generated tokens / blocks."""
        own = self.cells[cell, "quality"]
        return self.total(own, "new_tokens") / self.total(own, "blocks")

    def mbsu(self, cell: str) -> Values:
        """Block efficiency / (c L + 1)."""
        first = self.cells[cell, "quality"].iloc[0]
        return self.efficiency(cell) / metrics.block_cost(first.drafter_params, first.target_params, first.depth)

    def rate(self, cell: str) -> Values:
        """Tokens a second over AR's."""
        own = self.cells[cell, "speed"]
        rates = [self.total(own, f"{who}new_tokens") / self.total(own, f"{who}steady_s") for who in ("", "ar_")]
        return rates[0] / rates[1]

    def accuracy(self, cell: str) -> Values | None:
        """Score over AR's; None without AR."""
        own = self.cells[cell, "quality"]
        base = self.base.get(own.row.iloc[0])
        if base is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.score(own) / self.score(self.cells[base, "quality"])

    def total(self, records: pd.DataFrame, column: str) -> Values:
        """Weighted sums of a column."""
        return self.weights_of(records) @ records[column].to_numpy(float)

    def score(self, cell: pd.DataFrame) -> Values:
        """Corpus BLEU or mean ROUGE-2 of one cell's answers."""
        return of_resamples(cell.metric.iloc[0], self.results.statistics_of(cell), self.weights_of(cell))

    def weights_of(self, cell: pd.DataFrame) -> np.ndarray:
        """Weights of a cell's prompts, [1 + RESAMPLES, prompts]: a prompt of a dataset has the same in all cells."""
        dataset = cell.dataset.iloc[0]
        return np.stack([self.weight(dataset, prompt) for prompt in cell.prompt_id], 1)

    def weight(self, dataset: str, prompt: str) -> np.ndarray:
        """One prompt's weights, [1 + RESAMPLES]."""
        key = (dataset, prompt)
        if key not in self.weights:
            drawn = np.random.default_rng(seed_from(f"{metrics.SEED} {key}")).exponential(size=RESAMPLES)
            self.weights[key] = np.concatenate([[1.0], drawn])
        return self.weights[key]

    def mean(self, metric: str, method: str, budgets: Iterable[int], rows: Iterable[str]) -> Values | None:
        """Mean logarithm over rows and budgets; None where a point is missing."""
        points = [self.point(metric, row, method, budget) for row in rows for budget in budgets]
        if not points or any(point is None for point in points):
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(np.array(points)).mean(0)


Named = Iterator[tuple[str, Values | None]]  # logarithms of ratios; None where the results lack what they need


def rises(curves: Curves, metric: str) -> Named:
    """Each method's value at the largest budget over that at the smallest."""
    least, most = curves.budgets[0], curves.budgets[-1]
    for method in ORDER:
        ends = [curves.mean(metric, method, [budget], curves.rows.index) for budget in (most, least)]
        yield f"{name(curves, method)} at {most} / at {least}", difference(*ends) if most > least else None


def steps(curves: Curves, metric: str) -> Named:
    """Each method over the one that the paper has below it, over all budgets."""
    for worse, better in itertools.pairwise(ORDER):
        both = [curves.mean(metric, method, curves.budgets, curves.rows.index) for method in (better, worse)]
        yield f"{name(curves, better)} / {name(curves, worse)}", difference(*both)


def slower_falls(curves: Curves) -> Named:
    """What is left of each method's token rate over what is left of SD's."""
    left = dict(zip(ORDER, (values for _, values in rises(curves, RATE)), strict=True))
    for method in ORDER[1:]:
        yield f"what is left of {name(curves, method)} / of SD", difference(left[method], left["sd"])


def levels(curves: Curves) -> Named:
    """Each method's accuracy over all rows and budgets."""
    for method in ORDER:
        yield name(curves, method), curves.mean(ACCURACY, method, curves.budgets, curves.rows.index)


def tasks(curves: Curves) -> Named:
    """Each method on summaries over itself on translations, with the same models."""
    pairs = [set(map(tuple, own[["drafter", "target"]].to_numpy())) for own in by_task(curves)]
    both = pairs[0] & pairs[1]
    rows = [[r.Index for r in own.itertuples() if (r.drafter, r.target) in both] for own in by_task(curves)]
    for method in ORDER:
        means = [curves.mean(EFFICIENCY, method, curves.budgets, own) for own in rows]
        yield name(curves, method), difference(means[1], means[0])


def by_task(curves: Curves) -> list[pd.DataFrame]:
    """The rows of translations and of summaries."""
    return [curves.rows[curves.rows.metric == metric] for metric in TASKS]


def advantages(curves: Curves) -> Named:
    """Block efficiency of both RSD methods over that of both others, by target."""
    for target, own in curves.rows.sort_values("target_params").groupby("target", sort=False):
        for method, other in itertools.product(RECURSIVE, OTHERS):
            both = [curves.mean(EFFICIENCY, m, curves.budgets, own.index) for m in (method, other)]
            yield f"{target}: {name(curves, method)} / {name(curves, other)}", difference(*both)


def name(curves: Curves, method: str) -> str:
    """What the figure calls a method."""
    return curves.labels.get(method, method)


def difference(one: Values | None, other: Values | None) -> Values | None:
    """One minus the other, if both are there."""
    return None if one is None or other is None else one - other


def quantities(named: Named, wanted: tuple[float, float]) -> list[Quantity]:
    """Ratios with intervals that hold together; none if the results lack a part of what the claim speaks of."""
    found = list(named)
    if any(values is None for _, values in found):
        return []
    z = NormalDist().inv_cdf(1 - (1 - LEVEL) / 2 / len(found))
    made = []
    for text, logarithms in found:
        with np.errstate(invalid="ignore"):
            error = z * logarithms[1:].std(ddof=1)
        made.append(Quantity(text, *np.exp(logarithms[0] + np.array([0, -error, error])).tolist(), wanted))
    return made
