"""Rows of files, whatever their kind: parquet, JSON lines, JSON, CSV, TSV, and what `datasets` has saved."""

from __future__ import annotations

import bz2
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rsdbench.errors import UsageError

KINDS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
PACKED: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".bz2": bz2.decompress}


@dataclass(frozen=True)
class Split:
    """Rows that are read when they are asked for.

    columns: their names, nested ones as "a.b"; count: how many rows there are; take: some rows by their numbers, as
    nested dictionaries, with at least the columns that are named.
    """

    columns: list[str]
    count: int
    take: Callable[[list[int], list[str]], list[dict[str, Any]]]


def suffixes(file: Path) -> list[str]:
    """The suffix of a file's kind, and of its compression: [".jsonl", ".gz"]; none if it is of no known kind."""
    found = [suffix.lower() for suffix in file.suffixes[-2:]]
    if found and found[-1] in PACKED and found[0] in KINDS[1:]:
        return file.suffixes[-2:]
    return file.suffixes[-1:] if found and found[-1] in KINDS else []


def kind_of(file: Path) -> str | None:
    """One of `KINDS`, or None."""
    return next((suffix.lower() for suffix in suffixes(file)), None)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Say which file cannot be read, and why, in one line."""
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error, ArrowException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"dataset file '{file}' cannot be read: {reason}") from error


def parquet_split(files: list[Path]) -> Split:
    """The rows of parquet files, one file after another. Only their footers are read now.

    Raises:
        UsageError: one is damaged, or has other columns than the first.
    """
    import pyarrow.parquet as pq

    counts, names = [], []
    for file in files:
        with reading(file), pq.ParquetFile(file) as opened:
            counts.append(opened.metadata.num_rows)
            names.append(column_names(opened.schema_arrow))
        if names[-1] != names[0]:
            raise UsageError(f"dataset files '{files[0]}' and '{file}' have different columns")
    return Split(names[0], sum(counts), partial(take_parquet, files, counts))


def column_names(fields: Any, above: str = "") -> list[str]:
    """Names of a schema's columns, with those of nested ones. fields: an Arrow schema or struct type."""
    import pyarrow as pa

    names = []
    for field in fields:
        name = above + field.name
        names += column_names(field.type, f"{name}.") if pa.types.is_struct(field.type) else [name]
    return names


def take_parquet(files: list[Path], counts: list[int], numbers: list[int], columns: list[str]) -> list[dict[str, Any]]:
    """Some rows of parquet files; counts: rows of each file.

    Raises:
        UsageError: a file's data are damaged.
    """
    import pyarrow.parquet as pq

    rows, first = {}, 0
    for file, count in zip(files, counts, strict=True):
        wanted = [number for number in numbers if first <= number < first + count]
        if wanted:
            with reading(file), pq.ParquetFile(file) as opened:
                table = opened.read(columns=columns)
                # row by row: some types of text cannot be taken from
                rows |= {number: table.slice(number - first, 1).to_pylist()[0] for number in wanted}
        first += count
    return [rows[number] for number in numbers]


def partitioned_split(files: list[Path]) -> Split:
    """The rows of files in folders such as "lang=de", whose names are columns too.

    Raises:
        UsageError: one cannot be read.
    """
    import pyarrow.dataset as ds

    kind = {".jsonl": "json", ".ndjson": "json"}.get(kind_of(files[0]), kind_of(files[0])[1:])
    with reading(files[0].parent):
        table = ds.dataset([str(file) for file in files], format=kind, partitioning="hive").to_table()
    return rows_split(table.to_pylist())


def rows_split(rows: list[dict[str, Any]]) -> Split:
    """Rows that are in memory."""
    columns = dict.fromkeys(name for row in rows for name in key_names(row))
    return Split(list(columns), len(rows), lambda numbers, _: [rows[number] for number in numbers])


def read_rows(file: Path, kind: str) -> list[dict[str, Any]]:
    """All rows of a file that is no parquet file.

    Raises:
        UsageError: it cannot be read; a line is not what it should be, and which.
    """
    with reading(file):
        contents = PACKED.get(file.suffix.lower(), bytes)(file.read_bytes())
    if kind in (".csv", ".tsv"):
        return read_csv(file, contents, "," if kind == ".csv" else "\t")
    if kind == ".json" and contents.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
        return read_array(file, contents)
    return read_lines(file, contents)


def read_csv(file: Path, contents: bytes, separator: str) -> list[dict[str, Any]]:
    """Rows of a table as text, whose first line names the columns; every value is text as it stands."""
    import io

    import pandas as pd

    with reading(file):
        frame = pd.read_csv(io.BytesIO(contents), sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    return frame.to_dict("records")


def read_array(file: Path, contents: bytes) -> list[dict[str, Any]]:
    """Rows of a JSON array of objects."""
    with reading(file):
        rows = json.loads(contents.decode("utf-8-sig"))
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UsageError(f"entry {number} of dataset file '{file}' is no JSON object")
    return rows


def read_lines(file: Path, contents: bytes) -> list[dict[str, Any]]:
    """Rows of a file with one JSON object a line."""
    rows = []
    for number, line in enumerate(contents.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"line {number} of dataset file '{file}' is not JSON: {error.msg} at character {error.pos}"
            ) from None
        except UnicodeDecodeError as error:
            raise UsageError(f"line {number} of dataset file '{file}' is not UTF-8: {error}") from None
        if not isinstance(row, dict):
            raise UsageError(f"line {number} of dataset file '{file}' is no JSON object: give one a line")
        rows.append(row)
    return rows


def is_saved(folder: Path) -> bool:
    """Whether `datasets` has saved a dataset or its splits there (`save_to_disk`)."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def saved_split(folder: Path, split: str | None) -> Path:
    """The folder of a split that was saved.

    Raises:
        UsageError: there is no such split, with those that there are.
    """
    if (folder / "state.json").is_file():
        return folder
    splits = sorted(own.name for own in folder.iterdir() if (own / "state.json").is_file())
    if split is None and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        raise UsageError(f"dataset folder '{folder}' has no split '{split}': it has {', '.join(splits)}")
    return folder / split


def saved_rows(folder: Path) -> Split:
    """The rows of a dataset that was saved.

    Raises:
        UsageError: it cannot be read.
    """
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except Exception as error:  # of any kind: `datasets` knows many
        raise UsageError(f"dataset folder '{folder}' cannot be read: {' '.join(str(error).split())}") from error
    return table_split(data)


def table_split(data: Any) -> Split:
    """The rows of a `datasets.Dataset`."""

    def take(numbers: list[int], columns: list[str]) -> list[dict[str, Any]]:
        return data.select(numbers).select_columns(list(dict.fromkeys(n.split(".")[0] for n in columns))).to_list()

    return Split(column_names(data.features.arrow_schema), len(data), take)


def key_names(row: dict[str, Any], above: str = "") -> list[str]:
    """Names of a row's columns, as of `column_names`."""
    names = []
    for key, value in row.items():
        names += key_names(value, f"{above}{key}.") if isinstance(value, dict) else [above + key]
    return names
