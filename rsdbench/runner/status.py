"""How far the sweeps of a results folder are: the state of every planned cell."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rsdbench.errors import UsageError
from rsdbench.files import now
from rsdbench.results import records
from rsdbench.results.collect import Collection, collect, stamps_of
from rsdbench.results.plans import registered
from rsdbench.runner import progress

DONE, RUNNING, FAILED, DAMAGED, MISSING = "done", "running", "failed", "damaged", "missing"
RATE_WINDOW = 3600.0  # seconds over which finished cells are counted


@dataclass
class Status:
    """The state of a results folder's cells."""

    states: dict[str, str] = field(default_factory=dict)  # cell id -> state
    places: dict[str, tuple[str, str]] = field(default_factory=dict)  # cell id -> row, method
    reasons: dict[str, str] = field(default_factory=dict)  # cell id -> why it failed or cannot be used
    runners: dict[str, str] = field(default_factory=dict)  # cell id -> who runs it
    unplanned: int = 0  # records that belong to no plan
    per_hour: float | None = None  # cells finished in an hour, of late; None if fewer than two were

    def count(self, *states: str) -> int:
        """Cells that are in one of some states."""
        return sum(state in states for state in self.states.values())

    @property
    def hours_left(self) -> float | None:
        """Until all is done at the present rate; None if nothing runs or there is no rate."""
        if not self.per_hour or not self.runners:
            return None
        return (len(self.states) - self.count(DONE)) / self.per_hour

    def table(self) -> dict[str, dict[str, Counter[str]]]:
        """Row -> method -> how many cells are in which state, in the order of the plans."""
        rows: dict[str, dict[str, Counter[str]]] = {}
        for cell, (row, method) in self.places.items():
            rows.setdefault(row, {}).setdefault(method, Counter())[self.states[cell]] += 1
        return rows


def status(results: Path) -> Status:
    """Look at a folder or a merged file. Of a record in a folder only its ends are read: thousands take a moment.

    Raises:
        UsageError: it is not a results folder.
    """
    if results.is_file():
        return status_of(collect(results, ["cell_id", "row", "method", "structure"]))
    if not (results / "cells").is_dir():
        raise UsageError(
            f"'{results}' is no results folder: there is no '{results / 'cells'}'; `rsdbench run ... "
            f"results={results}` makes it"
        )
    seen = Status()
    for plan in registered(results):
        seen.places.update({cell["id"]: (plan["label"], cell["method"]) for cell in plan["cells"]})
    stamps = stamps_of(results / "cells")
    running, failures = progress.running(results), progress.failures(results)
    others = [cell for cell in stamps if cell not in seen.places]
    if not seen.places:
        seen.places.update(unplanned_places(results, others))
    seen.unplanned = sum(cell not in seen.places for cell in others)
    for cell in seen.places:
        seen.states[cell] = state = state_of(cell, results, stamps, running, failures)
        if state == FAILED:
            seen.reasons[cell] = failures[cell]
        elif state == DAMAGED:
            seen.reasons[cell] = "its record is damaged: the next run replaces it"
        elif state == RUNNING:
            owner = running[cell]
            job = f", job {owner['job']}" if owner.get("job") else ""
            seen.runners[cell] = f"{owner.get('host', 'unknown host')}, process {owner.get('pid', '?')}{job}"
    if not running:  # at work on something: else times of files say when they were copied
        return seen
    finished = sorted(stamps[cell][1] / 1e9 for cell, state in seen.states.items() if state == DONE)
    seen.per_hour = rate(finished, now(results / "progress"))
    return seen


def status_of(merged: Collection) -> Status:
    """What a merged file has of what was asked for."""
    seen = Status()
    cells = merged.table.to_pandas().drop_duplicates("cell_id")
    have = set()
    for cell, *point in cells[["cell_id", "row", "method", "structure"]].itertuples(index=False):
        have.add(tuple(point))
        seen.places[cell], seen.states[cell] = (point[0], point[1]), DONE
    for row, method, structure in merged.asked:
        if (row, method, structure) not in have:
            cell = f"{row} {method} {structure}"
            seen.places[cell], seen.states[cell] = (row, method), MISSING
    return seen


def state_of(
    cell: str,
    results: Path,
    stamps: dict[str, tuple[int, int]],
    running: dict[str, dict[str, object]],
    failures: dict[str, str],
) -> str:
    """The state of one cell."""
    if cell in stamps and records.looks_whole(results / "cells" / f"{cell}.parquet"):
        return DONE
    if cell in running:
        return RUNNING
    if cell in stamps:
        return DAMAGED
    return FAILED if cell in failures else MISSING


def unplanned_places(results: Path, cells: list[str]) -> dict[str, tuple[str, str]]:
    """Row and method of records without a plan, from the records themselves."""
    found = {}
    for cell in cells:
        try:
            record = records.read_file(results / "cells" / f"{cell}.parquet", ["row"])
        except records.BadRecord:
            continue
        found[cell] = (record.table["row"][0].as_py(), record.cell["method"])
    return found


def rate(finished: list[float], present: float) -> float | None:
    """Cells an hour from the times at which cells were finished, in order: those of the last hour up to the last."""
    if not finished or abs(present - finished[-1]) > RATE_WINDOW:
        return None
    late = [t for t in finished if t >= finished[-1] - RATE_WINDOW]
    span = late[-1] - late[0]
    return (len(late) - 1) / span * 3600 if span > 0 else None
