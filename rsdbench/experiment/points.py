"""From records to the figure's points: the best structure of each row, metric, method and budget."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from omegaconf import DictConfig, OmegaConf

from rsdbench.errors import UsageError
from rsdbench.experiment import metrics
from rsdbench.experiment.collect import collect
from rsdbench.experiment.compose import AXES
from rsdbench.experiment.mixture import configurations
from rsdbench.experiment.timing import without_stalls

METRICS = ("block efficiency", "MBSU", "token rate", "accuracy")
COLUMNS = [
    *("cell_id", "row", *AXES, "method", "structure", "budget", "depth", "prompt_id", "phase", "new_tokens", "blocks"),
    *("decode_s", "draft_s", "target_s", "verify_s", "commit_s", "ar_new_tokens", "ar_decode_s", "turn", "steady"),
    *("metric", "drafter_params", "target_params", "seed"),
]
STATISTICS = "score_statistics"
BLOCKS = {"block_us": "steady_s", "ar_block_us": "ar_steady_s"}  # times of blocks, and the seconds without stalls
READ = [*COLUMNS, STATISTICS, *BLOCKS]
POINT = ["row", "metric", "method", "budget", "value", "low", "high", "structure", "steady"]
CELL = ["row", "method", "budget", "structure"]  # what tells a folder's cells apart, beside their ids


@dataclass
class Results:
    """A results folder or a merged file: its records and the configuration of its newest cell."""

    records: pd.DataFrame
    statistics: pa.Array  # of the records' answers, in the same order
    config: DictConfig
    asked: list[list[Any]]  # by the newest cell's row: method, structure, budget, label
    labels: dict[str, str]  # of the methods that have records, in the registry's order; AR is not among them
    stamps: dict[str, tuple[int, int]]  # cell id -> size and time of its file, ns

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read all records.

        Raises:
            UsageError: there are none, one is damaged, or they are of different settings.
        """
        found = collect(folder, READ)
        frame = with_steady_times(found.table)
        config, asked = OmegaConf.create(found.newest["config"]), found.newest["asked"]
        named = {method: label for row in found.rows for method, _, budget, label in row["asked"] if budget}
        present = set(frame.method)
        labels = {method: label for method, label in named.items() if method in present}
        made = cls(frame, found.table[STATISTICS].combine_chunks(), config, asked, labels, found.stamps)
        if mixed := configurations(found):
            raise UsageError(
                f"'{folder}' mixes cells that differ in {'; '.join(mixed)}: give each run its own results=DIR"
            )
        twice = made.cells[made.cells.duplicated(CELL)]
        if len(twice):
            one = twice.iloc[0]
            raise UsageError(
                f"'{folder}' holds two cells of {one.method} {one.structure} in row '{one.row}', made with different "
                "settings or models: give each run its own results=DIR"
            )
        return made

    @cached_property
    def cells(self) -> pd.DataFrame:
        """The first record of each cell, for what all its records share."""
        return self.records.drop_duplicates("cell_id")

    @property
    def rows(self) -> list[str]:
        """Labels of the rows that have records: by drafter, target and dataset, as in the paper's figure."""
        columns = ["drafter_params", "target_params", "dataset", "row"]
        return self.cells[columns].drop_duplicates().sort_values(columns).row.tolist()

    @property
    def drafters(self) -> dict[str, str]:
        """Labels of the rows, as `rows`, and their drafters."""
        found = self.cells.drop_duplicates("row").set_index("row").drafter
        return {row: found[row] for row in self.rows}

    @property
    def methods(self) -> list[str]:
        """Methods that have records, in the registry's order; AR is not among them."""
        return list(self.labels)

    def statistics_of(self, cell: pd.DataFrame) -> np.ndarray:
        """Statistics of some of the records, [records, k]."""
        return np.array(self.statistics.take(pa.array(cell.index)).to_pylist())

    def missing(self) -> str:
        """A line on the cells that the run's own configuration asks for and that are not there; "" if none."""
        config = self.config
        seen = {axis: set(self.cells[axis]) for axis in AXES}
        values = []
        for axis, axes in AXES.items():
            grid = list(config.grid[axes])
            values.append(grid if seen[axis] <= set(grid) else sorted(seen[axis]))
        wanted = list(
            itertools.product(itertools.product(*values), [(method, structure) for method, structure, *_ in self.asked])
        )
        have = self.cells[[*AXES, "method", "structure"]]
        have = {(tuple(r[:3]), tuple(r[3:])) for r in have.itertuples(index=False)}
        absent = [cell for cell in wanted if cell not in have]
        if not absent:
            return ""
        rows = sorted({row for row, _ in absent})
        whole = len(rows) - len({row for row, _ in have} & set(rows))
        named = "; ".join(" ".join(row) for row in rows[:3]) + ("; ..." if len(rows) > 3 else "")
        return f"missing: {len(absent)} of {len(wanted)} cells, in {len(rows)} rows ({whole} of them whole): {named}"


