"""What the paper's figure shows against a grid of our own, as Markdown.

    python scripts/compare_with_paper.py results/standin_full/points.csv     # or results/paper/points.csv

The paper's numbers are readings of its figure (arXiv 2402.14160), known at three places; everything else that it shows
is a claim on orders and slopes, which is counted over the rows. Where the table has the paper's own row, that is the
one compared, otherwise the row of the embedded models that stands for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

import pandas as pd

SUMMARIES, TRANSLATIONS = ("Synopsis", "XSum"), ("De-En", "WMT")  # how rows end
METHODS = {"sd": "SD", "spectr": "SpecTr", "rsd_c": "RSD-C", "rsd_s": "RSD-S"}
LEAST, MOST = 6, 30  # budgets
# the paper's row, ours that stands for it, the metric, and its readings in the order of METHODS at both budgets
READINGS = [
    ("OPT-125M-13B, WMT", "OPT-25K-2.6M, De-En", "block efficiency", (1.4, 1.5, 1.6, 1.7), (1.5, 1.6, 1.8, 1.9)),
    ("OPT-350M-30B, XSum", "OPT-70K-6M, Synopsis", "MBSU", (1.1, 1.5, 1.6, 1.7), (1.2, 1.8, 2.2, 2.3)),
    ("OPT-125M-66B, WMT", "OPT-25K-13.2M, De-En", "token rate", (0.5, 0.9, 1.0, 1.0), (0.2, 0.7, 0.8, 0.8)),
]
MEANS = ("block efficiency", "MBSU", "token rate")
COLUMNS = {"row", "metric", "method", "budget", "value", "low", "high"}


def load(path: Path) -> pd.DataFrame:
    """The table of a whole grid.

    Raises:
        ValueError: the file cannot be read, is another table, or lacks points that the comparison needs.
    """
    whole = "give the table of a whole grid, as `rsdbench table RESULTS --out FILE.csv` writes it"
    try:
        points = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' cannot be read ({str(error).splitlines()[0]}): {whole}") from None
    if absent := COLUMNS - set(points):
        raise ValueError(f"'{path}' has no column {', '.join(sorted(absent))}: {whole}")
    for metric in (*MEANS, "accuracy"):
        for method in METHODS:
            for budget in (LEAST, MOST):
                own = points[(points.metric == metric) & (points.method == method) & (points.budget == budget)]
                if absent := set(points.row) - set(own.row) or ({"of any row"} if own.empty else set()):
                    row = min(absent)
                    raise ValueError(f"'{path}' lacks {metric} of {METHODS[method]} at {budget} tokens, {row}: {whole}")
    for theirs, ours, *_ in READINGS:
        if not {theirs, ours} & set(points.row):
            raise ValueError(f"'{path}' has neither a row '{theirs}' nor '{ours}': {whole}")
    return points


def pair(least: float, most: float, digits: int) -> str:
    """Values at the smallest and the largest budget."""
    return f"{least:.{digits}f} / {most:.{digits}f}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def readings(points: pd.DataFrame) -> str:
    """The three places where the paper's values are known."""
    values = points.set_index(["row", "metric", "method", "budget"]).value
    rows = []
    for theirs, ours, metric, *known in READINGS:
        rows.append([f"{metric}, {theirs}", "paper", *(pair(*at, 1) for at in zip(*known, strict=True))])
        row = theirs if theirs in points.row.to_numpy() else ours
        own = [pair(*(values[row, metric, method, budget] for budget in (LEAST, MOST)), 2) for method in METHODS]
        rows.append([f"{metric}, {row}", "here", *own])
    return markdown([f"at {LEAST} / {MOST} tokens", "", *METHODS.values()], rows)


def means(points: pd.DataFrame) -> str:
    """Each metric's mean over the rows."""
    mean = points.groupby(["metric", "method", "budget"]).value.mean()
    rows = [[m, *(pair(mean[m, method, LEAST], mean[m, method, MOST], 2) for method in METHODS)] for m in MEANS]
    return markdown([f"mean over the rows, at {LEAST} / {MOST} tokens", *METHODS.values()], rows)


def wide(points: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column by row and budget, [row and budget, metric and method]."""
    return points.pivot_table(index=["row", "budget"], columns=["metric", "method"], values=column)


def orders(points: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """How often a method lies above the one before, and how often a curve rises."""
    value, low, high = (wide(points, column) for column in ("value", "low", "high"))
    for metric in ("block efficiency", "MBSU"):
        for worse, better in pairwise(METHODS):
            ahead = value[metric, better] > value[metric, worse]
            apart = low[metric, better] > high[metric, worse]
            yield (
                f"{metric}: {METHODS[better]} above {METHODS[worse]}",
                f"{ahead.sum()} of {len(ahead)} points, {apart.sum()} with intervals that do not overlap",
            )
        least, most = (value.xs(budget, level="budget")[metric] for budget in (LEAST, MOST))
        risen = ", ".join(f"{label} {(most[m] > least[m]).sum()}" for m, label in METHODS.items())
        yield f"{metric}: rises from {LEAST} to {MOST} tokens", f"{risen} of {len(most)} rows"
    low, high = (frame.xs(MOST, level="budget")["block efficiency"] for frame in (low, high))
    apart = low.rsd_s > high.sd
    yield f"block efficiency: intervals of RSD-S and SD at {MOST} do not overlap", f"{apart.sum()} of {len(apart)} rows"


def levels(points: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Token rate's fall, accuracy by target, one task against the other."""
    rate = wide(points, "value")["token rate"]
    fall = (rate.xs(MOST, level="budget") / rate.xs(LEAST, level="budget")).mean()
    yield (
        f"token rate at {MOST} over {LEAST}, mean",
        ", ".join(f"{label} {fall[m]:.2f}" for m, label in METHODS.items()),
    )
    accuracy = points[points.metric == "accuracy"]
    for target, own in accuracy.groupby(accuracy.row.str.extract(r"-([0-9.]+[KMB]),")[0], sort=False):
        near = own.value.between(0.9, 1.1)
        yield (
            f"accuracy, target of {target}",
            f"{own.value.min():.3f} to {own.value.max():.3f}, intervals {own.low.min():.2f} to {own.high.max():.2f}; "
            f"{near.sum()} of {len(own)} points within 0.9 to 1.1",
        )
    efficiency = points[points.metric == "block efficiency"]
    summaries, translations = (
        efficiency[efficiency.row.str.endswith(ends)].value.to_numpy() for ends in (SUMMARIES, TRANSLATIONS)
    )
    yield (
        "block efficiency: Synopsis (XSum) above De-En (WMT)",
        f"{(summaries > translations).sum()} of {len(translations)} points",
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("points", type=Path, help="what `rsdbench table RESULTS --out FILE.csv` wrote")
    try:
        points = load(parser.parse_args().points)
    except ValueError as error:
        print(f"compare_with_paper: {error}", file=sys.stderr)
        sys.exit(2)
    found = [list(claim) for claim in chain(orders(points), levels(points))]
    print(readings(points), means(points), markdown(["the paper's figure shows", "here"], found), sep="\n\n")


if __name__ == "__main__":
    main()
