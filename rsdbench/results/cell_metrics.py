"""RESULTS/metrics.parquet: the metrics of every cell, a row each, derived from the records and kept up to date.

A cell's row stays as it is while its record, and AR's of the same row, are the files that it was computed from.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rsdbench.errors import UsageError
from rsdbench.files import whole_file
from rsdbench.results import metrics
from rsdbench.results.collect import stamps_of
from rsdbench.results.metrics import CATALOGUE, Estimate, Metric
from rsdbench.results.points import unsteady_line
from rsdbench.results.results import Results
from rsdbench.results.schema import AXES

NAME = "metrics.parquet"
STAMP = "record"  # column: sizes and times of the files that a row was computed from
FORMAT = 3  # of the rows: a change of how they are computed computes all anew
ROUNDS = 3  # times to look whether other processes have added records meanwhile


def refresh(results: Path) -> None:
    """Bring a folder's metrics up to date.

    Raises:
        UsageError: as in `Results.load`, or the file cannot be written.
    """
    for _ in range(ROUNDS):
        seen = stamps_of(results / "cells")
        write(cell_metrics(Results.load(results), read(results / NAME)), results / NAME)
        if stamps_of(results / "cells") == seen:
            return


def try_to_refresh(results: Path) -> None:
    """Bring a folder's metrics up to date, or say why they are not; and say which cells are unsteady."""
    try:
        refresh(results)
    except UsageError as error:
        print(f"note: {NAME} is not up to date: {error}", file=sys.stderr)
        return
    written = read(results / NAME)
    if written is not None and (line := unsteady_line(written)):
        print(line)


def cell_metrics(results: Results, known: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a cell. known: an earlier answer, whose rows are taken where nothing has changed.

    Columns: cell_id, row, drafter, target, dataset, method, structure, budget, depth, seed; the four metrics, each with
    _low and _high, NaN where there is nothing to compute them from; mean_block_efficiency, the mean over prompts of
    each one's own; prompts; timed_prompts, turns (timed decodings), steady (whether AR was in step in nearly all of
    them), unsteady_turns, stalls (share of the time that stalls took), plain_token_rate (with them).
    """
    # what a cell's metrics depend on: this code, its own file and that of AR in its row
    stamps = {
        cell: f"{FORMAT} {results.stamps.get(cell)} {results.stamps.get(results.base.get(row, ''))}"
        for row, cell in results.cells[["row", "cell_id"]].itertuples(index=False)
    }
    kept = {} if known is None else {row["cell_id"]: row for row in known.to_dict("records")}
    rows = []
    for cell in results.cells.cell_id:
        same = cell in kept and kept[cell].get(STAMP) == stamps[cell]
        rows.append(kept[cell] if same else {**one_cell(results, cell), STAMP: stamps[cell]})
    return pd.DataFrame(rows).astype(dict.fromkeys(("budget", "depth", "seed"), "int64"))


def one_cell(results: Results, cell_id: str) -> dict[str, Any]:
    """A cell's row."""
    first = results.cells.set_index("cell_id").loc[cell_id]
    empty = results.records.iloc[:0]
    quality, speed = (results.by_cell.get((cell_id, phase), empty) for phase in ("quality", "speed"))
    found = {metric.name: known(results, metric, cell_id) for metric in CATALOGUE.values()}
    columns = ("row", *AXES, "method", "structure", "budget", "depth", "seed")
    ends = "", "_low", "_high"
    return {
        "cell_id": cell_id,
        **{name: first[name] for name in columns},
        **{f"{name}{end}": value for name, x in found.items() for end, value in zip(ends, x, strict=True)},
        "mean_block_efficiency": metrics.mean_block_efficiency(quality) if len(quality) else float("nan"),
        "prompts": len(quality), "timed_prompts": speed.prompt_id.nunique(), "turns": len(speed),
        "steady": metrics.is_steady(speed) if len(speed) else True,
        "unsteady_turns": int((~speed.steady.astype(bool)).sum()),
        "stalls": 1 - speed[["steady_s", "ar_steady_s"]].sum().sum() / speed[["decode_s", "ar_decode_s"]].sum().sum()
        if len(speed) else float("nan"),
        "plain_token_rate": metrics.plain_token_rate(speed) if len(speed) else float("nan"),
    }  # fmt: skip


def known(results: Results, metric: Metric, cell_id: str) -> Estimate:
    """A metric of a cell; NaN where there is nothing to compute it from, or AR has other prompts."""
    with suppress(UsageError):
        drawn = results.values(metric, cell_id)
        if drawn is not None:
            return metrics.estimate(drawn)
    return Estimate(*[float("nan")] * 3)


def read(path: Path) -> pd.DataFrame | None:
    """An earlier answer, if there is a usable one."""
    try:
        return pq.read_table(path).to_pandas()
    except (OSError, pa.ArrowException):
        return None


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write the file, complete or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        with whole_file(path) as stream:
            pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), stream)
    except OSError as error:
        raise UsageError(f"'{path}' cannot be written ({error.strerror or error})") from None
