"""`rsdbench plan`: what a sweep will run, before it runs, and the manifest that freezes it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rsdbench.experiment import records
from rsdbench.experiment.plan import PlannedRow, check_folder, manifest, prepare, sweep_rows
from rsdbench.faces.output import output
from rsdbench.faces.run import hydra_errors


def main(arguments: list[str]) -> None:
    """List the row jobs of a sweep; with --manifest, freeze them.

    Raises:
        UsageError: an override is wrong, two row jobs would share a name, or a file cannot be written.
    """
    parser = argparse.ArgumentParser("rsdbench plan", description="What a sweep will run, before it runs.")
    parser.add_argument(
        "overrides", nargs="*", help="as for `rsdbench run -m`: drafter=opt-25k,opt-70k budgets=[30] ..."
    )
    parser.add_argument("--manifest", type=Path, help="freeze the sweep: write one line of JSON a row job")
    args = parser.parse_args(arguments)
    with hydra_errors():
        rows = sweep_rows(args.overrides)
    if args.manifest is None:
        check_folder(rows)
    else:
        prepare(rows)
        with output(args.manifest, "--manifest") as stream:
            stream.write(manifest(rows))
    print_rows(rows)
    if args.manifest is not None:
        file = shlex.quote(str(args.manifest))
        last = len(rows) - 1
        print(
            f"{file}: {len(rows)} tasks. On this machine: rsdbench run --manifest {file} --task N, N from 0 to {last}."
        )
        print(f"On a cluster: sbatch --array=0-{last} scripts/slurm_array.sbatch {file}")


def print_rows(rows: list[PlannedRow]) -> None:
    """A line a row job: its number, its cells, how many of them are done."""
    console = Console() if sys.stdout.isatty() else Console(width=140)
    table = Table()
    for name in ("task", "row job", "cells", "done", "results"):
        table.add_column(name, justify="right" if name in ("task", "cells", "done") else "left", overflow="fold")
    total = 0
    for task, planned in enumerate(rows):
        done = sum(records.looks_whole(cell.path(planned.results)) for cell in planned.cells)
        total += len(planned.cells) - done
        table.add_row(str(task), planned.row.label, str(len(planned.cells)), str(done), str(planned.results))
    console.print(table)
    print(f"{len(rows)} row jobs, {sum(len(planned.cells) for planned in rows)} cells, {total} of them to run")
