"""`rsdbench claims`: what the paper's figure shows, held against results."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.table import Table
from rich.text import Text

from rsdbench.cli.output import command_parser, output, screen
from rsdbench.errors import UsageError
from rsdbench.methods import METHODS
from rsdbench.results.claims import DIFFERS, FAILS, HOLDS, UNDECIDED, Claim, Quantity, claims
from rsdbench.results.points import figure_points
from rsdbench.results.readings import beside, paper
from rsdbench.results.results import Results

COLORS = {HOLDS: "green", FAILS: "red", DIFFERS: "yellow", UNDECIDED: "yellow"}
SHOWN = 3  # things that lack, of each claim


def main(arguments: list[str]) -> None:
    """Print the claims with their verdicts, or write their quantities as CSV.

    Raises:
        UsageError: the results are not usable, or the file cannot be written.
    """
    parser = command_parser(
        "claims", "What the paper's figure shows, held against results.", "rsdbench claims results/standin"
    )
    parser.add_argument("results", type=Path, help="a folder that `rsdbench run` filled, or what `merge` wrote")
    parser.add_argument("--out", type=Path, help="write CSV: claim, verdict, quantity, value, low, high")
    args = parser.parse_args(arguments)
    if args.out is not None and args.out.suffix != ".csv":
        raise UsageError(f"--out '{args.out}' must end in .csv")
    results = Results.load(args.results)
    found = claims(results)
    if args.out is None:
        print_claims(found)
        print_readings(beside(figure_points(results)))
    else:
        with output(args.out) as stream:
            as_frame(found).to_csv(stream, index=False)
        print(f"{args.out}: {len(found)} claims")
    verdicts = [verdict for verdict in COLORS if verdict != (FAILS if not results.is_papers else DIFFERS)]
    counts = {verdict: sum(claim.verdict == verdict for claim in found) for verdict in verdicts}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if not results.is_papers:
        print("The paper says nothing of these models: this is what holds for them of what it found for its own.")
    print("\n".join(results.notes()))


def print_readings(lines: list[tuple[str, str, dict[str, str]]]) -> None:
    """The paper's numbers beside those here."""
    if not lines:
        return
    least, most = paper()["budgets"]
    table = Table(caption="read off the paper's figure, approximately (arXiv 2402.14160, figure 3)")
    for column in (f"at {least} / {most} tokens", "", *(METHODS[method].label for method in lines[0][2])):
        table.add_column(column)
    for what, whose, values in lines:
        table.add_row(what, whose, *values.values(), end_section=whose == "here")
    screen().print(table)


def as_frame(found: list[Claim]) -> pd.DataFrame:
    """One row a quantity; a claim without any has one row."""
    rows = []
    for claim in found:
        for q in claim.quantities or [Quantity("", *[float("nan")] * 3, (0, 0))]:
            rows.append((claim.text, claim.verdict, q.name, q.value, q.low, q.high))
    return pd.DataFrame(rows, columns=["claim", "verdict", "quantity", "value", "low", "high"])


def print_claims(found: list[Claim]) -> None:
    """One line a claim, its quantities beside it."""
    console = screen()
    table = Table(caption="ratios, with intervals that hold together within a claim (95 %)", show_lines=True)
    for column in ("the paper's figure shows", "here", "ratios"):
        table.add_column(column)
    for claim in found:
        lines = [f"{q.name}  {q.value:.3f} [{q.low:.3f}, {q.high:.3f}]" for q in claim.quantities]
        if claim.lacks:
            more = f" and {len(claim.lacks) - SHOWN} more" if len(claim.lacks) > SHOWN else ""
            lines.append(f"lacks {', '.join(claim.lacks[:SHOWN])}{more}")
        verdict = Text(claim.verdict, COLORS[claim.verdict])
        table.add_row(claim.text, verdict, "\n".join(lines))
    console.print(table)
