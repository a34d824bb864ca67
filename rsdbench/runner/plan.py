"""A sweep before it runs: its row jobs with their cells, and the manifest that freezes them."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rsdbench import __version__
from rsdbench.drafters import is_drafter
from rsdbench.errors import UsageError
from rsdbench.files import whole_file
from rsdbench.models.checkpoints import local_checkpoint
from rsdbench.plugins import anchored_plugins
from rsdbench.results import records
from rsdbench.results.consistency import differences
from rsdbench.results.plans import PLAN
from rsdbench.results.schema import SCHEMA
from rsdbench.runner import progress
from rsdbench.runner.cells import Cell, RowJob
from rsdbench.runner.compose import check_sources, row_jobs, sweep
from rsdbench.sources import code_hash
from rsdbench.tasks.splits import local_data

FORMAT = 1  # of a manifest's lines


@dataclass(frozen=True)
class PlannedRow:
    """A row job as it will run: where from, where to."""

    row: RowJob
    overrides: list[str]  # compose this row alone, from any folder
    results: Path
    elsewhere: frozenset[str] = frozenset()  # cells of the row that another row job of the sweep runs, by id

    @cached_property
    def line(self) -> dict[str, Any]:
        """The row as a line of a manifest."""
        return {
            "format": FORMAT, "rsdbench": __version__, "code": code_hash(), "schema": SCHEMA, "row": self.row.name,
            "label": self.row.label, "results": str(self.results), "overrides": self.overrides,
            "cells": [{"id": c.id, "method": c.method, "structure": c.structure} for c in self.cells],
            "elsewhere": sorted(self.elsewhere),
        }  # fmt: skip

    @cached_property
    def cells(self) -> list[Cell]:
        """The row's cells that are its own to run."""
        return [cell for cell in self.row.cells if cell.id not in self.elsewhere]


def planned_rows(overrides: list[str], here: bool = True) -> list[PlannedRow]:
    """The rows of one job, each checked.

    here: whether they will run on this machine; if not, models and datasets of the hub need not be at hand for rows
    that name the `hardware` they will run on.

    Raises:
        UsageError: a model, the dataset or a setting is not usable.
    """
    jobs = row_jobs(overrides)
    for _, config in jobs:
        check_sources(config, here or not OmegaConf.select(config, "hardware"))

    from rsdbench.runner.settings import check_settings  # and with it torch: what is not there was said before

    rows = []
    for own, config in jobs:
        check_settings(config)
        results = results_folder(config)
        rows.append(PlannedRow(RowJob(config), anchored(own, config, results), results))
    return rows


def results_folder(config: DictConfig) -> Path:
    """Where records go.

    Raises:
        UsageError: the setting is empty, as it is from a shell's variable that is not set.
    """
    if config.results is None or not str(config.results).strip():
        raise UsageError("results is empty: give a folder, such as results=results/mine")
    return Path(str(config.results)).expanduser().absolute()


def sweep_rows(overrides: list[str], here: bool = True) -> list[PlannedRow]:
    """The rows of all jobs of a sweep. here: as in `planned_rows`.

    Raises:
        UsageError: one of them is not usable, or two of them would put different settings under one name.
    """
    rows = [planned for job in sweep(overrides) for planned in planned_rows(job, here)]
    check_distinct(rows)
    return once(rows)


def once(rows: list[PlannedRow]) -> list[PlannedRow]:
    """Row jobs of which no two have a cell in common: the first one keeps it, and one without any of its own goes."""
    seen: dict[tuple[Path, Any], set[str]] = {}
    kept = []
    for planned in rows:  # a plan for two machines needs the same cells on each
        machine = (OmegaConf.select(planned.row.config, "hardware") or {}).get("name")
        known = seen.setdefault((planned.results, machine), set())
        own = {cell.id for cell in planned.row.cells}
        if own - known:
            kept.append(replace(planned, elsewhere=frozenset(own & known)))
        known |= own
    return kept


def anchored(overrides: list[str], config: DictConfig, results: Path) -> list[str]:
    """Overrides that mean the same from any folder: local paths are made absolute."""
    models = [role for role in ("target", "drafter") if not is_drafter(config[role].path)]
    found = {role: local_checkpoint(config[role].path) or Path(config[role].path) for role in models}
    found["dataset"] = local_data(config.dataset.path) or Path(config.dataset.path)
    anchors = {"results": results}
    for group, local in found.items():
        if local.exists() and any(o.startswith(f"{group}.path=") for o in overrides):
            anchors[f"{group}.path"] = local.absolute()
    values = {key: quoted(str(path)) for key, path in anchors.items()}
    if config.plugins:
        values["plugins"] = "[" + ",".join(map(quoted, anchored_plugins(config.plugins))) + "]"
    others = [o for o in overrides if o.partition("=")[0] not in values]
    return [*others, *(f"{key}={value}" for key, value in values.items())]


