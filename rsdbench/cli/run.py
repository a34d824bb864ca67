"""`rsdbench run`: run the missing cells of an experiment, of a sweep (-m), or of one task of a manifest."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverrideParseException
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rsdbench.errors import UsageError
from rsdbench.notes import note
from rsdbench.results.cell_metrics import try_to_refresh
from rsdbench.runner import progress, redo, store
from rsdbench.runner.compose import CONFIGS, CUSTOM, SEARCH, no_setting, with_config_dir
from rsdbench.runner.plan import PlannedRow, planned_rows, prepare, read_task, sweep_rows
from rsdbench.runner.preemption import CODE, Preempted, preemptible
from rsdbench.sources import code_hash

TASK = "SLURM_ARRAY_TASK_ID"


def main(arguments: list[str]) -> None:
    """Run a manifest's task, or hand over to Hydra.

    Raises:
        UsageError: an override, a group's choice or a setting is wrong.
    """
    try:
        with preemptible(), hydra_errors():
            arguments = with_config_dir(arguments)
            if any(argument.partition("=")[0] == "--manifest" for argument in arguments):
                run_task(arguments)
            else:
                run_hydra(arguments)
    except Preempted as signal:
        leave(signal)


def leave(signal: Preempted) -> NoReturn:
    """Exit with the code that means: again later."""
    print(f"rsdbench: stopped by {signal}; what is finished is kept, the same command goes on", file=sys.stderr)
    sys.exit(CODE)


def run_task(arguments: list[str]) -> None:
    """One task of a manifest."""
    parser = argparse.ArgumentParser("rsdbench run", description="Run one task of a manifest.")
    parser.add_argument("--manifest", type=Path, required=True, help="what `rsdbench plan --manifest FILE` wrote")
    parser.add_argument("--task", help=f"number of the task, from 0 (default: ${TASK})")
    args, others = parser.parse_known_args(arguments)
    if others:
        raise UsageError(f"a manifest is frozen, it takes no '{others[0]}': plan another one with rsdbench plan")
    number = args.task or os.environ.get(TASK, "")
    if not number.isdecimal():
        raise UsageError(f"which task of the manifest? Give --task N or set {TASK} to a number, not '{number}'")
    sys.exit(run_rows([read_task(args.manifest, int(number))]))


def run_hydra(arguments: list[str]) -> None:
    """One job, or the jobs of a sweep through whichever launcher was chosen."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed
    sys.argv = ["rsdbench run", *arguments]
    application = hydra.main(config_path=str(CONFIGS), config_name="config", version_base="1.3")(job)
    args = hydra_flags().parse_args(arguments)
    planned = []
    if args.multirun and not args.shows:
        planned = sweep_rows(args.overrides)
        redo.check(planned)
        prepare(planned)
    application()
    if planned:
        sys.exit(conclude(planned))


