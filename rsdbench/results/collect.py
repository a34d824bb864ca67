"""All records of a results folder as one table, and as one file: what `rsdbench merge` writes.

A merged file has the records' columns. Its metadata say once what many cells share: the configuration of each row and
the origin (code, versions, device, host) of each process, and for each cell which of them are its own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rsdbench.errors import UsageError
from rsdbench.files import whole_file
from rsdbench.notes import note
from rsdbench.results import records
from rsdbench.results.plans import registered
from rsdbench.results.records import COLUMNS, PREFIX, BadRecord, Record
from rsdbench.selection import Point, points_of

MERGED = f"{PREFIX}merged"  # metadata key of a merged file
FORMAT = 2
OWN = ("method", "structure", "budget")  # of a cell's configuration; the rest is its row's
CACHE = "records.cache"  # in RESULTS/progress: columns of the records read so far as a merged file
CACHE_FROM = 200  # records newly read, for which writing the cache pays
ROW_GROUP = 1 << 20


Asked = list[tuple[str, str, str]]  # cells: the label of their row, method, structure


RECORD = re.compile(r".+_[0-9a-f]{12}\.parquet")  # the name of a cell's file


@dataclass
class Collection:
    """Records, one row a prompt, and what their files' metadata say."""

    table: pa.Table
    rows: list[dict[str, Any]] = field(default_factory=list)  # of row jobs: {"content", "config": YAML, "asked"}
    origins: list[dict[str, str]] = field(default_factory=list)  # distinct metadata of processes
    cells: dict[str, tuple[int, int]] = field(default_factory=dict)  # cell id -> its row, its origin
    stamps: dict[str, tuple[int, int]] = field(default_factory=dict)  # cell id -> size and time of its file, ns
    asked: Asked = field(default_factory=list)  # of all runs and plans of the folder

    def origin_of(self, cell: str) -> dict[str, str]:
        """Where a cell comes from."""
        return self.origins[self.cells[cell][1]]

    @property
    def newest(self) -> dict[str, Any]:
        """The row that was started last."""
        newest = max(self.cells, key=lambda cell: self.origin_of(cell).get("started", ""))
        return self.rows[self.cells[newest][0]]


def collect(path: Path, columns: list[str] | None = None) -> Collection:
    """All records of a results folder or of a merged file.

    columns: those of the table; all by default. Every page that is read is verified.

    Raises:
        UsageError: there are none, or one is damaged or of another version.
    """
    if path.is_file():
        return read_merged(path, columns)
    found = read_folder(path, columns)
    found.asked = asked(found, registered(path))
    return found


def asked(found: Collection, plans: list[dict[str, Any]]) -> Asked:
    """The cells that the runs asked for that left these records, and those of plans, each once."""
    names = {"cell_id", "row"}
    rows = found.table.select(["cell_id", "row"]) if names <= set(found.table.column_names) else COLUMNS.empty_table()
    first = rows.to_pandas().drop_duplicates("cell_id").set_index("cell_id").row
    labels = {found.cells[cell][0]: label for cell, label in first.items() if cell in found.cells}
    ran = [(label, m, s) for row, label in labels.items() for m, s, *_ in found.rows[row]["asked"]]
    planned = [(plan["label"], cell["method"], cell["structure"]) for plan in plans for cell in plan["cells"]]
    return list(dict.fromkeys(ran + planned))


def read_folder(results: Path, columns: list[str] | None = None) -> Collection:
    """The same for a folder. Where some columns are enough, a cache gives those of records that were read before."""
    folder = results / "cells"
    if not folder.is_dir() or not (stamps := stamps_of(folder)):
        raise UsageError(
            f"'{results}' holds no results: there is no record in '{folder}'; `rsdbench run ... results={results}` "
            "decodes them, and a file that `rsdbench merge` wrote will do as well"
        )
    if columns is None:
        return join([read_records(folder, list(stamps), None)], stamps)
    cache = results / "progress" / CACHE
    known = read_cache(cache, columns)
    new = [cell for cell, stamp in stamps.items() if known.stamps.get(cell) != stamp]
    if len(stamps) - len(new) < len(known.cells):
        known = only(known, stamps.keys() - set(new))
    found = join([known, read_records(folder, new, columns)], stamps)
    if len(new) >= CACHE_FROM:
        write_cache(cache, found)
    return found


def stamps_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Cell id -> size and modification time of its record, in order. What has no cell's name is left out, and said."""
    with os.scandir(folder) as entries:
        there = sorted((e for e in entries if e.name.endswith(".parquet") and e.name[0] != "."), key=lambda e: e.name)
        files = [entry for entry in there if RECORD.fullmatch(entry.name)]
        for entry in there:
            if entry not in files:
                note(f"'{entry.name}' in '{folder}' has no cell's name, such as a copy, and is left out")
        return {e.name.removesuffix(".parquet"): (e.stat().st_size, e.stat().st_mtime_ns) for e in files}


