"""The `rsdbench` command: `run` is a Hydra application, the other commands take results or methods."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from rsdbench import __version__
from rsdbench.errors import UsageError
from rsdbench.plugins import load_plugins

USAGE = """\
usage: rsdbench COMMAND ...

  run [-m] [overrides]                decode every missing cell of an experiment (rsdbench run --help)
  run --manifest FILE [--task N]      one task of a sweep that `plan` has frozen (default: $SLURM_ARRAY_TASK_ID)
  plan [overrides] [--manifest FILE]  what a sweep will run and need (hardware=h100-80gb), before it runs
  doctor [overrides]                  whether this machine has what an experiment needs (default: the paper's)
  status RESULTS [--watch]            which cells are done, running, failed, missing
  merge RESULTS --out FILE.parquet    all records as one file, checked
  figure RESULTS --out FILE           the grid of charts as .png, .pdf or .svg
  table RESULTS [--out FILE.csv]      the numbers behind it, with intervals
  best RESULTS [--budget N]           which method and structure to take, and whether it pays
  claims RESULTS [--out FILE.csv]     what the paper's figure shows, held against results
  certify [methods] [--out DIR]       the losslessness certificate of every registered method

Example: rsdbench run experiment=smoke results=smoke && rsdbench table smoke

plugins=[MODULE] for run, plan and doctor, and --plugin MODULE for the others, import a module or .py file of yours that
registers methods, drafters, scores, metrics or backends.
RESULTS is a folder that `run` filled; for all but run, plan and merge also a file that `merge` wrote.
Exit codes: 0 success, 1 a cell failed, a method is not certified or something is missing, 2 bad input (one line says
what is wrong and what would be right), 75 stopped by SIGTERM or SIGUSR1 (what is finished is kept, the same command
goes on from there).
"""
# each a module with a `main`
WITH_OVERRIDES = ("run", "plan", "doctor")  # these take plugins=[...]
COMMANDS = ("run", "plan", "doctor", "status", "merge", "figure", "table", "best", "claims", "certify")


def without_plugins(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without `--plugin NAME`, and those names.

    Raises:
        UsageError: one lacks its name.
    """
    others, plugins, rest = [], [], iter(arguments)
    for argument in rest:
        flag, given, value = argument.partition("=")
        if flag != "--plugin":
            others.append(argument)
            continue
        name = value if given else next(rest, "")
        if not name:
            raise UsageError("--plugin needs a module or a .py file, such as --plugin my_module")
        plugins.append(name)
    return others, plugins


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
        arguments = arguments[1:]
        if command not in WITH_OVERRIDES:
            arguments, plugins = without_plugins(arguments)
            load_plugins(plugins)
        import_module(f"rsdbench.cli.{command}").main(arguments)
    except UsageError as error:
        print(f"rsdbench: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("rsdbench: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as in `rsdbench table ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
