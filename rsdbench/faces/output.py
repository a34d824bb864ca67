"""Files that a command is asked to write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rsdbench.errors import UsageError
from rsdbench.files import whole_file


@contextmanager
def output(path: Path) -> Iterator[BinaryIO]:
    """The stream of a file that appears whole or not at all; missing folders are made.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as stream:
            yield stream
    except OSError as error:
        raise UsageError(
            f"'{path}' cannot be written ({error.strerror or error}): give another file with --out"
        ) from None
