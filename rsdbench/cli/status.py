"""`rsdbench status`: which cells of a results folder are done, running, failed or missing."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rsdbench.cli.output import command_parser, screen
from rsdbench.runner.status import DAMAGED, DONE, FAILED, MISSING, RUNNING, Status, status

EVERY = 2.0  # seconds between two looks
SHOWN = 10  # running and failed cells that are named
STYLES = {DONE: "green", RUNNING: "cyan", FAILED: "red", DAMAGED: "red", MISSING: "dim"}


def main(arguments: list[str]) -> None:
    """Show the state of a results folder; with --watch until all is done.

    Raises:
        UsageError: it is not a results folder.
    """
    example = "rsdbench status results/standin"
    parser = command_parser("status", "Which cells are done, running, failed, missing.", example)
    parser.add_argument("results", type=Path, help="a folder that `rsdbench run` fills or `rsdbench plan` has prepared")
    parser.add_argument("--watch", action="store_true", help="look again every two seconds until all cells are done")
    args = parser.parse_args(arguments)
    console = screen()
    seen = status(args.results)
    if not args.watch:
        console.print(page(seen, args.results))
        return
    try:
        with Live(page(seen, args.results), console=console, auto_refresh=False) as live:
            while seen.count(DONE) < len(seen.states):
                time.sleep(EVERY)
                seen = status(args.results)
                live.update(page(seen, args.results), refresh=True)
    except KeyboardInterrupt:  # the way to stop watching
        return


def page(seen: Status, results: Path) -> Group:
    """The table by row and method, what runs, what failed, and a line of sums."""
    methods = list(dict.fromkeys(method for _, method in seen.places.values()))
    table = Table(title=str(results), title_justify="left")
    for name in ("row", *methods):
        table.add_column(name)
    for row, own in seen.table().items():
        table.add_row(row, *(counts(own[m]) if m in own else Text("-", "dim") for m in methods))
    named = [Text(f"running  {cell}  {who}", STYLES[RUNNING]) for cell, who in seen.runners.items()]
    failed = [Text(f"{seen.states[cell]:7}  {cell}  {why}", STYLES[FAILED]) for cell, why in seen.reasons.items()]
    return Group(table, *first(named), *first(failed), Text(sums(seen)))


def first(lines: list[Text]) -> list[Text]:
    """A list that is not too long for a screen."""
    return lines[:SHOWN] + ([Text(f"... and {len(lines) - SHOWN} more")] if len(lines) > SHOWN else [])


def counts(states: Counter[str]) -> Text:
    """Done of all, and what is not done: "12/15 2 running 1 failed"."""
    total = states.total()
    text = Text(f"{states[DONE]}/{total}", STYLES[DONE] if states[DONE] == total else "")
    for state in (RUNNING, FAILED, DAMAGED):
        if states[state]:
            text.append(f" {states[state]} {state}", STYLES[state])
    return text


def sums(seen: Status) -> str:
    """Cells by state, cells an hour, time left."""
    parts = [f"{seen.count(state)} {state}" for state in (RUNNING, FAILED, DAMAGED, MISSING) if seen.count(state)]
    text = ", ".join([f"{seen.count(DONE)} of {len(seen.states)} cells done", *parts])
    if seen.per_hour is not None:
        text += f"; {seen.per_hour:.0f} cells an hour"
    if seen.hours_left:
        text += f", {seen.hours_left:.1f} h left" if seen.hours_left >= 1 else f", {60 * seen.hours_left:.0f} min left"
    if seen.unplanned:
        text += f"; {seen.unplanned} records more that belong to no plan here"
    return text
