"""`rsdbench figure`: the grid of charts, a row for each drafter, target and dataset, a column for each metric."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from rsdbench.errors import UsageError
from rsdbench.experiment.points import METRICS, Results, figure_points
from rsdbench.faces.output import output

FORMATS = (".png", ".pdf", ".svg")
NO_DATES = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # the same points, the same file
RESOLUTION = 130  # dots an inch, of .png
# the paper's styles; a method that is not among them gets the next colour of a palette
STYLES: dict[str, dict[str, Any]] = {
    "sd": {"color": "tab:orange", "linestyle": ":", "marker": "x"},
    "spectr": {"color": "tab:red", "linestyle": "-.", "marker": "+"},
    "rsd_c": {"color": "tab:green", "linestyle": "--", "marker": "D", "markersize": 4},
    "rsd_s": {"color": "tab:blue", "linestyle": "-", "marker": "o", "markersize": 4},
}
LABELS = {"rsd_c": "RSD-C (ours)", "rsd_s": "RSD-S (ours)"}  # as in the paper's legend
WIDTH, ROW_HEIGHT, LEGEND_HEIGHT = 13.0, 2.1, 0.6  # inches


def draw(points: pd.DataFrame, rows: list[str], labels: dict[str, str]) -> Any:
    """A matplotlib figure of `figure_points`: one row of axes a label in `rows`, 4 columns, one legend below.

    labels: of the methods, in their order.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.style.use(["seaborn-v0_8-whitegrid", "seaborn-v0_8-paper"])  # matplotlib's own copy of these styles
    budgets = sorted(points.budget.unique())
    palette = iter(plt.get_cmap("Dark2").colors)
    styles = {m: STYLES.get(m) or {"color": next(palette), "linestyle": "-", "marker": "s"} for m in labels}
    height = ROW_HEIGHT * len(rows) + LEGEND_HEIGHT
    figure, grid = plt.subplots(len(rows), len(METRICS), figsize=(WIDTH, height), squeeze=False, dpi=RESOLUTION)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, metric in zip(axes_row, METRICS, strict=True):
            own = points[(points.row == row) & (points.metric == metric)]
            for method, label in labels.items():
                line = own[own.method == method].sort_values("budget")
                axes.plot(line.budget, line.value, label=LABELS.get(method, label), linewidth=1.4, **styles[method])
                axes.fill_between(line.budget, line.low, line.high, color=styles[method]["color"], alpha=0.12, lw=0)
            if metric in ("token rate", "accuracy"):
                axes.axhline(1.0, color="0.6", linewidth=0.8, zorder=0)  # autoregressive decoding
            axes.set_xticks(budgets)
            axes.minorticks_off()
            axes.set_title(row, fontsize=8)
            axes.set_xlabel("num. tokens at target", fontsize=8)
            axes.set_ylabel(metric, fontsize=8)
            axes.tick_params(labelsize=7)
    left, bottom, right, top = 0.5, LEGEND_HEIGHT + 0.45, 0.1, 0.3  # inches; measuring the texts would take a second
    figure.subplots_adjust(
        left=left / WIDTH, right=1 - right / WIDTH, bottom=bottom / height, top=1 - top / height, wspace=0.22,
        hspace=0.5,
    )  # fmt: skip
    entries = grid[0][0].get_legend_handles_labels()
    figure.legend(*entries, loc="lower center", ncols=len(labels), fontsize=11, frameon=True)
    return figure


def main(arguments: list[str]) -> None:
    """Draw a results folder into a file, and say what is missing from it.

    Raises:
        UsageError: the folder holds no usable results, or the file cannot be written.
    """
    parser = argparse.ArgumentParser("rsdbench figure", description="Draw the grid of charts of a results folder.")
    parser.add_argument("results", type=Path, help="a folder that `rsdbench run` filled")
    parser.add_argument("--out", type=Path, required=True, help="FILE.png, FILE.pdf or FILE.svg")
    args = parser.parse_args(arguments)
    if args.out.suffix not in FORMATS:
        raise UsageError(f"--out '{args.out}' must end in {', '.join(FORMATS)}")
    results = Results.load(args.results)
    points = figure_points(results)
    if points.empty:
        raise UsageError(f"'{args.results}' holds only autoregressive decoding: run at least one method")
    figure = draw(points, results.rows, results.labels)
    kind = args.out.suffix
    with output(args.out) as stream:
        if kind == ".png":
            figure.canvas.print_png(stream)  # `savefig` would lay out and draw it twice
        else:
            figure.savefig(stream, format=kind[1:], metadata=NO_DATES.get(kind))
    print(f"{args.out}: {len(results.rows)} rows, {len(figure.axes)} charts, {len(points)} points")
    if missing := results.missing():
        print(missing)
