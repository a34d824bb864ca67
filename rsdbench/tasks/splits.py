"""The rows of one split of a dataset, from parquet and JSONL files, and which files of a folder or repository it is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from rsdbench.errors import UsageError

DATA = Path(__file__).resolve().parents[1] / "assets" / "data"
DEFAULT = "default"  # what the hub calls the config of a dataset that has only one
SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-(?P<total>\d{5})(-[0-9a-f]{16})?")


@dataclass(frozen=True)
class Split:
    """Rows that are read when they are asked for.

    columns: their names, nested ones as "a.b"; count: how many rows there are; take: some rows by their numbers, as
    nested dictionaries, with at least the columns that are named.
    """

    columns: list[str]
    count: int
    take: Callable[[list[int], list[str]], list[dict[str, Any]]]


def embedded_datasets() -> list[str]:
    """Names of the evaluation sets that ship with the package."""
    return sorted(p.stem for p in DATA.glob("*.parquet"))


def local_data(path: str) -> Path | None:
    """The file or folder of an embedded or local dataset, or None if `path` can only be a hub id.

    Raises:
        UsageError: it is neither on disk nor of a hub id's form.
    """
    if (DATA / f"{path}.parquet").is_file():
        return DATA / f"{path}.parquet"
    local = Path(path).expanduser()
    if local.exists():
        return local
    if path.count("/") != 1 or local.suffix in (".parquet", ".jsonl", ".json") or path.startswith((".", "/", "~")):
        names = ", ".join(embedded_datasets())
        if local.suffix:
            raise UsageError(f"there is no file '{path}': give one that is there, a folder, a hub id, or {names}")
        raise UsageError(
            f"no dataset '{path}': give an embedded one ({names}), a .parquet or .jsonl file, a folder of .parquet "
            "files, or a hub id"
        )
    return None


def local_files(local: Path, config: str | None, split: str | None) -> list[Path]:
    """A split's files: `local` itself, or those of a folder. A folder may also be that of one config.

    Raises:
        UsageError: the folder has no such config or split.
    """
    if local.is_file():
        return [local]
    paths = parquet_paths(local)
    own = None if set(layout(paths)) == {DEFAULT} else config
    return [local / path for path in split_files(paths, own, split, f"dataset folder '{local}'")]


def parquet_paths(folder: Path) -> list[str]:
    """The parquet files in a folder and below it, as paths relative to it."""
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*.parquet") if file.is_file()]


def local_split(files: list[Path]) -> Split:
    """The rows of a split's files.

    Raises:
        UsageError: one cannot be read.
    """
    if files[0].suffix == ".parquet":
        return parquet_split(files)
    if files[0].suffix not in (".jsonl", ".json"):
        raise UsageError(f"dataset file '{files[0]}' is of no known kind: give a .parquet or .jsonl file")
    return jsonl_split(files[0])


def files_digest(files: list[Path]) -> str:
    """A short hash of files' contents; of one file alone, it does not depend on the file's name."""
    digests = [file_digest(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]


@lru_cache
def file_digest(file: Path) -> str:
    """A short hash of a file's contents."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def layout(paths: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """The configs of a repository, their splits, and the files of each in order, from the names of its parquet files.

    Known are the hub's ways to name them: CONFIG/SPLIT-00000-of-00002.parquet, CONFIG/SPLIT/0000.parquet and
    CONFIG/SPLIT.parquet. Without a folder, or in "data", files belong to the config "default".
    """
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(path for path in paths if path.endswith(".parquet")):
        *folders, name = path.removesuffix(".parquet").split("/")
        if shard := SHARD.fullmatch(name):
            name = shard["split"]
        elif name.isdecimal() and folders:
            name = folders.pop()
        config = "/".join(folders[1:] if folders[:1] == ["data"] else folders) or DEFAULT
        found.setdefault(config, {}).setdefault(name, []).append(path)
    return found


def split_files(paths: Iterable[str], config: str | None, split: str | None, where: str) -> list[str]:
    """The files of a split among those of a repository.

    config: None: the only one, or the one called "default"; split: None: all files; where: whose files they are, for
    the messages.

    Raises:
        UsageError: there is no such config or split, with those that there are, or a part of the split is missing.
    """
    configs = layout(paths)
    if not configs:
        raise UsageError(f"{where} has no .parquet files")
    if config is None and DEFAULT not in configs and len(configs) > 1:
        raise UsageError(f"{where} has several configs: choose one with dataset.config, of {', '.join(configs)}")
    config = config or (DEFAULT if DEFAULT in configs else next(iter(configs)))
    if config not in configs:
        raise UsageError(f"{where} has no config '{config}': it has {', '.join(configs)}")
    splits = configs[config]
    if split is None:
        return sorted(path for files in splits.values() for path in files)
    if split not in splits:
        raise UsageError(
            f"{where} has no split '{split}': it has {', '.join(splits)} (dataset.split=null takes all its files)"
        )
    files = splits[split]
    shard = SHARD.fullmatch(Path(files[0]).stem)
    if shard and len(files) != int(shard["total"]):
        raise UsageError(f"{where} has only {len(files)} of the {int(shard['total'])} files of split '{split}'")
    return files


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Say which file cannot be read, and why, in one line."""
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ValueError, ArrowException) as error:
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
                rows |= zip(wanted, table.take([number - first for number in wanted]).to_pylist(), strict=True)
        first += count
    return [rows[number] for number in numbers]


def jsonl_split(file: Path) -> Split:
    """The rows of a file with one JSON object a line.

    Raises:
        UsageError: it cannot be read; a line is something else, and which.
    """
    rows = []
    with reading(file):
        lines = file.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
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
    columns = dict.fromkeys(name for row in rows for name in key_names(row))
    return Split(list(columns), len(rows), lambda numbers, _: [rows[number] for number in numbers])


def key_names(row: dict[str, Any], above: str = "") -> list[str]:
    """Names of a row's columns, as of `column_names`."""
    names = []
    for key, value in row.items():
        names += key_names(value, f"{above}{key}.") if isinstance(value, dict) else [above + key]
    return names
