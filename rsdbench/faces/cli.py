"""The `rsdbench` command: `run` is a Hydra application, the other commands take results or methods."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from rsdbench import __version__
from rsdbench.errors import UsageError

USAGE = """\
usage: rsdbench COMMAND ...

  run [-m] [overrides]               decode every missing cell of an experiment (rsdbench run --help)
  figure RESULTS --out FILE          the grid of charts as .png, .pdf or .svg
  table RESULTS [--out FILE.csv]     the numbers behind it, with intervals
  certify [methods] [--out DIR]      the losslessness certificate of every registered method

Exit codes: 0 success, 1 a method is not certified, 2 bad input (one line says what is wrong and what would be right).
"""


def run(arguments: list[str]) -> None:
    """The Hydra application."""
    from rsdbench.faces.run import main as run_main

    run_main(arguments)


def figure(arguments: list[str]) -> None:
    """The grid of charts."""
    from rsdbench.faces.figure import main as figure_main

    figure_main(arguments)


def table(arguments: list[str]) -> None:
    """The points as a table."""
    from rsdbench.faces.table import main as table_main

    table_main(arguments)


def certify(arguments: list[str]) -> None:
    """The certificate."""
    from rsdbench.faces.certify import main as certify_main

    certify_main(arguments)


COMMANDS: dict[str, Callable[[list[str]], None]] = {"run": run, "figure": figure, "table": table, "certify": certify}


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a bad input ends in one line and exit code 2, everything else keeps its traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "--help"
    if command in ("--help", "-h"):
        print(USAGE, end="")
        return
    if command == "--version":
        print(f"rsdbench {__version__}")
        return
    try:
        if command not in COMMANDS:
            raise UsageError(f"unknown command '{command}': choose from {', '.join(COMMANDS)}")
        COMMANDS[command](arguments[1:])
    except UsageError as error:
        print(f"rsdbench: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("rsdbench: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as in `rsdbench table ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