def quoted(text: str) -> str:
    """A value in Hydra's grammar; in quotes if it needs them."""
    if re.fullmatch(r"[\w/.+-]+", text):
        return text
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"


def prepare(rows: list[PlannedRow]) -> None:
    """See that the results folders can be written and hold nothing else, and leave the plans there.

    Raises:
        UsageError: one cannot be written, or two configurations would share it.
    """
    check_distinct(rows)
    for results in dict.fromkeys(planned.results for planned in rows):
        progress.prepare(results)
    check_folder(rows)
    register(rows)


def check_distinct(rows: list[PlannedRow]) -> None:
    """One folder holds one configuration: two rows of a sweep must not write cells of one name with different settings.

    Raises:
        UsageError: two do, with what differs.
    """
    seen: dict[tuple[Path, str], Cell] = {}
    for planned in rows:
        for cell in planned.cells:
            other = seen.setdefault((planned.results, cell.name), cell)
            if other.id != cell.id:
                raise UsageError(
                    f"two configurations of {cell.name} would go to '{planned.results}': they differ in "
                    f"{differences(other.config, cell.config)}; {remedy(other.config, cell.config)}"
                )


def remedy(one: dict[str, Any], other: dict[str, Any]) -> str:
    """How two configurations that differ can stand beside each other."""
    keys = [key for key in one if one[key] != other.get(key)]
    axes = [key for key in keys if key in ("drafter", "target", "dataset")]
    if axes:
        return f"give each {axes[0]} a name of its own with {axes[0]}.name=NAME"
    first, value = keys[0], one[keys[0]]
    if isinstance(value, dict):
        first += "." + next(key for key in value if value[key] != other[first].get(key))
    return f"give each its own folder, such as 'results=results/${{name}}-${{{first}}}'"


def check_folder(rows: list[PlannedRow]) -> None:
    """The same against what lies in the results folders already.

    Raises:
        UsageError: a folder holds a cell of one of these names with different settings, with what differs.
    """
    for results in dict.fromkeys(planned.results for planned in rows):
        wanted = {cell.name: cell for planned in rows if planned.results == results for cell in planned.cells}
        ids = {cell.id for cell in wanted.values()}
        for file in (results / "cells").glob("[!.]*.parquet"):
            cell = wanted.get(file.stem.rpartition("_")[0])
            if cell is None or file.stem in ids:
                continue
            try:
                there = records.read_file(file, []).cell
            except records.BadRecord:
                continue  # whatever it was, it is not used
            raise UsageError(
                f"'{results}' holds {cell.name} of another configuration: "
                f"{differences(there, cell.config, 'there', 'here')}; give this run its own results=DIR"
            )


def register(rows: list[PlannedRow]) -> None:
    """Leave the plans in their results folders, where `rsdbench status` finds them.

    Raises:
        UsageError: a folder cannot be written.
    """
    for place, planned in enumerate(rows):
        digest = hashlib.sha256(json.dumps(planned.line["cells"]).encode()).hexdigest()[:12]
        path = progress.folder(planned.results) / f"{planned.row.name}_{digest}{PLAN}"
        if not path.exists():
            with records.writing(planned.results), whole_file(path) as stream:
                stream.write(json.dumps({**planned.line, "place": place}).encode())


def manifest(rows: list[PlannedRow]) -> bytes:
    """One line of JSON a row job."""
    return "".join(json.dumps({"task": i, **planned.line}) + "\n" for i, planned in enumerate(rows)).encode()


def read_task(file: Path, task: int) -> PlannedRow:
    """One line of a manifest, composed anew and found to be what was planned.

    Raises:
        UsageError: the file cannot be read, is of another version, has no such task, or no longer describes the same
            cells.
    """
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not one JSON object a line"
        raise UsageError(f"manifest '{file}' cannot be read ({reason}): make one with rsdbench plan") from None
    if not 0 <= task < len(lines):
        tasks = f"its tasks are 0 to {len(lines) - 1}" if lines else "it is empty"
        raise UsageError(f"manifest '{file}' has no task {task}: {tasks}")
    line = lines[task]
    again = "plan it again with rsdbench plan"
    if not isinstance(line, dict) or line.get("format") != FORMAT:
        raise UsageError(f"manifest '{file}' is of another format: {again}")
    for key, mine in (("rsdbench", __version__), ("code", code_hash())):
        if line.get(key) != mine:
            found = line.get(key)
            raise UsageError(f"manifest '{file}' was planned by {key} {found}, and this is {key} {mine}: {again}")
    rows = planned_rows(line.get("overrides", []))
    own = [replace(row, elsewhere=frozenset(line.get("elsewhere", ()))) for row in rows]
    if len(own) != 1 or own[0].line["cells"] != line.get("cells"):
        raise UsageError(
            f"task {task} of manifest '{file}' no longer gives the cells that were planned: its configuration, models "
            f"or data have changed since; {again}"
        )
    return own[0]
