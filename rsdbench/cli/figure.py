"""`rsdbench figure`: the grid of charts as a file."""

from __future__ import annotations

import os
from pathlib import Path

from rsdbench.cli.output import check_format, command_parser, output
from rsdbench.errors import UsageError
from rsdbench.results.metrics import metric_labels
from rsdbench.results.points import unsteady_line
from rsdbench.results.results import Results

FORMATS = (".png", ".pdf", ".svg")
NO_DATES = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # the same points, the same file
# for one column of a page
EXAMPLE = "rsdbench figure results/standin --rows OPT-70K-6M --columns mbsu token_rate --width 8.5cm --out column.pdf"


def main(arguments: list[str]) -> None:
    """Draw a results folder into a file, and say what is missing from it.

    Raises:
        UsageError: the folder holds no usable results or nothing of what is asked for, or the file cannot be written.
    """
    # a figure is the same for everyone, whatever their shell and settings say
    os.environ |= {"MPLBACKEND": "Agg", "MATPLOTLIBRC": os.devnull}
    from rsdbench.plotting.chart import RESOLUTION, Wishes
    from rsdbench.plotting.grid import BEST, LEGENDS, Choice, grid_of, inches, metric_named

    parser = command_parser("figure", "Draw the grid of charts of a results folder.", EXAMPLE)
    parser.add_argument("results", type=Path, help="a folder that `rsdbench run` filled, or what `merge` wrote")
    parser.add_argument("--out", type=Path, required=True, help="FILE.png, FILE.pdf or FILE.svg")
    parser.add_argument("--rows", nargs="+", default=[], metavar="PART", help="only rows whose label has one of these")
    parser.add_argument(
        "--columns", nargs="+", default=metric_labels(), metavar="METRIC", help="only these, in this order"
    )
    parser.add_argument("--methods", nargs="+", default=[], metavar="METHOD", help="only these")
    parser.add_argument("--budgets", nargs="+", type=int, default=[], metavar="N", help="only these")
    parser.add_argument(
        "--structures", nargs="+", default=[BEST], metavar="NAME", help="of each method and budget: best, or those "
        "that are named",
    )  # fmt: skip
    parser.add_argument("--width", default="17cm", help="of the figure: 8.5cm, 85mm, 3.3in (%(default)s)")
    parser.add_argument("--style", metavar="FILE.mplstyle", help="a matplotlib style sheet")
    parser.add_argument("--colors", nargs="+", default=[], metavar="METHOD=COLOR", help="in place of the paper's")
    parser.add_argument("--labels", nargs="+", default=[], metavar="METHOD=TEXT", help="in place of the methods' own")
    parser.add_argument("--legend", default="bottom", metavar="PLACE", help=f"{', '.join(LEGENDS)} (%(default)s)")
    parser.add_argument("--title", default="", help="above all charts")
    parser.add_argument("--band", choices=("none", "ci"), default="ci", help="95 %% intervals around the lines (ci)")
    parser.add_argument("--share-y", action="store_true", help="one y axis for each column of a drafter's rows")
    parser.add_argument("--allow-mixed", action="store_true", help="also several versions of the code, or of backends")
    args = parser.parse_args(arguments)
    check_format(args.out, FORMATS)
    columns = tuple(map(metric_named, args.columns))
    choice = Choice(args.rows, args.methods, args.budgets, args.structures, pairs("--labels", args.labels))
    wishes = Wishes(
        args.band == "ci", args.share_y, columns, inches(args.width), args.style, pairs("--colors", args.colors),
        args.legend, args.title,
    )  # fmt: skip
    results = Results.load(args.results)
    figure, points = grid_of(results, args.results, choice, wishes, args.allow_mixed)
    with output(args.out) as stream:
        figure.savefig(stream, format=args.out.suffix[1:], dpi=RESOLUTION, metadata=NO_DATES.get(args.out.suffix))
    rows = len(figure.axes) // len(columns)
    print(f"{args.out}: {rows} rows, {len(figure.axes)} charts, {len(points)} points")
    if unsteady := unsteady_line(points[points.metric == "token rate"]):
        print(f"{unsteady} (hollow markers)")
    print("\n".join(results.notes()))


def pairs(option: str, texts: list[str]) -> dict[str, str]:
    """ "sd=red" -> {"sd": "red"}.

    Raises:
        UsageError: one is not of that form.
    """
    for text in texts:
        if "=" not in text:
            raise UsageError(f"{option} takes METHOD=VALUE, not '{text}'")
    return dict(text.split("=", 1) for text in texts)
