"""From records to the figure's points: the best structure of each row, metric, method and budget."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from rsdbench.engine.methods import BASELINE, METHODS
from rsdbench.errors import UsageError
from rsdbench.experiment import metrics
from rsdbench.experiment.cells import planned_cells
from rsdbench.experiment.collect import collect
from rsdbench.experiment.compose import AXES

METRICS = ("block efficiency", "MBSU", "token rate", "accuracy")
# one folder holds one configuration: cells that differ in these cannot stand in one figure
SETTINGS = ("seed", "temperature", "top_p", "max_new_tokens", "batch_size", "device", "dtype")
COLUMNS = [
    *("cell_id", "row", *AXES, "method", "structure", "budget", "depth", "prompt_id", "phase", "new_tokens", "blocks"),
    *("decode_s", "ar_new_tokens", "ar_decode_s", "text", "reference", "metric", "drafter_params", "target_params"),
    *SETTINGS,
]
CELL = ["row", "method", "budget", "structure"]  # what tells a folder's cells apart


@dataclass
class Results:
    """A results folder or a merged file: its records and the configuration of its newest cell."""

    records: pd.DataFrame
    config: DictConfig

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read all records.

        Raises:
            UsageError: there are none, one is damaged, or they are of different settings.
        """
        found = collect(folder, COLUMNS)
        frame = found.table.select(COLUMNS).to_pandas()
        for name in SETTINGS:
            values = sorted(frame[name].unique())
            if len(values) > 1:
                found = ", ".join(map(str, values))
                raise UsageError(
                    f"'{folder}' mixes cells of different {name} ({found}): give each run its own results=DIR"
                )
        twice = frame.groupby(["row", "method", "structure", "budget"]).cell_id.nunique()
        if (twice > 1).any():
            row, method, structure, _ = twice[twice > 1].index[0]
            raise UsageError(
                f"'{folder}' holds {twice.max()} cells of {method} {structure} in row '{row}', made with different "
                "settings or models: give each run its own results=DIR"
            )
        return cls(frame, OmegaConf.create(found.newest_config))

    @property
    def rows(self) -> list[str]:
        """Labels of the rows that have records: by drafter, target and dataset, as in the paper's figure."""
        columns = ["drafter_params", "target_params", "dataset", "row"]
        return self.records[columns].drop_duplicates().sort_values(columns).row.tolist()

    @property
    def methods(self) -> list[str]:
        """Methods that have records, in the registry's order; AR is not among them."""
        found = [m for m in self.records.method.unique() if m != BASELINE]
        order = list(METHODS)
        return sorted(found, key=lambda m: order.index(m) if m in order else len(order))

    def missing(self) -> str:
        """A line on the cells that the run's own configuration asks for and that are not there; "" if none."""
        config = self.config
        seen = {axis: set(self.records[axis]) for axis in AXES}
        values = []
        for axis, axes in AXES.items():
            grid = list(config.grid[axes])
            values.append(grid if seen[axis] <= set(grid) else sorted(seen[axis]))
        wanted = list(itertools.product(itertools.product(*values), planned_cells(config)))
        have = self.records[[*AXES, "method", "structure"]].drop_duplicates()
        have = {(tuple(r[:3]), tuple(r[3:])) for r in have.itertuples(index=False)}
        absent = [cell for cell in wanted if cell not in have]
        if not absent:
            return ""
        rows = sorted({row for row, _ in absent})
        whole = len(rows) - len({row for row, _ in have} & set(rows))
        named = "; ".join(" ".join(row) for row in rows[:3]) + ("; ..." if len(rows) > 3 else "")
        return f"missing: {len(absent)} of {len(wanted)} cells, in {len(rows)} rows ({whole} of them whole): {named}"


def all_points(results: Results) -> pd.DataFrame:
    """Every structure's metrics: row, metric, method, budget, value, low, high, structure."""
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
    """Block efficiency, MBSU and token rate of every structure: row, metric, method, budget, structure, value."""
    frame = results.records[results.records.method != BASELINE]
    sums = ["new_tokens", "blocks", "decode_s", "ar_new_tokens", "ar_decode_s"]
    first = ["depth", "drafter_params", "target_params"]
    quality = frame[frame.phase == "quality"].groupby(CELL, sort=False)[[*sums, *first]]
    quality = quality.agg(dict.fromkeys(sums, "sum") | dict.fromkeys(first, "first"))
    speed = frame[frame.phase == "speed"].groupby(CELL, sort=False)[sums].sum()
    efficiency = quality.new_tokens / quality.blocks
    found = {
        "block efficiency": efficiency,
        "MBSU": efficiency / metrics.block_cost(quality.drafter_params, quality.target_params, quality.depth),
        "token rate": speed.new_tokens / speed.decode_s / (speed.ar_new_tokens / speed.ar_decode_s),
    }
    parts = [s.rename("value").reset_index().assign(metric=metric) for metric, s in found.items()]
    return pd.concat(parts, ignore_index=True)[["row", "metric", "method", "budget", "structure", "value"]]


def best(points: pd.DataFrame) -> pd.DataFrame:
    """The structure with the largest value of each row, metric, method and budget."""
    keys = ["row", "metric", "method", "budget"]
    return points.sort_values("value", ascending=False, kind="stable").drop_duplicates(keys)


def estimated(results: Results, chosen: pd.DataFrame) -> pd.DataFrame:
    """Some of the `values` with their intervals, and the accuracies of those that are best in block efficiency."""
    frame = results.records
    efficient = best(chosen[chosen.metric == "block efficiency"])
    needed = frame.merge(chosen[CELL].drop_duplicates(), on=CELL)
    quality = dict(iter(needed[needed.phase == "quality"].groupby(CELL)))
    speed = dict(iter(needed[needed.phase == "speed"].groupby(CELL)))
    ar = dict(iter(frame[(frame.phase == "quality") & (frame.method == BASELINE)].groupby("row")))
    functions = {"block efficiency": metrics.block_efficiency, "MBSU": metrics.mbsu, "token rate": metrics.token_rate}
    points = []
    for p in chosen.itertuples():
        cell = (speed if p.metric == "token rate" else quality)[p.row, p.method, p.budget, p.structure]
        points.append((p.row, p.metric, p.method, p.budget, *functions[p.metric](cell), p.structure))
    for p in efficient[efficient.row.isin(ar.keys())].itertuples():
        value = metrics.accuracy(quality[p.row, p.method, p.budget, p.structure], ar[p.row])
        points.append((p.row, "accuracy", p.method, p.budget, *value, p.structure))
    return pd.DataFrame(points, columns=["row", "metric", "method", "budget", "value", "low", "high", "structure"])
