"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file `path` at the end, by a rename; after an error nothing is left.

    Meanwhile the content lies beside it in a hidden file that ends in ".partial".
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make a folder and see that files can be made in it.

    Raises:
        OSError: they cannot.
    """
    probe = folder / f".{uuid.uuid4().hex}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    probe.touch()
    probe.unlink()
