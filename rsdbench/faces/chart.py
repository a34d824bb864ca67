"""The grid of charts: a row for each drafter, target and dataset, a column for each metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rsdbench.experiment.points import METRICS

# the paper's styles; a method that is not among them gets the next colour of a palette
STYLES: dict[str, dict[str, Any]] = {
    "sd": {"color": "tab:orange", "linestyle": ":", "marker": "x"},
    "spectr": {"color": "tab:red", "linestyle": "-.", "marker": "+"},
    "rsd_c": {"color": "tab:green", "linestyle": "--", "marker": "D", "markersize": 2.6},
    "rsd_s": {"color": "tab:blue", "linestyle": "-", "marker": "o", "markersize": 2.8},
}
LABELS = {"rsd_c": "RSD-C (ours)", "rsd_s": "RSD-S (ours)"}  # as in the paper's legend
RATIOS = ("token rate", "accuracy")  # to autoregressive decoding, which is 1
ACCURACY = (0.7, 1.3)  # the paper's axis
WIDTH, ROW_HEIGHT = 17 / 2.54, 0.86  # inches: the width of a printed page
TOP, BOTTOM, LEFT, RIGHT = 0.24, 0.86, 0.78, 0.06  # inches around the charts: legend and notes are at the bottom
RESOLUTION = 220  # dots an inch, of .png
# sizes in points as they are printed; fonts stay text in .pdf (42: TrueType)
TEXT = {
    "font.size": 6.5, "axes.titlesize": 8, "axes.labelsize": 6.5, "xtick.labelsize": 6, "ytick.labelsize": 6,
    "legend.fontsize": 8, "lines.linewidth": 1.0, "lines.markersize": 3.6, "axes.linewidth": 0.6,
    "grid.linewidth": 0.4, "xtick.major.pad": 1.5, "ytick.major.pad": 1.5, "axes.titlepad": 4, "pdf.fonttype": 42,
}  # fmt: skip


@dataclass(frozen=True)
class Wishes:
    """band: whether intervals are drawn; share_y: whether a column's charts share their y axis within a drafter."""

    band: bool = True
    share_y: bool = False


def draw(
    points: pd.DataFrame, rows: dict[str, str], labels: dict[str, str], note: str = "", wishes: Wishes = Wishes()
) -> Any:  # fmt: skip
    """A matplotlib figure of `figure_points`: one row of axes a label in `rows`, 4 columns, one legend below.

    rows: labels of the rows, in order, with their drafters; labels: of the methods, in their order; note: a line below
    the legend.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn

    seaborn.set_theme(context="paper", style="whitegrid", rc=TEXT)
    others = iter(seaborn.color_palette("Dark2", max(1, len(labels))))
    styles = {m: STYLES.get(m) or {"color": next(others), "linestyle": "-", "marker": "s"} for m in labels}
    budgets = sorted(points.budget.unique())
    height = ROW_HEIGHT * len(rows) + TOP + BOTTOM
    figure, grid = plt.subplots(len(rows), len(METRICS), figsize=(WIDTH, height), squeeze=False, sharex=True)
    limits = shared(points, rows) if wishes.share_y else {}
    for line, row in zip(grid, rows, strict=True):
        for axes, metric in zip(line, METRICS, strict=True):
            own = points[(points.row == row) & (points.metric == metric)].dropna(subset="value")
            for method, label in labels.items():
                curve(axes, own[own.method == method], LABELS.get(method, label), styles[method], wishes.band)
            if metric in RATIOS:
                axes.axhline(1.0, color="0.6", linewidth=0.7, zorder=0)  # autoregressive decoding
            axes.set(xlabel="", ylabel="", ylim=limits.get((rows[row], metric)) or limits_of(own, metric))
            outside(axes, own, styles)
            axes.tick_params(left=False)
        line[0].set_ylabel(row.replace(", ", "\n"))
    for axes, metric in zip(grid[0], METRICS, strict=True):
        axes.set_title(metric)
    for axes in grid[-1]:
        axes.set(xticks=budgets, xlabel="num. tokens at target")
    figure.subplots_adjust(
        left=LEFT / WIDTH, right=1 - RIGHT / WIDTH, bottom=BOTTOM / height, top=1 - TOP / height, wspace=0.27,
        hspace=0.16,
    )  # fmt: skip
    figure.align_ylabels(grid[:, 0])
    handles = [
        plt.Line2D([], [], label=LABELS.get(m, label), markeredgecolor=styles[m]["color"], **styles[m])
        for m, label in labels.items()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=len(labels), bbox_to_anchor=(0.5, 0.2 / height))
    figure.text(0.5, 0.06 / height, note, ha="center", va="bottom", fontsize=5.5, color="0.35")
    return figure


def curve(axes: Any, line: pd.DataFrame, label: str, style: dict[str, Any], band: bool) -> None:
    """One method's points, their intervals, and hollow markers where the machine was not quiet."""
    import seaborn

    if line.empty:
        return
    own = {"markeredgecolor": style["color"]}  # seaborn's is white, and these markers may be nothing but edge
    seaborn.lineplot(
        line, x="budget", y="value", ax=axes, errorbar=None, estimator=None, label=label, legend=False, **style, **own
    )
    if band:
        axes.fill_between(line.budget, line.low, line.high, color=style["color"], alpha=0.12, lw=0)
    unsteady = line[~line.steady.astype(bool)]
    axes.plot(
        unsteady.budget, unsteady.value, "o", markersize=4.5, markerfacecolor="white",
        markeredgecolor=style["color"], gid="unsteady",
    )  # fmt: skip


def limits_of(own: pd.DataFrame, metric: str) -> tuple[float, float] | None:
    """The y axis of a chart: accuracy as in the paper, token rate by the bulk of its points; None: matplotlib's."""
    if metric == "accuracy":
        return ACCURACY
    if metric != "token rate" or own.empty:
        return None
    quarters = own.value.quantile([0.25, 0.75]).to_numpy()
    reach = 2 * (quarters[1] - quarters[0]) + 0.05 * quarters[1]
    bulk = own[own.value.between(quarters[0] - reach, quarters[1] + reach)]
    ends = np.array([bulk.value.min(), bulk.value.max()])
    ends = np.array([max(ends[0] - reach, bulk.low.min()), min(ends[1] + reach, bulk.high.max())])
    return tuple(ends + np.array([-0.05, 0.05]) * (ends[1] - ends[0] or 1))


def shared(points: pd.DataFrame, rows: dict[str, str]) -> dict[tuple[str, str], tuple[float, float]]:
    """One y axis for all rows of a drafter, by drafter and metric."""
    found = {}
    for drafter in dict.fromkeys(rows.values()):
        labels = [row for row, own in rows.items() if own == drafter]
        for metric in METRICS:
            own = points[points.row.isin(labels) & (points.metric == metric)].dropna(subset="value")
            if own.empty:
                continue
            margin = 0.05 * (own.high.max() - own.low.min())
            found[drafter, metric] = limits_of(own, metric) or (own.low.min() - margin, own.high.max() + margin)
    return found


def outside(axes: Any, own: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    """Points beyond the y axis: a triangle at its edge, which points to where they are."""
    low, high = axes.get_ylim()
    for end, beyond, marker in ((low, own[own.value < low], "v"), (high, own[own.value > high], "^")):
        for point in beyond.itertuples():
            axes.plot(
                point.budget, end, marker, color=styles[point.method]["color"], markersize=4, clip_on=False, zorder=5,
                gid="outside",
            )  # fmt: skip
