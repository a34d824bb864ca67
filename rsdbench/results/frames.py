"""A results folder as data frames, for people who go on from there."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from rsdbench.results.cell_metrics import cell_metrics
from rsdbench.results.collect import collect
from rsdbench.results.points import figure_points
from rsdbench.results.results import Results


class Frames(NamedTuple):
    """metrics: a row a cell, as `cell_metrics`; points: a row a point of the figure, as `figure_points`; records: a row
    a prompt and phase, and in the speed phase a turn, as they are on disk."""

    metrics: pd.DataFrame
    points: pd.DataFrame
    records: pd.DataFrame


def load_results(folder: str | Path) -> Frames:
    """Everything of a folder that `rsdbench run` filled, or of a file that `merge` wrote.

    Raises:
        UsageError: there are no records, one is damaged, or they are of different settings.
    """
    results = Results.load(Path(folder))
    points = figure_points(results)
    return Frames(cell_metrics(results), points, collect(Path(folder)).table.to_pandas())