def with_steady_times(table: pa.Table) -> pd.DataFrame:
    """Records' `COLUMNS`, and the seconds of their blocks, the method's and AR's, without stalls.

    Records of before there were times of blocks count with all their decoding seconds.
    """
    frame = table.select(COLUMNS).to_pandas()
    prompts = frame.groupby(["cell_id", "prompt_id"], sort=False).ngroup().to_numpy()
    for column, name in BLOCKS.items():
        lists = table[column].combine_chunks()
        counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
        rows = np.repeat(np.arange(len(frame)), counts)
        blocks = without_stalls(lists.flatten().to_numpy().astype(float), prompts[rows])
        whole = frame[column.replace("block_us", "decode_s")]
        frame[name] = np.where(counts > 0, np.bincount(rows, blocks, len(frame)) / 1e6, whole)
    return frame


def all_points(results: Results) -> pd.DataFrame:
    """Every structure's metrics: row, metric, method, budget, value, low, high, structure, steady.

    steady: whether the machine was quiet enough for it; times alone can be unsteady.
    """
    return estimated(results, values(results))


def figure_points(results: Results) -> pd.DataFrame:
    """The points of the figure, in the order of rows, metrics, methods and budgets.

    Each metric takes the structure that is best for it; accuracy takes the one with the best block efficiency.
    """
    chosen = estimated(results, best(values(results)))
    orders = {"row": results.rows, "metric": list(METRICS), "method": results.methods}
    for name, order in orders.items():
        chosen[name] = pd.Categorical(chosen[name], order, ordered=True)
    chosen = chosen.sort_values(["row", "metric", "method", "budget"]).reset_index(drop=True)
    return chosen.astype(dict.fromkeys(orders, str))


def values(results: Results) -> pd.DataFrame:
    """Block efficiency, MBSU and token rate of each cell: row, method, budget, structure, metric, value, cell_id."""
    frame, cells = results.records, results.cells.set_index("cell_id")
    cells = cells[cells.budget > 0]  # AR drafts nothing
    sums = ["new_tokens", "blocks", "steady_s", "ar_new_tokens", "ar_steady_s"]
    quality, speed = (
        frame[frame.phase == phase].groupby("cell_id", sort=False)[sums].sum().reindex(cells.index)
        for phase in ("quality", "speed")
    )
    efficiency = quality.new_tokens / quality.blocks
    found = {
        "block efficiency": efficiency,
        "MBSU": efficiency / metrics.block_cost(cells.drafter_params, cells.target_params, cells.depth),
        "token rate": speed.new_tokens / speed.steady_s / (speed.ar_new_tokens / speed.ar_steady_s),
    }
    parts = [cells.assign(metric=metric, value=value)[value.notna()] for metric, value in found.items()]
    return pd.concat([part.reset_index() for part in parts])[[*CELL, "metric", "value", "cell_id"]]


def best(points: pd.DataFrame) -> pd.DataFrame:
    """The structure with the largest value of each row, metric, method and budget."""
    keys = ["row", "metric", "method", "budget"]
    return points.sort_values("value", ascending=False, kind="stable").drop_duplicates(keys)


def estimated(results: Results, chosen: pd.DataFrame) -> pd.DataFrame:
    """Some of the `values` with their intervals, and the accuracies of those that are best in block efficiency."""
    frame = results.records
    needed = frame[frame.cell_id.isin(chosen.cell_id)]
    quality = dict(iter(needed[needed.phase == "quality"].groupby("cell_id")))
    speed = dict(iter(needed[needed.phase == "speed"].groupby("cell_id")))
    functions = {"block efficiency": metrics.block_efficiency, "MBSU": metrics.mbsu, "token rate": metrics.token_rate}
    points = []
    for p in chosen.itertuples():
        cell = (speed if p.metric == "token rate" else quality)[p.cell_id]
        steady = p.metric != "token rate" or metrics.is_steady(cell)
        points.append((p.row, p.metric, p.method, p.budget, *functions[p.metric](cell), p.structure, steady))
    efficient = best(chosen[chosen.metric == "block efficiency"])
    for row, ar in frame[(frame.phase == "quality") & (frame.budget == 0)].groupby("row"):
        metric, ordered = ar.metric.iloc[0], ar.sort_values("prompt_id")
        ar_scores = metrics.resampled_scores(metric, results.statistics_of(ordered))
        for p in efficient[efficient.row == row].itertuples():
            cell = quality[p.cell_id].sort_values("prompt_id")
            if cell.prompt_id.tolist() != ordered.prompt_id.tolist():
                raise UsageError(
                    f"row '{row}' has other prompts in AR than in {p.method} {p.structure}: decode it anew"
                )
            value = metrics.accuracy(metric, results.statistics_of(cell), ar_scores)
            points.append((p.row, "accuracy", p.method, p.budget, *value, p.structure, True))
    return pd.DataFrame(points, columns=POINT)


def unsteady_line(frame: pd.DataFrame) -> str:
    """A line on the token rates of points or cells that were timed on an unquiet machine; "" if there are none."""
    found = frame[~frame.steady.astype(bool)]
    if found.empty:
        return ""
    named = "; ".join(f"{p.row} {p.method} {p.structure}" for p in found.head(3).itertuples())
    more = "; ..." if len(found) > 3 else ""
    return f"unsteady: {len(found)} of {len(frame)} token rates, the machine was not quiet: {named}{more}"
