"""Cells that are decoded again although they are done: `redo=[rsd_s,30,code]`.

Their records are set aside, not deleted. A row job leaves a stamp until it is done, and sets only older records aside:
a job that was stopped goes on where it was, and jobs that run at the same time do not undo one another's work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from rsdbench.errors import UsageError
from rsdbench.results import metrics, records
from rsdbench.results.schema import AXES
from rsdbench.runner import progress, store
from rsdbench.runner.cells import Cell
from rsdbench.runner.plan import PlannedRow
from rsdbench.sources import code_hash

CODE, UNSTEADY, ALL = "code", "unsteady", "all"  # of another version of the code; whose times are not steady
STAMP = ".redo"
REPLACED = "replaced"  # folder in RESULTS/progress


def set_aside(rows: Sequence[PlannedRow]) -> int:
    """Make the cells that `redo` names missing again; returns how many.

    Raises:
        UsageError: the folder cannot be written.
    """
    return sum(set_row_aside(planned) for planned in rows if planned.row.config.redo)


def set_row_aside(planned: PlannedRow) -> int:
    """The same for one row job."""
    results, moved = planned.results, 0
    with records.writing(results):
        stamp = stamp_of(planned)
        with suppress(FileExistsError):  # an earlier one keeps its time, which is that of the file server
            stamp.touch(exist_ok=False)
        since = stamp.stat().st_mtime_ns
        (progress.folder(results) / REPLACED).mkdir(exist_ok=True)
        for cell in planned.cells:
            file = cell.path(results)
            if not file.is_file() or file.stat().st_mtime_ns > since or not is_named(cell, results):
                continue
            try:
                file.replace(progress.folder(results) / REPLACED / file.name)
            except FileNotFoundError:  # another process was faster
                continue
            moved += 1
    return moved


def stamp_of(planned: PlannedRow) -> Path:
    """The file that says when a row job began to decode again."""
    words = hashlib.sha256(repr(sorted(map(str, planned.row.config.redo))).encode()).hexdigest()[:12]
    return progress.folder(planned.results) / f"{planned.row.name}_{words}{STAMP}"


def finished(planned: PlannedRow) -> None:
    """Forget a row job's stamp, if all of its cells are done: the next time it is asked for, it begins anew."""
    if planned.row.config.redo and all(store.is_done(cell, planned.results) for cell in planned.cells):
        stamp_of(planned).unlink(missing_ok=True)


def check(rows: Sequence[PlannedRow]) -> None:
    """See that each word of `redo` names something in a sweep. rows: all of it.

    Raises:
        UsageError: `redo` is no list, or a word names what no cell has.
    """
    for planned in rows:
        redo = planned.row.config.redo
        if redo is None:
            continue
        if isinstance(redo, str) or not hasattr(redo, "__iter__"):
            raise UsageError(f"redo must be a list such as [rsd_s,30] or [code], not '{redo}'")
        known = {CODE, UNSTEADY, ALL}.union(*(names_of(cell) for p in rows for cell in p.cells))
        for word in redo:
            if str(word) not in known:
                raise UsageError(
                    f"redo names '{word}', which no cell of this run has: give methods, structures, budgets, names of "
                    f"drafters, targets or datasets, or {CODE}, {UNSTEADY}, {ALL}"
                )


def names_of(cell: Cell) -> set[str]:
    """What a cell can be called by."""
    axes = {str(cell.row.config[axis].name) for axis in AXES}
    return {cell.method, cell.structure, str(cell.budget)} | axes


def is_named(cell: Cell, results: Path) -> bool:
    """Whether `redo` names a cell that is done."""
    words = set(map(str, cell.row.config.redo))
    if ALL in words or words & names_of(cell):
        return True
    return (CODE in words and store.code_of(cell, results) not in (None, code_hash())) or (
        UNSTEADY in words and not is_steady(cell.path(results))
    )


def is_steady(file: Path) -> bool:
    """Whether a record's times are steady, if it has any."""
    frame: Any = pq.read_table(file, columns=["phase", "steady"]).to_pandas()
    speed: pd.DataFrame = frame[frame.phase == "speed"]
    return speed.empty or metrics.is_steady(speed)
