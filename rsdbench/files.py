"""Files that appear whole or not at all, and what a crash may leave of them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
LEFT_OVER_AFTER = 3600.0  # seconds; a file takes a moment to write


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file `path` at the end, by a rename; after an error nothing is left.

    Meanwhile the content lies beside it in a hidden file that ends in ".partial".
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk, so that a rename outlives a power cut; where that cannot be asked, not."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Make a folder and see that files can be made in it.

    Raises:
        OSError: they cannot.
    """
    probe = folder / f".{uuid.uuid4().hex}{PARTIAL}"
    folder.mkdir(parents=True, exist_ok=True)
    probe.touch()
    probe.unlink()


def now(folder: Path) -> float:
    """The time by the clock that stamps the files of a folder: the file server's, which all its hosts share.

    In a folder that cannot be written it is this host's.
    """
    probe = folder / f".{uuid.uuid4().hex}{PARTIAL}"
    try:
        probe.touch()
        stamp = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        return time.time()
    return stamp


def left_over(folder: Path) -> list[Path]:
    """Partial files that nobody writes to any more: older than an hour, or of a time that has not come yet."""
    stamp, found = now(folder), []
    for file in folder.glob(f".*{PARTIAL}"):
        try:
            age = stamp - file.stat().st_mtime
        except FileNotFoundError:  # finished meanwhile
            continue
        if abs(age) > LEFT_OVER_AFTER:
            found.append(file)
    return found
