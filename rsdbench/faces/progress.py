"""The progress of a run: a live bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from rsdbench.experiment.cells import Cell

LINE_EVERY = 60.0  # seconds, where there is no terminal


class Progress:
    """Cells done, tokens a second and time left. A context manager."""

    def __init__(self, cells: int) -> None:
        self.cells, self.done, self.tokens = cells, 0, 0
        self.label = self.waited = ""
        self.started = self.printed = time.monotonic()
        console = Console(file=sys.stderr)
        self.bar = Bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cells"),
            TextColumn("{task.fields[rate]:.0f} tokens/s"), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), console=console, disable=not console.is_terminal,
            auto_refresh=False,  # a thread that redraws would disturb what is being timed
        )  # fmt: skip
        self.task = self.bar.add_task("", total=cells, rate=0.0)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()

    def row(self, label: str) -> None:
        """The row that runs now."""
        self.label = label
        self.bar.update(self.task, description=label, refresh=True)

    def waiting(self, cells: int) -> None:
        """Other processes run all that is left."""
        text = f"{self.label}: waiting for {cells} cells that other processes run"
        self.bar.update(self.task, description=text, refresh=True)
        if self.bar.disable and text != self.waited:
            print(text, file=sys.stderr, flush=True)
        self.waited = text

    def finished(self, cell: Cell, tokens: int) -> None:
        """A cell is done."""
        self.done += 1
        self.tokens += tokens
        now = time.monotonic()
        rate = self.tokens / (now - self.started)
        text = f"{self.label}: {cell.method}"
        self.bar.update(self.task, completed=self.done, rate=rate, description=text, refresh=True)
        if self.bar.disable and (now - self.printed > LINE_EVERY or self.done == self.cells):
            self.printed = now
            left = (now - self.started) / self.done * (self.cells - self.done)
            line = f"{self.done}/{self.cells} cells, {rate:.0f} tokens/s, {left / 60:.1f} min left ({self.label})"
            print(line, file=sys.stderr, flush=True)
