"""`rsdbench figure`: the grid of charts as a file."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from rsdbench.errors import UsageError
from rsdbench.experiment.points import Results, figure_points, unsteady_line
from rsdbench.faces.chart import RESOLUTION, Wishes, draw
from rsdbench.faces.output import check_format, output

FORMATS = (".png", ".pdf", ".svg")
NO_DATES = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # the same points, the same file


def main(arguments: list[str]) -> None:
    """Draw a results folder into a file, and say what is missing from it.

    Raises:
        UsageError: the folder holds no usable results, or the file cannot be written.
    """
    parser = argparse.ArgumentParser("rsdbench figure", description="Draw the grid of charts of a results folder.")
    parser.add_argument("results", type=Path, help="a folder that `rsdbench run` filled, or what `merge` wrote")
    parser.add_argument("--out", type=Path, required=True, help="FILE.png, FILE.pdf or FILE.svg")
    parser.add_argument("--band", choices=("none", "ci"), default="ci", help="95 %% intervals around the lines (ci)")
    parser.add_argument("--share-y", action="store_true", help="one y axis for each column of a drafter's rows")
    args = parser.parse_args(arguments)
    check_format(args.out, FORMATS)
    results = Results.load(args.results)
    points = figure_points(results)
    if points.empty:
        raise UsageError(f"'{args.results}' holds only autoregressive decoding: run at least one method")
    wishes = Wishes(args.band == "ci", args.share_y)
    figure = draw(points, results.drafters, results.labels, note(results, args.band == "ci"), wishes)
    with output(args.out) as stream:
        figure.savefig(stream, format=args.out.suffix[1:], dpi=RESOLUTION, metadata=NO_DATES.get(args.out.suffix))
    print(f"{args.out}: {len(results.rows)} rows, {len(figure.axes)} charts, {len(points)} points")
    if unsteady := unsteady_line(points[points.metric == "token rate"]):
        print(f"{unsteady} (hollow markers)")
    if missing := results.missing():
        print(missing)


def note(results: Results, band: bool) -> str:
    """What the points are of."""
    records = results.records
    counts = {
        phase: records[records.phase == phase].groupby("cell_id").prompt_id.nunique() for phase in ("quality", "speed")
    }
    parts = [
        f"{span(counts['quality'])} prompts" if len(counts["quality"]) else "",
        f"token rate: {span(counts['speed'])} prompts in {turns} turns each"
        if len(counts["speed"])
        and (turns := span(records[records.phase == "speed"].turn.groupby(records.cell_id).max() + 1))
        else "",
        "bands: 95 % intervals over prompts" if band else "",
    ]
    return "; ".join(part for part in parts if part)


def span(counts: pd.Series) -> str:
    """ "32", or "128 to 600"."""
    least, most = int(counts.min()), int(counts.max())
    return str(least) if least == most else f"{least} to {most}"
