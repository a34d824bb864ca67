"""Files that a command is asked to write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rsdbench.errors import UsageError
from rsdbench.files import check_writable, whole_file


def check_folder(folder: Path) -> None:
    """See before long work that its files can be written.

    Raises:
        UsageError: they cannot.
    """
    try:
        check_writable(folder)
    except OSError as error:
        raise refusal(folder, error) from None


@contextmanager
def output(path: Path, option: str = "--out") -> Iterator[BinaryIO]:
    """The stream of a file that appears whole or not at all; missing folders are made.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as stream:
            yield stream
    except OSError as error:
        raise refusal(path, error, option) from None


def refusal(path: Path, error: OSError, option: str = "--out") -> UsageError:
    """What is said about a path that cannot be written."""
    return UsageError(f"'{path}' cannot be written ({error.strerror or error}): give another one with {option}")
