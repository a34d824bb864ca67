"""From records to the figure's points: the best structure of each row, metric, method and budget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from rsdbench.errors import UsageError
from rsdbench.results import metrics
from rsdbench.results.metrics import Estimate
from rsdbench.results.results import CELL, Results

METRICS = ("block efficiency", "MBSU", "token rate", "accuracy")
POINT = ["row", "metric", "method", "budget", "value", "low", "high", "structure", "steady"]


def all_points(results: Results) -> pd.DataFrame:
    """Every structure's metrics: row, metric, method, budget, value, low, high, structure, steady.

    steady: whether the machine was quiet enough for it; times alone can be unsteady.
    """
    known = values(results)
    estimates = Estimates(results)
    points = [(*p[:3], *estimates.best([p]), *p[3:]) for p in known[MEMBER].itertuples(index=False)]
    frame = pd.DataFrame([as_point(results, *p) for p in points], columns=POINT)
    return ordered(results, pd.concat([frame, accuracies(results, known[known.metric == METRICS[0]])]))


def figure_points(results: Results) -> pd.DataFrame:
    """The points of the figure, in the order of rows, metrics, methods and budgets.

    Each metric takes the structure that is best for it, and an interval in which each resample takes its own best one;
    accuracy takes the structure with the best block efficiency.
    """
    known = values(results)
    estimates = Estimates(results)
    points = []
    for _, own in known.groupby(["row", "metric", "method", "budget"], sort=False):
        members = list(own.sort_values("value", ascending=False, kind="stable")[MEMBER].itertuples(index=False))
        points.append(as_point(results, *members[0][:3], *estimates.best(members), *members[0][3:]))
    frame = pd.DataFrame(points, columns=POINT)
    return ordered(results, pd.concat([frame, accuracies(results, best(known[known.metric == METRICS[0]]))]))


MEMBER = ["row", "metric", "method", "budget", "structure", "cell_id"]


def as_point(
    results: Results, row: str, metric: str, method: str, value: float, low: float, high: float, budget: int,
    structure: str, cell: str,
) -> tuple:  # fmt: skip
    """A row of `POINT`."""
    steady = metric != "token rate" or metrics.is_steady(results.cell(cell, "speed"))
    return row, metric, method, budget, value, low, high, structure, steady


def ordered(results: Results, points: pd.DataFrame) -> pd.DataFrame:
    """Points in the order of rows, metrics, methods and budgets."""
    orders = {"row": results.rows, "metric": list(METRICS), "method": results.methods}
    for name, order in orders.items():
        points[name] = pd.Categorical(points[name], order, ordered=True)
    points = points.sort_values(["row", "metric", "method", "budget"], kind="stable").reset_index(drop=True)
    numbers = dict.fromkeys(("value", "low", "high"), float) | {"budget": int}
    return points.astype(dict.fromkeys(orders, str) | numbers | {"steady": bool})


def values(results: Results) -> pd.DataFrame:
    """Block efficiency, MBSU and token rate of each cell: row, method, budget, structure, metric, value, cell_id."""
    frame, cells = results.records, results.cells.set_index("cell_id")
    cells = cells[cells.budget > 0]  # AR drafts nothing
    sums = ["new_tokens", "blocks", "steady_s", "ar_new_tokens", "ar_steady_s"]
    quality, speed = (
        frame[frame.phase == phase].groupby("cell_id", sort=False)[sums].sum().reindex(cells.index)
        for phase in ("quality", "speed")
    )
    efficiency = quality.new_tokens / quality.blocks
    found = {
        "block efficiency": efficiency,
        "MBSU": efficiency / metrics.block_cost(cells.drafter_params, cells.target_params, cells.depth),
        "token rate": speed.new_tokens / speed.steady_s / (speed.ar_new_tokens / speed.ar_steady_s),
    }
    parts = [cells.assign(metric=metric, value=value)[value.notna()] for metric, value in found.items()]
    return pd.concat([part.reset_index() for part in parts])[[*CELL, "metric", "value", "cell_id"]]


def best(points: pd.DataFrame) -> pd.DataFrame:
    """The structure with the largest value of each row, metric, method and budget."""
    keys = ["row", "metric", "method", "budget"]
    return points.sort_values("value", ascending=False, kind="stable").drop_duplicates(keys)


@dataclass
class Estimates:
    """Values of cells with their intervals; sums of a cell over prompts are computed once."""

    results: Results

    @cached_property
    def sums(self) -> dict[tuple[str, str], pd.DataFrame]:
        """By cell and phase, the sums of each prompt's records."""
        return metrics.prompt_sums(self.results.records)

    def best(self, members: list[Any]) -> Estimate:
        """The best of several cells, of one metric, the best one first.

        Each resample of the prompts takes the cell that is best there: the choice is a part of the uncertainty.
        """
        metric = members[0].metric
        phase = "speed" if metric == "token rate" else "quality"
        own = [self.sums[member.cell_id, phase] for member in members]
        prompts = max(own, key=len).index
        drawn = [metrics.resampled(metric, sums, prompts, self.cost(m)) for sums, m in zip(own, members, strict=True)]
        return metrics.estimate(np.fmax.reduce(drawn))

    def cost(self, member: Any) -> float:
        """Weights that a block of a cell reads, in targets."""
        first = self.results.cells.set_index("cell_id").loc[member.cell_id]
        return float(metrics.block_cost(first.drafter_params, first.target_params, first.depth))


def accuracies(results: Results, chosen: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of some cells, relative to AR's on the same prompts, in the columns of `POINT`.

    Raises:
        UsageError: AR has other prompts.
    """
    frame, points = results.records, []
    for row, ar in frame[(frame.phase == "quality") & (frame.budget == 0)].groupby("row"):
        metric, base = ar.metric.iloc[0], ar.sort_values("prompt_id")
        ar_scores = metrics.resampled_scores(metric, results.statistics_of(base))
        for p in chosen[chosen.row == row].itertuples():
            cell = results.cell(p.cell_id, "quality").sort_values("prompt_id")
            if cell.prompt_id.tolist() != base.prompt_id.tolist():
                raise UsageError(
                    f"row '{row}' has other prompts in AR than in {p.method} {p.structure}: decode it anew"
                )
            value = metrics.accuracy(metric, results.statistics_of(cell), ar_scores)
            points.append((row, "accuracy", p.method, p.budget, *value, p.structure, True))
    return pd.DataFrame(points, columns=POINT)


def unsteady_line(frame: pd.DataFrame) -> str:
    """A line on the token rates of points or cells that were timed on an unquiet machine; "" if there are none."""
    found = frame[~frame.steady.astype(bool)]
    if found.empty:
        return ""
    named = "; ".join(f"{p.row} {p.method} {p.structure}" for p in found.head(3).itertuples())
    more = "; ..." if len(found) > 3 else ""
    return f"unsteady: {len(found)} of {len(frame)} token rates, the machine was not quiet: {named}{more}"
