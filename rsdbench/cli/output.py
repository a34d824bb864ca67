"""Files that a command is asked to write, and tables as files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

import pandas as pd
from rich.console import Console

from rsdbench.errors import UsageError
from rsdbench.files import check_writable, whole_file

WIDTH = 140  # columns, where there is no terminal
TABLES = (".csv", ".parquet", ".md", ".tex")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are bad input like any other: one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message} ({self.prog} --help)")


def command_parser(command: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of a command, whose help ends with an example that works as it stands."""
    return Parser(
        f"rsdbench {command}", description=description, epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def screen(width: int = WIDTH) -> Console:
    """Standard output; brackets in names and labels are text, not markup."""
    return Console(markup=False) if sys.stdout.isatty() else Console(markup=False, width=width)


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


def check_format(path: Path, formats: Collection[str]) -> None:
    """Whether a file's ending is one of those that can be written.

    Raises:
        UsageError: it is not.
    """
    if path.suffix not in formats:
        raise UsageError(f"--out '{path}' must end in {', '.join(formats)}")


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """A table as .csv, .parquet, .md or .tex.

    Raises:
        UsageError: it cannot be written.
    """
    with output(path) as stream:
        if path.suffix == ".parquet":
            frame.to_parquet(stream, index=False)
        elif path.suffix == ".csv":
            frame.to_csv(stream, index=False)
        elif path.suffix == ".md":
            stream.write(f"{frame.to_markdown(index=False)}\n".encode())
        else:
            stream.write(frame.to_latex(index=False, escape=True).encode())


def refusal(path: Path, error: OSError, option: str = "--out") -> UsageError:
    """What is said about a path that cannot be written."""
    return UsageError(f"'{path}' cannot be written ({error.strerror or error}): give another one with {option}")
