"""Which dataset a path is: a file, a folder and the files of its split, or a hub id."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from rsdbench.errors import UsageError
from rsdbench.tasks.tables import (
    KINDS,
    Split,
    is_saved,
    kind_of,
    parquet_split,
    partitioned_split,
    read_rows,
    rows_split,
    saved_rows,
    saved_split,
    suffixes,
)

DATA = Path(__file__).resolve().parents[1] / "assets" / "data"
DEFAULT = "default"  # what the hub calls the config of a dataset that has only one
PARTS = "all"  # the split of files that have no names but numbers
PART = re.compile(r"\d+|part[-._]\d+.*")
SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-(?P<total>\d{5})(-[0-9a-f]{16})?")


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
    if path.count("/") != 1 or kind_of(local) or path.startswith((".", "/", "~")):
        names = ", ".join(embedded_datasets())
        if local.suffix:
            raise UsageError(f"there is no file '{path}': give one that is there, a folder, a hub id, or {names}")
        raise UsageError(
            f"no dataset '{path}': give an embedded one ({names}), a file ({', '.join(KINDS)}), a folder of such, or a "
            "hub id"
        )
    return None


def local_files(local: Path, config: str | None, split: str | None) -> list[Path]:
    """A split's files: `local` itself, or those of a folder. A folder may also be that of one config.

    Raises:
        UsageError: the folder has no such config or split.
    """
    if local.is_file():
        return [local]
    if is_saved(local):
        return sorted(file for file in saved_split(local, split).iterdir() if file.is_file())
    paths = data_paths(local)
    if any("=" in folder for path in paths for folder in path.split("/")[:-1]):  # partitions: all are one table
        return [local / path for path in sorted(paths)]
    configs = layout(paths)
    own = None if set(configs) == {DEFAULT} else config
    if own is None and list(configs.get(DEFAULT, ())) == [PARTS]:
        split = None  # files without names of splits are the only one that there is
    return [local / path for path in split_files(paths, own, split, f"dataset folder '{local}'")]


def data_paths(folder: Path) -> list[str]:
    """The files with rows in a folder and below it, all of the first kind that there is, as paths relative to it."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith((".", "_"))]
    kinds = {kind_of(file) for file in files}
    kind = next((kind for kind in KINDS if kind in kinds), None)
    return [file.relative_to(folder).as_posix() for file in files if kind and kind_of(file) == kind]


def parquet_paths(folder: Path) -> list[str]:
    """The parquet files in a folder and below it, as paths relative to it."""
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*.parquet") if file.is_file()]


def local_split(files: list[Path]) -> Split:
    """The rows of a split's files.

    Raises:
        UsageError: one cannot be read.
    """
    kind = kind_of(files[0])
    if (files[0].parent / "state.json") in files:
        return saved_rows(files[0].parent)
    if any("=" in folder for folder in files[0].parts[:-1]) and len({file.parent for file in files}) > 1:
        return partitioned_split(files)
    if kind == ".parquet":
        return parquet_split(files)
    if kind is None:
        raise UsageError(f"dataset file '{files[0]}' is of no known kind: give one of {', '.join(KINDS)}")
    return rows_split([row for file in files for row in read_rows(file, kind)])


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
    """The configs of a repository, their splits, and the files of each in order, from the names of its files.

    Known are the hub's ways to name them: CONFIG/SPLIT-00000-of-00002.parquet, CONFIG/SPLIT/0000.parquet and
    CONFIG/SPLIT.parquet. Without a folder, or in "data", files belong to the config "default". Parts as other programs
    number them (part-00000-..., part.0, 0000) are the split that their folder names, or `PARTS` without one.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(path for path in paths if kind_of(Path(path))):
        *folders, file = path.split("/")
        name = file.removesuffix("".join(suffixes(Path(file))))
        if shard := SHARD.fullmatch(name):
            name = shard["split"]
        elif PART.fullmatch(name):
            name = folders.pop() if folders else PARTS
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
        raise UsageError(f"{where} has no files of rows ({', '.join(KINDS)})")
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
