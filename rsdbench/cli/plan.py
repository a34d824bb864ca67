"""`rsdbench plan`: what a sweep will run and what it needs, before it runs, and the manifest that freezes it."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table

from rsdbench import __version__
from rsdbench.cli.output import command_parser, output, screen
from rsdbench.cli.run import hydra_errors
from rsdbench.results import records
from rsdbench.runner.cells import Cell
from rsdbench.runner.compose import with_config_dir
from rsdbench.runner.estimate import Estimate, Range, assumptions, estimate
from rsdbench.runner.footprint import Workload
from rsdbench.runner.plan import PlannedRow, check_folder, manifest, prepare, sweep_rows
from rsdbench.runner.redo import check

STDOUT = Path("-")


@dataclass(frozen=True)
class Line:
    """A row job in the plan: its number, its cells that are not done, and what it needs, if `hardware` was named."""

    task: int
    planned: PlannedRow
    missing: list[Cell]
    work: Workload | None
    estimate: Estimate | None

    @property
    def done(self) -> int:
        """Cells that need not run."""
        return len(self.planned.cells) - len(self.missing)


def main(arguments: list[str]) -> None:
    """List the row jobs of a sweep; with hardware=NAME, what they need; with --manifest, freeze them.

    Raises:
        UsageError: an override is wrong, two row jobs would share a name, or a file cannot be written.
    """
    example = "rsdbench plan experiment=standin methods=[rsd_s]"
    parser = command_parser("plan", "What a sweep will run, before it runs.", example)
    parser.add_argument(
        "overrides", nargs="*", help="as for `rsdbench run -m`: drafter=opt-25k,opt-70k budgets=[30] ...; and "
        "hardware=h100-80gb,... for memory and hours there, which needs neither models nor data here",
    )  # fmt: skip
    parser.add_argument("--manifest", type=Path, help="freeze the sweep: write one line of JSON a row job")
    parser.add_argument("--json", type=Path, help="write the plan as JSON; - for standard output, without the table")
    args = parser.parse_intermixed_args(with_config_dir(arguments))
    with hydra_errors():
        rows = sweep_rows(args.overrides, here=args.manifest is not None)
        check(rows)
    lines = [line_of(task, planned) for task, planned in enumerate(rows)]
    if args.manifest is None:
        check_folder(rows)
    else:
        prepare(rows)
        with output(args.manifest, "--manifest") as stream:
            stream.write(manifest(rows))
    if args.json == STDOUT:
        print(as_json(lines))
        return
    if args.json is not None:
        with output(args.json, "--json") as stream:
            stream.write(as_json(lines).encode() + b"\n")
    print_lines(lines)
    if args.manifest is not None:
        print_manifest(shlex.quote(str(args.manifest)), len(rows))


def line_of(task: int, planned: PlannedRow) -> Line:
    """What a row job needs.

    Raises:
        UsageError: as in `Workload.of`.
    """
    missing = [cell for cell in planned.cells if not records.looks_whole(cell.path(planned.results))]
    if not OmegaConf.select(planned.row.config, "hardware"):
        return Line(task, planned, missing, None, None)
    work = Workload.of(planned.row.config, planned.row.points)
    wanted = {(cell.method, cell.structure) for cell in missing}
    points = [point for point in planned.row.points if (point.method, point.structure) in wanted]
    return Line(task, planned, missing, work, estimate(work, points))


def print_lines(lines: list[Line]) -> None:
    """One table for each machine, its sums and what its estimates take for granted; one table if none was named."""
    console = screen(180)
    for machine, group in groupby(lines, lambda line: line.estimate and line.estimate.hardware):
        own = list(group)
        console.print(needs_table(own) if machine else table(own))
        cells, missing = sum(len(line.planned.cells) for line in own), sum(len(line.missing) for line in own)
        print(f"{len(own)} row jobs, {cells} cells, {missing} of them to run")
        if machine:
            print("\n".join([total_text(own), *assumptions([line.work for line in own])]))


def table(lines: list[Line]) -> Table:
    """A line a row job: its number, its cells, how many of them are done, where they go."""
    made = Table()
    for name in ("task", "row job", "cells", "done", "results"):
        made.add_column(name, justify="right" if name in ("task", "cells", "done") else "left", overflow="fold")
    for line in lines:
        counts = str(len(line.planned.cells)), str(line.done)
        made.add_row(str(line.task), line.planned.row.label, *counts, str(line.planned.results))
    return made


def needs_table(lines: list[Line]) -> Table:
    """A line a row job: its cells, its memory, whether and how it fits, its forwards and hours."""
    machine = lines[0].estimate.hardware
    cards = f"{machine.cards} x {machine.gib:g} GiB, {machine.bandwidth:,g} GB/s, {machine.tflops:g} TFLOP/s"
    made = Table(title=f"{machine.name}: {cards}", title_justify="left")
    for name in ("task", "row job"):
        made.add_column(name)
    for name in ("cells\ndone", "weights\nGiB", "cache\nGiB", "work\nGiB", "total\nGiB"):
        made.add_column(name, justify="right")
    made.add_column("fits")
    for name in ("thousand forwards\ntarget", "\ndrafter", "\nhours", "\nGPU-hours"):
        made.add_column(name, justify="right")
    for line in lines:
        needs, memory = line.estimate, line.estimate.memory
        made.add_row(
            str(line.task), line.planned.row.label, f"{line.done}/{len(line.planned.cells)}",
            f"{memory.target:.1f}+{memory.drafter:.1f}", f"{memory.cache:.1f}", f"{memory.workspace:.1f}",
            f"{memory.total:.1f}", fit_text(line),
            *(thousands(forwards) for forwards in (needs.target_forwards, needs.drafter_forwards)),
            hours_text(needs.hours), hours_text(needs.gpu_hours),
        )  # fmt: skip
    return made


def fit_text(line: Line) -> str:
    """How a row fits; where one card is not enough, the batch sizes with which it would be."""
    fit = line.estimate.fit
    ways = [f"{name} {batch}" for name, batch in fit.one_card_batch.items() if batch and fit.needed > 1]
    return fit.text + (f"\n(one card: batch {', '.join(ways).replace('none ', '')})" if ways else "")


def thousands(forwards: Range) -> str:
    """A range of numbers."""
    return f"{forwards.low / 1e3:,.0f}-{forwards.high / 1e3:,.0f}"


def hours_text(hours: Range | None) -> str:
    """A range of hours."""
    return "-" if hours is None else f"{hours.low:.2f}-{hours.high:.2f}"


def total(lines: list[Line], name: str) -> Range:
    """The sum of a kind of hours over the rows that can run."""
    known = [getattr(line.estimate, name) for line in lines if line.estimate.hours is not None]
    return Range(sum(hours.low for hours in known), sum(hours.high for hours in known))


def total_text(lines: list[Line]) -> str:
    """All hours, and which rows they are without."""
    without = [line.planned.row.label for line in lines if line.estimate.hours is None]
    text = f"{hours_text(total(lines, 'hours'))} hours one after another"
    if lines[0].estimate.hardware.device != "cpu":
        text += f", {hours_text(total(lines, 'gpu_hours'))} GPU-hours"
    return text + (f"; without what does not fit: {'; '.join(without)}" if without else "")


def as_json(lines: list[Line]) -> str:
    """The plan as JSON: GiB, hours and forwards as in the table, unrounded; ranges as {"low", "high"}."""
    rows = [
        {
            "task": line.task, "row": line.planned.row.name, "label": line.planned.row.label,
            "results": str(line.planned.results), "cells": len(line.planned.cells), "done": line.done,
            **needs_json(line.estimate),
        }
        for line in lines
    ]  # fmt: skip
    made: dict[str, Any] = {"rsdbench": __version__, "rows": rows}
    known = [line for line in lines if line.estimate]
    if known:
        made["total"] = {
            machine.name: {name: total(own, name)._asdict() for name in ("hours", "gpu_hours")}
            for machine, group in groupby(known, lambda line: line.estimate.hardware)
            for own in [list(group)]
        }
        made["assumptions"] = assumptions([line.work for line in known])
    return json.dumps(made, indent=1)


def needs_json(needs: Estimate | None) -> dict[str, Any]:
    """What a row needs."""
    if needs is None:
        return {}
    ranges = {
        name: value and value._asdict()
        for name in ("target_forwards", "drafter_forwards", "hours", "gpu_hours")
        for value in [getattr(needs, name)]
    }
    memory = {**asdict(needs.memory), "total": needs.memory.total}
    return {"hardware": asdict(needs.hardware), "memory_gib": memory, "fit": asdict(needs.fit), **ranges}


def print_manifest(file: str, tasks: int) -> None:
    """How to run what was frozen."""
    last = tasks - 1
    print(f"{file}: {tasks} tasks. On this machine: rsdbench run --manifest {file} --task N, N from 0 to {last}.")
    print(f"On a cluster: sbatch --array=0-{last} scripts/slurm_array.sbatch {file}")
