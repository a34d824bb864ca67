"""Cells and their records: written, and whether they are there."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from rsdbench.results import records
from rsdbench.runner.cells import Cell


def write(cell: Cell, path: Path, rows: list[dict[str, Any]], metadata: dict[str, str]) -> None:
    """Write a cell's record, complete or not at all."""
    table = pa.Table.from_pylist(rows, records.COLUMNS)
    metadata = {**metadata, "config": cell.row.yaml, "cell": cell.config_json}
    table = table.replace_schema_metadata({f"{records.PREFIX}{key}": value for key, value in metadata.items()})
    records.write_record(table, path)


def code_of(cell: Cell, results: Path) -> str | None:
    """The code that decoded a cell; None if its record is not there or must not be used."""
    path = cell.path(results)
    try:
        found = path.stat()
    except OSError:
        return None
    return code_in(path, found.st_size, found.st_mtime_ns)


@cache
def code_in(path: Path, size: int, time: int) -> str | None:
    """The code that made a record, after reading all of it, once for a size and time of its file."""
    try:
        return records.read_file(path).metadata.get("code", "")
    except records.BadRecord:
        return None


def is_done(cell: Cell, results: Path) -> bool:
    """Whether the cell's record is there and whole."""
    return code_of(cell, results) is not None
