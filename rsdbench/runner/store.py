"""Cells and their records: written, and whether they are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from rsdbench.results import records
from rsdbench.runner.cells import Cell


def write(cell: Cell, path: Path, rows: list[dict[str, Any]], metadata: dict[str, str]) -> None:
    """Write a cell's record, complete or not at all."""
    table = pa.Table.from_pylist(rows, records.COLUMNS)
    metadata = {**metadata, "config": cell.row.yaml, "cell": cell.config_json, "asked": json.dumps(cell.row.points)}
    table = table.replace_schema_metadata({f"{records.PREFIX}{key}": value for key, value in metadata.items()})
    records.write_record(table, path)


def code_of(cell: Cell, results: Path) -> str | None:
    """The code that decoded a cell, after reading all of its record; None if that is not there or must not be used."""
    path = cell.path(results)
    try:
        return records.read_file(path).metadata.get("code", "") if path.is_file() else None
    except records.BadRecord:
        return None


def is_done(cell: Cell, results: Path) -> bool:
    """Whether the cell's record is there and whole."""
    return code_of(cell, results) is not None