def hydra_flags() -> argparse.ArgumentParser:
    """What of Hydra's own flags says which kind of run this is; `shows`: one that only shows something."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--help", "-h", "--hydra-help", "--version", dest="shows", action="store_true")
    for flags in (("--cfg", "-c"), ("--info", "-i")):
        parser.add_argument(*flags, dest="shows", nargs="?", const="all")
    for flags in (("--config-path", "-cp"), ("--config-name", "-cn"), ("--config-dir", "-cd"), ("--package", "-p")):
        parser.add_argument(*flags)
    parser.add_argument("--resolve", "--run", "-r", "--shell-completion", "-sc", action="store_true")
    return parser


def job(_: DictConfig) -> None:
    """A Hydra job. Bad input ends it as an exit, not as an exception, which Hydra would announce in its own words."""
    given = HydraConfig.get().overrides
    overrides = [*given.task, *(o for o in given.hydra if o.startswith(f"{SEARCH}="))]
    alone = HydraConfig.get().mode != RunMode.MULTIRUN
    try:
        with preemptible(), hydra_errors():
            rows = planned_rows(overrides)
            if alone:  # the rows of a sweep were checked together
                redo.check(rows)
            code = run_rows(rows, alone)
    except Preempted as signal:
        leave(signal)
    except UsageError as error:
        print(f"rsdbench: {error}", file=sys.stderr)
        sys.exit(2)
    if alone:
        sys.exit(code)


def run_rows(rows: list[PlannedRow], alone: bool = True) -> int:
    """Run what is missing, row after row, and say what was done; returns the exit code.

    alone: these rows are all there is. In a sweep another process sums up, and rows that cannot be run at all are
    noted as failed, so that the other jobs go on.

    Raises:
        UsageError: the results folder, a model or the data cannot be used.
    """
    prepare(rows)
    for planned in rows:
        chosen = {o.partition("=")[0]: o.partition("=")[2] for o in planned.overrides}
        if "dataset.path" in chosen and chosen.get("dataset") not in (None, CUSTOM):
            note(f"dataset={chosen['dataset']} keeps its label, template and metric; dataset.path alone inherits none")
    if again := redo.set_aside(rows):
        print(f"redo: {again} cells are decoded again; what they were is in RESULTS/progress/replaced", file=sys.stderr)
    found = {c: store.code_of(c, planned.results) for planned in rows for c in planned.cells}
    missing = [cell for cell, code in found.items() if code is None]
    older = sum(code not in (None, code_hash()) for code in found.values())
    if older:
        print(
            f"note: {older} cells were decoded by another version of the code, and stay; redo=[code] decodes them",
            file=sys.stderr,
        )
    where = ", ".join(dict.fromkeys(str(planned.results) for planned in rows))
    if not missing:
        print(f"all {len(found)} cells are done already: {where}")
        return 0

    from rsdbench.cli.progress import Progress
    from rsdbench.pair import quiet_libraries
    from rsdbench.runner.precompile import precompile
    from rsdbench.runner.run import run_row

    quiet_libraries()
    failed = {}
    with Progress(missing) as bar:
        left = {cell.row.name for cell in missing}
        for problem in precompile([planned.row for planned in rows if planned.row.name in left], bar):
            print(f"note: not compiled: {problem}", file=sys.stderr)
        for planned in rows:
            bar.row(planned.row.label)
            try:
                failed |= run_row(planned.row, planned.cells, planned.results, bar)
            except UsageError as error:
                if alone:
                    raise
                for cell in planned.cells:
                    if not store.is_done(cell, planned.results):
                        progress.fail(cell, planned.results, error)
            redo.finished(planned)
        done = bar.done
    for results in dict.fromkeys(planned.results for planned in rows):
        try_to_refresh(results)
    elsewhere = len(missing) - done - len(failed)
    other = f", {elsewhere} by other processes" if elsewhere and alone else ""
    print(f"{done} cells done{other}, {len(found) - len(missing)} were there already: {where}; {bar.parts}")
    return conclude(rows) if alone else 0


def conclude(rows: list[PlannedRow]) -> int:
    """Say which cells are not done, and why; returns the exit code: 0 all done, 1 some failed, 2 for a usage error."""
    cells = [(cell, planned.results) for planned in rows for cell in planned.cells]
    lost = [(cell, results) for cell, results in cells if not store.is_done(cell, results)]
    if not lost:
        return 0
    reasons = {results: progress.failures(results) for _, results in lost}
    cell, results = lost[0]
    reason = reasons[results].get(cell.id, "its process ended early")
    usage = reason.startswith(f"{UsageError.__name__}: ")
    reason = reason.removeprefix(f"{UsageError.__name__}: ")
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    print(f"rsdbench: failed: {cell.id}{more} ({reason}); the same command tries again", file=sys.stderr)
    return 2 if usage else 1


@contextmanager
def hydra_errors() -> Iterator[None]:
    """What Hydra and OmegaConf find wrong with overrides and configurations is bad input.

    Raises:
        UsageError: instead of their exceptions.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(one_line(error)) from None


def one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's messages in a line."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        more = " (others come with pip install 'rsdbench[launchers]')" if group.endswith("launcher") else ""
        return f"unknown {group} '{name}': choose from {', '.join(sorted(error.options))}{more}"
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    lines = [line.strip() for cause in causes for line in str(cause).splitlines()]
    if unknown := re.search(r"Could not override '([^']+)'", " ".join(lines)):
        return no_setting(unknown[1])
    if isinstance(error, OverrideParseException):
        return (
            f"override {error.override} is not understood ({lines[0]}): a value with spaces, braces or colons needs "
            "quotes of its own, as in \"dataset.template='Q: {source}'\""
        )
    return " ".join(dict.fromkeys(line for line in lines if line and not line.startswith(("full_key", "object_type"))))
