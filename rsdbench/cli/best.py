"""`rsdbench best`: which method and structure to take, and whether it pays."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.table import Table

from rsdbench.cli.output import TABLES, check_format, command_parser, screen, write_frame
from rsdbench.errors import UsageError
from rsdbench.plotting.grid import metric_named
from rsdbench.results.comparison import Best, bests
from rsdbench.results.metrics import compared
from rsdbench.results.results import Results

SHOWN = 4  # rivals of each row


def main(arguments: list[str]) -> None:
    """Print the best of each row with a verdict, or write all comparisons into a file.

    Raises:
        UsageError: the results are not usable, have no such metric or budget, or the file cannot be written.
    """
    parser = command_parser(
        "best", "The best method and structure of each row, tested against the others and AR.",
        "rsdbench best results/standin --budget 14 --metric token_rate",
    )  # fmt: skip
    parser.add_argument("results", type=Path, help="a folder that `rsdbench run` filled, or what `merge` wrote")
    names = ", ".join(metric.name for metric in compared())
    parser.add_argument("--metric", default="token_rate", help=f"{names} (%(default)s)")
    parser.add_argument("--budget", type=int, metavar="N", help="only structures of so many draft tokens (any)")
    parser.add_argument("--out", type=Path, help=f"a file, {', '.join(TABLES)}: a line a comparison")
    args = parser.parse_args(arguments)
    if args.out is not None:
        check_format(args.out, TABLES)
    results = Results.load(args.results)
    if args.metric not in (known := [metric.name for metric in compared()]):
        raise UsageError(f"--metric must be one of {', '.join(known)}, not '{args.metric}'")
    found = bests(results, metric_named(args.metric), args.budget)
    if args.out is None:
        screen().print(table(found))
    else:
        write_frame(as_frame(found), args.out)
        print(f"{args.out}: {len(found)} rows")
    for best in found:
        print(f"{best.row}: {best.name} {best.verdict}")
    print("\n".join(results.notes()))


def table(found: list[Best]) -> Table:
    """A line a row of the grid."""
    made = Table(caption="ratios: the best over the other, paired, with intervals that hold together in a row (95 %)")
    for name in ("row", "best", found[0].metric if found else "", "over the next ones", "over AR"):
        made.add_column(name, overflow="fold")
    for best in found:
        value = f"{best.estimate.value:.3f} [{best.estimate.low:.3f}, {best.estimate.high:.3f}]"
        rivals = [f"{r.name}  {r.ratio:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in best.rivals[:SHOWN]]
        ar = f"{best.ar.ratio:.3f} [{best.ar.low:.3f}, {best.ar.high:.3f}]"
        made.add_row(best.row, best.name, value, "\n".join(rivals), ar)
    return made


def as_frame(found: list[Best]) -> pd.DataFrame:
    """A line a comparison: row, metric, best, budget, value, low, high, other, ratio, ratio_low, ratio_high, ties."""
    lines = [
        {
            "row": best.row, "metric": best.metric, "best": best.name, "budget": best.budget,
            **best.estimate._asdict(), "other": other.name, "ratio": other.ratio, "ratio_low": other.low,
            "ratio_high": other.high, "ties": other.ties,
        }
        for best in found for other in (*best.rivals, best.ar)
    ]  # fmt: skip
    return pd.DataFrame(lines)
