"""What a results folder knows beside its records: plans, leases, failures, the finished prompts of unfinished cells.

All of it lies in RESULTS/progress and may be deleted when nothing runs; then no more is lost than those prompts.
"""

from __future__ import annotations

import json
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rsdbench.errors import UsageError
from rsdbench.files import check_writable, left_over, now, whole_file
from rsdbench.results import records
from rsdbench.results.plans import folder
from rsdbench.runner import leases, store
from rsdbench.runner.cells import Cell
from rsdbench.runner.preemption import shielded
from rsdbench.runner.provenance import slurm_job

RUNNING, FAILED, KEPT = ".running", ".failed", ".kept"
HISTORY = "kept_from"  # metadata: where earlier prompts of a cell come from, if it was interrupted


def prepare(results: Path) -> None:
    """Make the folders, see that they can be written, and sweep what crashes have left.

    Raises:
        UsageError: they cannot be written.
    """
    for part in (results / "cells", folder(results)):
        try:
            check_writable(part)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(
                f"results folder '{results}' cannot be written ({reason}): give another one with results=DIR"
            ) from None
        for file in left_over(part):
            file.unlink(missing_ok=True)
    stamp = now(folder(results))
    for file in folder(results).glob(f"*{RUNNING}"):  # of a cell that was finished just before the kill, too
        if not leases.is_live(file, stamp):
            file.unlink(missing_ok=True)


def lease(cell: Cell, results: Path) -> leases.Lease | None:
    """Lease a cell, or None if another process runs it."""
    with records.writing(results):
        return leases.take(folder(results) / f"{cell.id}{RUNNING}", now(folder(results)))


def running(results: Path) -> dict[str, dict[str, Any]]:
    """Cell id -> who runs it, for the cells with a live lease."""
    stamp = now(folder(results))
    live = [f for f in folder(results).glob(f"*{RUNNING}") if leases.is_live(f, stamp)]
    return {file.name.removesuffix(RUNNING): leases.read(file) or {} for file in live}


def fail(cell: Cell, results: Path, error: Exception) -> None:
    """Write down why a cell failed. A later success takes it back."""
    lines = str(error).strip().splitlines() or [""]
    note = {
        "reason": f"{type(error).__name__}: {lines[0]}".rstrip(": "),
        "job": slurm_job(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "traceback": "".join(traceback.format_exception(error)),
    }
    with records.writing(results), whole_file(folder(results) / f"{cell.id}{FAILED}") as stream:
        stream.write(json.dumps(note, indent=1).encode())


def failures(results: Path) -> dict[str, str]:
    """Cell id -> reason, for the cells whose last run failed."""
    found = {}
    for file in folder(results).glob(f"*{FAILED}"):
        try:
            found[file.name.removesuffix(FAILED)] = json.loads(file.read_text())["reason"]
        except (OSError, ValueError, KeyError):
            continue  # taken back meanwhile
    return found


def keep(cell: Cell, results: Path, rows: list[dict[str, Any]], metadata: dict[str, str]) -> None:
    """Keep the finished prompts of a cell that is not finished."""
    if rows:
        with shielded(), records.writing(results):
            store.write(cell, folder(results) / f"{cell.id}{KEPT}", rows, metadata)


def kept(cell: Cell, results: Path, code: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The prompts of a cell that were finished when it was interrupted, and where they come from; of this code only."""
    try:
        record = records.read_file(folder(results) / f"{cell.id}{KEPT}")
    except records.BadRecord:
        return [], {}
    return (record.table.to_pylist(), record.metadata) if record.metadata.get("code") == code else ([], {})


def finish(cell: Cell, results: Path, rows: list[dict[str, Any]], metadata: dict[str, str]) -> None:
    """Write a cell's record; what was known of its progress is past."""
    with shielded(), records.writing(results):
        store.write(cell, cell.path(results), rows, metadata)
        for kind in (KEPT, FAILED):
            (folder(results) / f"{cell.id}{kind}").unlink(missing_ok=True)
