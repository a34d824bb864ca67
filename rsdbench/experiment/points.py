"""From records to the figure's points: the best structure of each row, metric, method and budget."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from rsdbench.engine.methods import BASELINE, METHODS
from rsdbench.errors import UsageError
from rsdbench.experiment import metrics, records
from rsdbench.experiment.cells import planned_cells
from rsdbench.experiment.compose import AXES
from rsdbench.experiment.metrics import Estimate

METRICS = ("block efficiency", "MBSU", "token rate", "accuracy")
# one folder holds one configuration: cells that differ in these cannot stand in one figure
SETTINGS = ("seed", "temperature", "top_p", "max_new_tokens", "batch_size", "device", "dtype")


@dataclass
class Results:
    """A results folder: its records and the configuration of its newest cell."""

    records: pd.DataFrame
    config: DictConfig

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read all records.

        Raises:
            UsageError: there are none, one is damaged, or they are of different settings.
        """
        frame = records.read(folder)
        for name in SETTINGS:
            values = sorted(frame[name].unique().tolist())
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
        return cls(frame, records.newest_config(folder))

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
    frame = results.records
    quality = dict(iter(frame[frame.phase == "quality"].groupby(["row", "method", "budget", "structure"])))
    speed = dict(iter(frame[frame.phase == "speed"].groupby(["row", "method", "budget", "structure"])))
    ar = {key[0]: cell for key, cell in quality.items() if key[1] == BASELINE}
    points = []
    for key, cell in quality.items():
        row, method, budget, structure = key
        if method == BASELINE:
            continue
        found: dict[str, Estimate] = {
            "block efficiency": metrics.block_efficiency(cell),
            "MBSU": metrics.mbsu(cell),
        }
        if key in speed:
            found["token rate"] = metrics.token_rate(speed[key])
        points += [(row, metric, method, budget, *e, structure) for metric, e in found.items()]
    names = ["row", "metric", "method", "budget", "value", "low", "high", "structure"]
    table = pd.DataFrame(points, columns=names)
    efficient = best(table[table.metric == "block efficiency"])
    accuracies = [
        (p.row, "accuracy", p.method, p.budget,
         *metrics.accuracy(quality[p.row, p.method, p.budget, p.structure], ar[p.row]), p.structure)
        for p in efficient.itertuples() if p.row in ar
    ]  # fmt: skip
    return pd.concat([table, pd.DataFrame(accuracies, columns=names)], ignore_index=True)


def best(points: pd.DataFrame) -> pd.DataFrame:
    """The structure with the largest value of each row, metric, method and budget."""
    keys = ["row", "metric", "method", "budget"]
    return points.sort_values("value", ascending=False, kind="stable").drop_duplicates(keys)


def figure_points(results: Results) -> pd.DataFrame:
    """The points of the figure, in the order of rows, metrics, methods and budgets.

    Each metric takes the structure that is best for it; accuracy takes the one with the best block efficiency.
    """
    chosen = best(all_points(results))
    orders = {"row": results.rows, "metric": list(METRICS), "method": results.methods}
    for name, order in orders.items():
        chosen[name] = pd.Categorical(chosen[name], order, ordered=True)
    chosen = chosen.sort_values(["row", "metric", "method", "budget"]).reset_index(drop=True)
    return chosen.astype(dict.fromkeys(orders, str))
