"""`rsdbench table`: the numbers behind the figure, with intervals, on the screen and as a file."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from rich.table import Table

from rsdbench.cli.output import TABLES, check_format, command_parser, screen, write_frame
from rsdbench.results.metrics import metric_labels
from rsdbench.results.phases import OTHER, PHASES, phase_times
from rsdbench.results.points import all_points, figure_points, unsteady_line
from rsdbench.results.results import Results


def print_points(points: pd.DataFrame, rows: list[str]) -> None:
    """One table a row of the figure: a line for each method and budget, or structure, a column for each metric."""
    console = screen()
    wide = side_by_side(points)
    for row in rows:
        table = Table(title=row, title_justify="left")
        for name in wide.columns[1:]:
            table.add_column(name, justify="left" if name == "method" else "right")
        for line in wide[wide.row == row].itertuples(index=False):
            table.add_row(*map(str, line[1:]))
        console.print(table)


def print_phases(times: pd.DataFrame) -> None:
    """One table a row of the figure: a line for each method and budget, a column for each phase."""
    console = screen()
    for row, own in times.groupby("row", sort=False):
        table = Table(title=f"{row}: milliseconds of a block", title_justify="left")
        for name in ("method", "budget", "structure", "tokens", "ms", *PHASES, OTHER):
            table.add_column(name, justify="left" if name == "method" else "right")
        for time in own.to_dict("records"):
            phases = [f"{time[phase]:.2f} {time[phase] / time['ms']:4.0%}" for phase in (*PHASES, OTHER)]
            numbers = f"{time['tokens']:.2f}", f"{time['ms']:.2f}"
            table.add_row(time["method"], str(time["budget"]), time["structure"], *numbers, *phases)
        console.print(table)


def cell_text(point: object, structure: bool) -> str:
    """Value, interval and perhaps structure of a point; "-" if it is undefined, such as a ratio to a score of 0."""
    if math.isnan(point.value):
        return "-"
    parts = [f"{point.value:.3f} [{point.low:.3f}, {point.high:.3f}]"]
    parts += [point.structure] if structure else []
    return " ".join(parts if point.steady else [*parts, "unsteady"])


def side_by_side(points: pd.DataFrame) -> pd.DataFrame:
    """One line a row, method and budget, with a column for each metric, as people read it.

    Where a metric has several structures of a method and budget, each has a line.
    """
    keys = ["row", "method", "budget"]
    each = points.duplicated([*keys, "metric"]).any()
    keys += ["structure"] if each else []
    texts = points.assign(text=[cell_text(p, not each) for p in points.itertuples()])
    wide = texts.pivot_table(index=keys, columns="metric", values="text", aggfunc="first", sort=False)
    return wide.reindex(columns=list(metric_labels())).fillna("-").reset_index()


def main(arguments: list[str]) -> None:
    """Print the points of a results folder, or write them into a file.

    Raises:
        UsageError: the folder holds no usable results, or the file cannot be written.
    """
    example = "rsdbench table results/standin --out points.csv"
    parser = command_parser("table", "The points of a results folder.", example)
    parser.add_argument("results", type=Path, help="a folder that `rsdbench run` filled")
    parser.add_argument("--out", type=Path, help=f"a file, {', '.join(TABLES)}: a line a point")
    parser.add_argument("--all", action="store_true", help="every structure, not only the best one of each point")
    parser.add_argument("--phases", action="store_true", help="where a block's time goes (of decode.profile=true)")
    args = parser.parse_args(arguments)
    if args.out is not None:
        check_format(args.out, TABLES)
    results = Results.load(args.results)
    if args.phases:
        points = phase_times(results, args.all)
    else:
        points = all_points(results) if args.all else figure_points(results)
    if args.out is not None:
        as_read = args.out.suffix in (".md", ".tex") and not args.phases
        write_frame(side_by_side(points) if as_read else points, args.out)
        print(f"{args.out}: {len(points)} points")
    elif args.phases:
        print_phases(points)
    else:
        print_points(points, results.rows)
    if not args.phases and (unsteady := unsteady_line(points[points.metric == "token rate"])):
        print(unsteady)
    print("\n".join(results.notes()))
