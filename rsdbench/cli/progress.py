"""The progress of a run: a live bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from rsdbench.runner.cells import Cell
from rsdbench.runner.pace import Pace

LINE_EVERY = 60.0  # seconds, where there is no terminal
GRAPH = 16.0  # seconds that compiling one takes, until some were compiled


class Progress:
    """What is being done, how far it is, and the time left. A context manager."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self.pace = Pace(cells)
        self.cells, self.done, self.tokens = len(self.pace.left), 0, 0
        self.label = self.waited = ""
        self.printed = self.before = time.monotonic()
        self.compile_s = self.decode_s = 0.0
        console = Console(file=sys.stderr, markup=False)
        self.bar = Bar(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"), TextColumn("{task.fields[rate]}"), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console, disable=not console.is_terminal,
            auto_refresh=False,  # a thread that redraws would disturb what is being timed
        )  # fmt: skip
        self.task = self.bar.add_task("", total=self.cells, unit="cells", rate="", left="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()

    @property
    def parts(self) -> str:
        """Where the time went."""
        compiling = f"compiling {minutes(self.compile_s)}, " if self.compile_s else ""
        return f"{compiling}decoding {minutes(self.decode_s)}"

    def compiling(self, done: int, total: int, workers: int, what: str, folder: str) -> None:
        """So many graphs are compiled, on so many cores."""
        if not done:
            text = f"compiling {total} graphs on {workers} cores, once: they are kept in {folder}"
            self.steps = self.bar.add_task("compiling", total=total, unit="graphs", rate="", left="")
            self.bar.console.print(text) if not self.bar.disable else self.line(text)
            self.before = time.monotonic()
        self.compile_s = time.monotonic() - self.before
        each = self.compile_s * workers / done if done >= workers else GRAPH
        left = each * (total - done) / workers + self.pace.seconds
        self.bar.update(
            self.steps, completed=done, description=f"compiled {what}" if what else None, left=about(left), refresh=True
        )
        if self.is_due(done in (0, total)):
            self.line(f"{done}/{total} graphs compiled{f', last {what}' if what else ''}, {about(left)}")
        if done == total:
            self.before = time.monotonic()

    def row(self, label: str) -> None:
        """The row that runs now."""
        self.label, self.before = label, time.monotonic()
        self.bar.update(self.task, description=label, left=about(self.pace.seconds), refresh=True)

    def waiting(self, cells: int) -> None:
        """Other processes run all that is left."""
        text = f"{self.label}: waiting for {cells} cells that other processes run"
        self.bar.update(self.task, description=text, refresh=True)
        if self.bar.disable and text != self.waited:
            self.line(text)
        self.waited = text
        self.before = time.monotonic()

    def finished(self, cell: Cell, tokens: int) -> None:
        """A cell is done."""
        now = time.monotonic()
        seconds, self.before = now - self.before, now
        self.done += 1
        self.tokens += tokens
        self.decode_s += seconds
        self.pace.finished(cell, seconds)
        left = about(self.pace.seconds)
        text, rate = f"{self.label}: {cell.method}", f"{self.tokens / self.decode_s:.0f} tokens/s"
        self.bar.update(self.task, completed=self.done, description=text, rate=rate, left=left, refresh=True)
        if self.is_due(self.done in (1, self.cells)):
            self.line(f"{self.done}/{self.cells} cells, {rate}, {left} ({self.label})")

    def is_due(self, always: bool) -> bool:
        """Whether a line is to be printed now, where there is no terminal."""
        return self.bar.disable and (always or time.monotonic() - self.printed > LINE_EVERY)

    def line(self, text: str) -> None:
        """Print a line."""
        self.printed = time.monotonic()
        print(text, file=sys.stderr, flush=True)


def about(seconds: float) -> str:
    """Time left, as precise as it is known."""
    return f"about {minutes(seconds)} left"


def minutes(seconds: float) -> str:
    """ "40 s", "3.5 min", "2.1 h"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
