"""From records to the figure's points: the best structure of each row, metric, method and budget."""

from __future__ import annotations

from typing import Any

import pandas as pd

from rsdbench.results import metrics
from rsdbench.results.metrics import ACCURACY, BLOCK_EFFICIENCY, CATALOGUE, TOKEN_RATE, compared, metric_labels
from rsdbench.results.results import CELL, Results

POINT = ["row", "metric", "method", "budget", "value", "low", "high", "structure", "steady"]
PLACE = ["row", "metric", "method", "budget"]
MEMBER = [*PLACE, "structure", "cell_id"]


def all_points(results: Results) -> pd.DataFrame:
    """Every structure's metrics: row, metric, method, budget, value, low, high, structure, steady.

    steady: whether the machine was quiet enough for it; times alone can be unsteady.
    """
    known = values(results)
    points = [point(results, [member]) for member in known[MEMBER].itertuples(index=False)]
    return ordered(results, points + accuracies(results, known[known.metric == BLOCK_EFFICIENCY.label]))


def figure_points(results: Results) -> pd.DataFrame:
    """The points of the figure, in the order of rows, metrics, methods and budgets.

    Each metric takes the structure that is best for it, and an interval in which each resample takes its own best one;
    accuracy takes the structure with the best block efficiency.
    """
    known = values(results).sort_values("value", ascending=False, kind="stable")
    points = [point(results, list(own[MEMBER].itertuples(index=False))) for _, own in known.groupby(PLACE, sort=False)]
    efficient = known[known.metric == BLOCK_EFFICIENCY.label].drop_duplicates(PLACE)
    return ordered(results, points + accuracies(results, efficient))


def point(results: Results, members: list[Any]) -> tuple:
    """A row of `POINT`: the first of some cells of one row, metric, method and budget, which is the best of them."""
    first, metric = members[0], CATALOGUE[members[0].metric]
    value = metrics.best_of([results.values(metric, member.cell_id) for member in members])
    steady = metric is not TOKEN_RATE or metrics.is_steady(results.cell(first.cell_id, metric.phase))
    return first.row, first.metric, first.method, first.budget, *value, first.structure, steady


def accuracies(results: Results, chosen: pd.DataFrame) -> list[tuple]:
    """Rows of `POINT` with the accuracy of some cells; none where a row has no AR.

    Raises:
        UsageError: AR has other prompts.
    """
    points = []
    for member in chosen[MEMBER].itertuples(index=False):
        drawn = results.values(ACCURACY, member.cell_id)
        if drawn is not None:
            place = member.row, ACCURACY.label, member.method, member.budget
            points.append((*place, *metrics.estimate(drawn), member.structure, True))
    return points


def ordered(results: Results, points: list[tuple]) -> pd.DataFrame:
    """Points in the order of rows, metrics, methods and budgets."""
    frame = pd.DataFrame(points, columns=POINT)
    orders = {"row": results.rows, "metric": list(metric_labels()), "method": results.methods}
    for name, order in orders.items():
        frame[name] = pd.Categorical(frame[name], order, ordered=True)
    frame = frame.sort_values(PLACE, kind="stable").reset_index(drop=True)
    numbers = dict.fromkeys(("value", "low", "high"), float) | {"budget": int}
    return frame.astype(dict.fromkeys(orders, str) | numbers | {"steady": bool})


def values(results: Results) -> pd.DataFrame:
    """What `compared` metrics give for each cell: row, method, budget, structure, metric, value, cell_id."""
    cells = results.cells[results.cells.budget > 0]  # AR drafts nothing
    found = [
        (*cell, metric.label, float(drawn[0]))
        for metric in compared()
        for cell in cells[["cell_id", *CELL]].itertuples(index=False)
        if (drawn := results.values(metric, cell.cell_id)) is not None
    ]
    return pd.DataFrame(found, columns=["cell_id", *CELL, "metric", "value"])[[*CELL, "metric", "value", "cell_id"]]


def best(points: pd.DataFrame) -> pd.DataFrame:
    """The structure with the largest value of each row, metric, method and budget."""
    return points.sort_values("value", ascending=False, kind="stable").drop_duplicates(PLACE)


def unsteady_line(frame: pd.DataFrame) -> str:
    """A line on the token rates of points or cells that were timed on an unquiet machine; "" if there are none."""
    found = frame[~frame.steady.astype(bool)]
    if found.empty:
        return ""
    named = "; ".join(f"{p.row} {p.method} {p.structure}" for p in found.head(3).itertuples())
    more = "; ..." if len(found) > 3 else ""
    return f"unsteady: {len(found)} of {len(frame)} token rates, the machine was not quiet: {named}{more}"