def read_records(folder: Path, cells: list[str], columns: list[str] | None) -> Collection:
    """Read records from their files.

    Raises:
        UsageError: one is damaged or of another version.
    """

    def read(cell: str) -> Record | BadRecord:
        try:
            return records.read_file(folder / f"{cell}.parquet", columns)
        except BadRecord as bad:
            return bad

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = dict(zip(cells, pool.map(read, cells), strict=True))
    bad = {cell: record for cell, record in found.items() if isinstance(record, BadRecord)}
    if bad:
        first, reason = next(iter(bad.items()))
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UsageError(
            f"damaged record '{folder / first}.parquet' ({reason}){more}: run the same experiment again, which "
            "recomputes it, or delete the file"
        )
    return gather(found)


def gather(found: dict[str, Record]) -> Collection:
    """One collection of many records; what their metadata share is kept once."""
    made = Collection(pa.concat_tables([r.table for r in found.values()]) if found else COLUMNS.empty_table())
    rows: dict[str, int] = {}
    origins: dict[str, int] = {}
    for cell, record in found.items():
        content = {key: value for key, value in record.cell.items() if key not in OWN}
        asked = record.metadata.get("asked")  # of earlier versions
        points = json.loads(asked) if asked else points_in(record.metadata["config"])
        row = {"content": content, "config": record.metadata["config"], "asked": points}
        origin = {key: value for key, value in record.metadata.items() if key not in ("config", "cell", "asked")}
        made.cells[cell] = (place(rows, made.rows, row), place(origins, made.origins, origin))
    return made


@lru_cache
def points_in(config: str) -> list[Point]:
    """What the run of a row asked for, by its configuration; nothing where that is none, or names an unknown method."""
    try:
        return points_of(OmegaConf.create(config))
    except (UsageError, OmegaConfBaseException, YAMLError, AttributeError, OSError):
        return []


def place(index: dict[str, int], items: list[Any], item: Any) -> int:
    """Where an item stands in a list without repetitions; it is added if it is new."""
    key = repr(item)
    if key not in index:
        index[key] = len(items)
        items.append(item)
    return index[key]


def join(parts: list[Collection], stamps: dict[str, tuple[int, int]]) -> Collection:
    """Collections of different cells as one."""
    parts = [part for part in parts if part.cells]
    made = Collection(pa.concat_tables([part.table for part in parts]), stamps=stamps)
    rows: dict[str, int] = {}
    origins: dict[str, int] = {}
    for part in parts:
        new_rows = [place(rows, made.rows, row) for row in part.rows]
        new_origins = [place(origins, made.origins, origin) for origin in part.origins]
        made.cells.update({cell: (new_rows[r], new_origins[o]) for cell, (r, o) in part.cells.items()})
    return made


def only(whole: Collection, cells: Iterable[str]) -> Collection:
    """The part of a collection that belongs to some cells."""
    cells = set(cells)
    mask = pc.is_in(whole.table["cell_id"], pa.array(list(cells), pa.string()))
    kept = {cell: places for cell, places in whole.cells.items() if cell in cells}
    return Collection(whole.table.filter(mask), whole.rows, whole.origins, kept, whole.stamps)


def write_merged(collection: Collection, stream: BinaryIO) -> None:
    """Write a collection as one parquet file."""
    parts = ("rows", "origins", "cells", "stamps", "asked")
    notes = {"format": FORMAT, **{part: getattr(collection, part) for part in parts}}
    table = collection.table.replace_schema_metadata({MERGED: json.dumps(notes)})
    pq.write_table(table, stream, compression="zstd", write_page_checksum=True, row_group_size=ROW_GROUP)


def read_merged(path: Path, columns: list[str] | None = None) -> Collection:
    """Read a merged file.

    Raises:
        UsageError: it is not one, is damaged, or of another version.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        notes = json.loads((file.schema_arrow.metadata or {}).get(MERGED.encode(), b"{}"))
        found = columns or COLUMNS.names
        if notes.get("format") != FORMAT or not set(found) <= set(file.schema_arrow.names):
            raise UsageError(
                f"'{path}' is not a file that this version's rsdbench merge wrote: give its folder, or merge it again"
            )
        table = file.read(found).replace_schema_metadata()
    except (pa.ArrowException, OSError):
        raise UsageError(
            f"'{path}' is no parquet file, or damaged: give a results folder, or what `rsdbench merge` wrote"
        ) from None
    cells = {cell: tuple(places) for cell, places in notes["cells"].items()}
    stamps = {cell: tuple(stamp) for cell, stamp in notes["stamps"].items()}
    made = Collection(table, notes["rows"], notes["origins"], cells, stamps)
    made.asked = [tuple(cell) for cell in notes.get("asked", [])] or asked(made, [])
    return made


def read_cache(path: Path, columns: list[str]) -> Collection:
    """Some columns of the records that were read before; none if there is no usable cache."""
    if path.is_file():
        with suppress(UsageError):
            return read_merged(path, columns)
    return Collection(COLUMNS.empty_table().select(columns))


def write_cache(path: Path, collection: Collection) -> None:
    """Remember what was read, if the folder can be written."""
    with suppress(OSError), whole_file(path) as stream:
        write_merged(collection, stream)
