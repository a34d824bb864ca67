"""Metrics of cells on the same resamples of the prompts, so that what cells share cancels out of their ratios.

The Bayesian bootstrap (Rubin, Annals of Statistics 1981): exponential weights, one for a prompt in all cells that have
it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import pandas as pd

from rsdbench.results import metrics
from rsdbench.results.points import METRICS
from rsdbench.results.results import Results
from rsdbench.seeds import seed_from
from rsdbench.tasks.scores import of_resamples

RESAMPLES = 400  # the standard error of an interval's width is then 3.5 %
LEVEL = 0.95
EFFICIENCY, MBSU, RATE, ACCURACY = METRICS

Values = np.ndarray  # [1 + RESAMPLES]: of the sample, and of each resample


class Resampled:
    """Metrics of a folder's cells as `Values`."""

    def __init__(self, results: Results) -> None:
        self.results = results
        base = results.cells[results.cells.budget == 0]
        self.base = dict(zip(base.row, base.cell_id, strict=True))  # row -> AR's cell
        self.weights: dict[tuple[str, str], np.ndarray] = {}

    @cached_property
    def metrics(self) -> dict[str, Callable[[str], Values | None]]:
        """What gives each metric of a cell."""
        return {EFFICIENCY: self.efficiency, MBSU: self.mbsu, RATE: self.rate, ACCURACY: self.accuracy}

    def efficiency(self, cell: str) -> Values:
        """Generated tokens / blocks."""
        own = self.results.cell(cell, "quality")
        return self.total(own, "new_tokens") / self.total(own, "blocks")

    def mbsu(self, cell: str) -> Values:
        """Block efficiency / (c L + 1)."""
        first = self.results.cell(cell, "quality").iloc[0]
        return self.efficiency(cell) / metrics.block_cost(first.drafter_params, first.target_params, first.depth)

    def rate(self, cell: str) -> Values:
        """Tokens a second over AR's."""
        own = self.results.cell(cell, "speed")
        rates = [self.total(own, f"{who}new_tokens") / self.total(own, f"{who}steady_s") for who in ("", "ar_")]
        return rates[0] / rates[1]

    def accuracy(self, cell: str) -> Values | None:
        """Score over AR's; None without AR."""
        own = self.results.cell(cell, "quality")
        base = self.base.get(own.row.iloc[0])
        if base is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.score(own) / self.score(self.results.cell(base, "quality"))

    def total(self, records: pd.DataFrame, column: str) -> Values:
        """Weighted sums of a column."""
        return self.weights_of(records) @ records[column].to_numpy(float)

    def score(self, cell: pd.DataFrame) -> Values:
        """The score of one cell's answers."""
        return of_resamples(cell.metric.iloc[0], self.results.statistics_of(cell), self.weights_of(cell))

    def weights_of(self, cell: pd.DataFrame) -> np.ndarray:
        """Weights of a cell's prompts, [1 + RESAMPLES, prompts]: a prompt of a dataset has the same in all cells."""
        dataset = cell.dataset.iloc[0]
        return np.stack([self.weight(dataset, prompt) for prompt in cell.prompt_id], 1)

    def weight(self, dataset: str, prompt: str) -> np.ndarray:
        """One prompt's weights, [1 + RESAMPLES]."""
        key = (dataset, prompt)
        if key not in self.weights:
            drawn = np.random.default_rng(seed_from(f"{metrics.SEED} {key}")).exponential(size=RESAMPLES)
            self.weights[key] = np.concatenate([[1.0], drawn])
        return self.weights[key]
