"""The grid of charts: a row for each drafter, target and dataset, a column for each metric."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from rsdbench.errors import UsageError
from rsdbench.methods import METHODS
from rsdbench.results.metrics import CATALOGUE, metric_labels

ACCURACY = (0.7, 1.3)  # the paper's axis
WIDTH, ROW_HEIGHT = 17 / 2.54, 0.86  # inches: the width of a printed page
TOP, LEFT, RIGHT, BOTTOM = 0.24, 0.78, 0.06, 0.5  # inches around the charts, without title, legend and note
TITLE, LEGEND_LINE, NOTE_LINE, LEGEND_COLUMN = 0.17, 0.19, 0.1, 1.3
NOTE_LETTERS = 23  # of a note, on an inch
RESOLUTION = 220  # dots an inch, of .png
# sizes in points as they are printed; fonts stay text in .pdf (42: TrueType)
TEXT = {
    "font.size": 6.5, "axes.titlesize": 8, "axes.labelsize": 6.5, "xtick.labelsize": 6, "ytick.labelsize": 6,
    "legend.fontsize": 8, "lines.linewidth": 1.0, "lines.markersize": 3.6, "axes.linewidth": 0.6,
    "grid.linewidth": 0.4, "xtick.major.pad": 1.5, "ytick.major.pad": 1.5, "axes.titlepad": 4, "figure.titlesize": 9,
}  # fmt: skip
EMBEDDED = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "rsdbench"}  # and names in .svg do not change


@dataclass(frozen=True)
class Wishes:
    """How a grid is to look.

    band: whether intervals are drawn; share_y: whether a column's charts share their y axis within a drafter; columns:
    labels of metrics; width: inches; style: a matplotlib style sheet; colors: by method; legend: bottom, top or none;
    title: above all charts.
    """

    band: bool = True
    share_y: bool = False
    columns: Sequence[str] = field(default_factory=metric_labels)
    width: float = WIDTH
    style: str | None = None
    colors: Mapping[str, str] = field(default_factory=dict)
    legend: str = "bottom"
    title: str = ""


def draw(
    points: pd.DataFrame, rows: dict[str, str], labels: dict[str, str], note: str = "", wishes: Wishes = Wishes()
) -> Any:  # fmt: skip
    """A matplotlib figure of `figure_points`: one row of axes a label in `rows`, one column a metric, one legend.

    rows: labels of the rows, in order, with their drafters; labels: of the methods, in their order; note: a line below
    the legend. The user's matplotlib settings play no part, and are left as they are.

    Raises:
        UsageError: the style sheet cannot be used.
    """
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams.update(EMBEDDED)  # read when the figure is saved, by whoever does it
    with style_of(wishes):
        styles = styles_of(labels, wishes)
        note_lines = textwrap.wrap(plain(note), max(20, int(NOTE_LETTERS * wishes.width)))
        legend_columns = max(1, min(len(labels), int(wishes.width / LEGEND_COLUMN)))
        legend_lines = 0 if wishes.legend == "none" else math.ceil(len(labels) / legend_columns)
        below = BOTTOM + NOTE_LINE * len(note_lines) + LEGEND_LINE * legend_lines * (wishes.legend == "bottom")
        above = TOP + TITLE * bool(wishes.title) + LEGEND_LINE * legend_lines * (wishes.legend == "top")
        height = ROW_HEIGHT * len(rows) + above + below
        figure = Figure((wishes.width, height))
        grid = figure.subplots(len(rows), len(wishes.columns), squeeze=False, sharex=True)
        fill(grid, points, rows, labels, styles, wishes)
        figure.subplots_adjust(
            left=LEFT / wishes.width, right=1 - RIGHT / wishes.width, bottom=below / height, top=1 - above / height,
            wspace=0.27, hspace=0.16,
        )  # fmt: skip
        figure.align_ylabels(grid[:, 0])
        if legend_lines:
            end, y = "lower", 0.07 + NOTE_LINE * len(note_lines)
            if wishes.legend == "top":
                end, y = "upper", height - TITLE * bool(wishes.title)
            figure.legend(
                handles=handles(labels, styles), loc=f"{end} center", ncols=legend_columns, borderaxespad=0.1,
                bbox_to_anchor=(0.5, y / height),
            )  # fmt: skip
        if wishes.title:
            figure.suptitle(plain(wishes.title), y=1 - 0.04 / height, va="top")
        figure.text(0.5, 0.04 / height, "\n".join(note_lines), ha="center", va="bottom", fontsize=5.5, color="0.35")
    return figure


def fill(
    grid: np.ndarray, points: pd.DataFrame, rows: dict[str, str], labels: dict[str, str],
    styles: dict[str, dict[str, Any]], wishes: Wishes,
) -> None:  # fmt: skip
    """Draw all charts of a grid of axes."""
    limits = shared(points, rows) if wishes.share_y else {}
    for line, row in zip(grid, rows, strict=True):
        for axes, metric in zip(line, wishes.columns, strict=True):
            own = points[(points.row == row) & (points.metric == metric)].dropna(subset="value")
            for method, label in labels.items():
                curve(axes, own[own.method == method], plain(label), styles[method], wishes.band)
            if CATALOGUE[metric].relative:
                axes.axhline(1.0, color="0.6", linewidth=0.7, zorder=0)  # autoregressive decoding
            axes.set(xlabel="", ylabel="", ylim=limits.get((rows[row], metric)) or limits_of(own, metric))
            outside(axes, own, styles)
            axes.tick_params(left=False)
        line[0].set_ylabel(plain(row.replace(", ", "\n")))
    for axes, metric in zip(grid[0], wishes.columns, strict=True):
        axes.set_title(f"{metric} (AR = 1)" if CATALOGUE[metric].relative else metric)
    for axes in grid[-1]:
        axes.set(xticks=sorted(points.budget.unique()), xlabel="num. tokens at target")


@contextmanager
def style_of(wishes: Wishes) -> Iterator[None]:
    """Seaborn's theme with our sizes, and the user's style sheet on top.

    Raises:
        UsageError: the style sheet cannot be used.
    """
    import matplotlib
    import seaborn
    from matplotlib import style

    with matplotlib.rc_context():
        matplotlib.rcParams.update({key: v for key, v in matplotlib.rcParamsDefault.items() if key != "backend"})
        seaborn.set_theme(context="paper", style="whitegrid", rc=TEXT | EMBEDDED)
        if wishes.style:
            try:
                style.use(wishes.style)
            except (OSError, ValueError, KeyError) as error:
                reason = (str(error).strip().splitlines() or ["it is none"])[0]
                raise UsageError(f"--style '{wishes.style}' cannot be used: {reason}") from None
        yield


def styles_of(labels: dict[str, str], wishes: Wishes) -> dict[str, dict[str, Any]]:
    """Color, line and marker of each method; one without a style of its own gets the next color of a palette."""
    import seaborn

    others = iter(seaborn.color_palette("Dark2", max(1, len(labels))))
    known = {m: dict(METHODS[m].style) for m in labels if m in METHODS}
    styles = {m: known.get(m) or {"color": next(others), "linestyle": "-", "marker": "s"} for m in labels}
    return {m: own | ({"color": wishes.colors[m]} if m in wishes.colors else {}) for m, own in styles.items()}


def handles(labels: dict[str, str], styles: dict[str, dict[str, Any]]) -> list[Any]:
    """What the legend shows of each method."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], label=plain(label), markeredgecolor=styles[m]["color"], **styles[m])
        for m, label in labels.items()
    ]


def plain(text: str) -> str:
    """A text of the user's: a dollar in it begins no formula."""
    return text.replace("$", r"\$")


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
        for metric in dict.fromkeys(points.metric):
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
