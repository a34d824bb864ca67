"""The four metrics. Each is one object: what it is computed from, how, and how it is called.

All are functions of sums over a cell's prompts. Intervals are of the Bayesian bootstrap (Rubin, Annals of Statistics
1981): a resample gives each prompt an exponential weight, the same in all cells that have it, so that what cells share
cancels out of their ratios. A prompt is weighed with all of its turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rsdbench.errors import UsageError
from rsdbench.plugins import register
from rsdbench.seeds import seed_from
from rsdbench.tasks.scores import of_resamples

RESAMPLES = 1000
RESAMPLES_ACCURACY = 300  # corpus BLEU goes through sacrebleu for each resample
LEVEL = 0.95
UNSTEADY = 0.1  # share of a cell's turns that may be out of step
SEED = 20240222  # of the resampling: the same records give the same intervals
ADDED = ["new_tokens", "blocks", "steady_s", "ar_new_tokens", "ar_steady_s"]  # columns of records that add up

Values = np.ndarray  # [1 + resamples]: of the sample, and of each resample


class Estimate(NamedTuple):
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def estimate(values: Values) -> Estimate:
    """The first entry as the value, percentiles of the others as the interval; undefined resamples are left out."""
    finite = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(finite):
        return Estimate(float(values[0]), float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(values[0]), float(low), float(high))


@lru_cache(maxsize=100_000)
def weight(dataset: str, prompt: object) -> Values:
    """One prompt's weights: 1 for the sample, exponential ones for the resamples."""
    drawn = np.random.default_rng(seed_from(f"{SEED} {(dataset, prompt)}")).exponential(size=RESAMPLES)
    return np.concatenate([[1.0], drawn])


@lru_cache(maxsize=64)
def weights(dataset: str, prompts: tuple[object, ...]) -> np.ndarray:
    """Weights of prompts, [1 + RESAMPLES, prompts]."""
    return np.stack([weight(dataset, prompt) for prompt in prompts], 1)


@dataclass(frozen=True)
class Sample:
    """A cell's records of one phase, and their weighted sums.

    statistics: of the answers, in the order of the records, [records, k]; base: AR's sample in the same row.
    """

    records: pd.DataFrame
    statistics: np.ndarray | None = None
    base: Sample | None = None

    @cached_property
    def by_prompt(self) -> pd.DataFrame:
        """Sums of each prompt's turns."""
        known = [column for column in ADDED if column in self.records]
        return self.records.groupby("prompt_id", sort=False)[known].sum()

    @property
    def dataset(self) -> str:
        """What a prompt's id is of."""
        return str(self.records.dataset.iloc[0]) if "dataset" in self.records else ""

    def sum(self, column: str) -> Values:
        """Weighted sums of a column."""
        return weights(self.dataset, tuple(self.by_prompt.index)) @ self.by_prompt[column].to_numpy(float)

    @property
    def score(self) -> Values:
        """The score of the answers, in percent."""
        own = weights(self.dataset, tuple(self.records.prompt_id))[: 1 + RESAMPLES_ACCURACY]
        return of_resamples(self.records.metric.iloc[0], self.statistics, own)

    @property
    def cost(self) -> float:
        """Weights that a block reads, in targets."""
        first = self.records.iloc[0]
        return float(block_cost(first.drafter_params, first.target_params, first.depth))


def block_cost(drafter_params: Any, target_params: Any, depth: Any) -> Any:
    """Weights that a block reads, in targets: c L + 1."""
    return drafter_params / target_params * depth + 1


@dataclass(frozen=True)
class Metric:
    """One column of the figure.

    name: in files and on the command line; label: in figures and tables; phase: of the records that it is computed
    from; relative: whether it is a ratio to AR, which is drawn as a line at 1; formula: of a sample -> `Values`.
    """

    name: str
    label: str
    phase: str
    relative: bool
    formula: Callable[[Sample], Values]

    def values(self, sample: Sample) -> Values:
        """Of a sample, and of each resample of its prompts."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.formula(sample)

    def estimate(self, sample: Sample) -> Estimate:
        """The value with its interval."""
        return estimate(self.values(sample))


# generated tokens / target calls
BLOCK_EFFICIENCY = Metric(
    "block_efficiency", "block efficiency", "quality", False, lambda s: s.sum("new_tokens") / s.sum("blocks")
)
# memory-bound speed-up: block efficiency / (c L + 1), c the ratio of parameters, L drafter calls a block
MBSU = Metric("mbsu", "MBSU", "quality", False, lambda s: s.sum("new_tokens") / s.sum("blocks") / s.cost)
# tokens a second over AR's on the same prompts, over decoding seconds without stalls
TOKEN_RATE = Metric(
    "token_rate", "token rate", "speed", True,
    lambda s: s.sum("new_tokens") / s.sum("steady_s") / (s.sum("ar_new_tokens") / s.sum("ar_steady_s")),
)  # fmt: skip
# score over AR's on the same prompts
ACCURACY = Metric("accuracy", "accuracy", "quality", True, lambda s: s.score / s.base.score)

CATALOGUE: dict[str, Metric] = {}  # by label


def register_metric(metric: Metric) -> None:
    """Put a metric into the catalogue: it is a column of figures and tables.

    Raises:
        UsageError: its name or label is taken.
    """
    if metric.label in CATALOGUE:
        raise UsageError(f"the metric '{metric.label}' is registered already")
    names = {own.name: own for own in CATALOGUE.values()}
    register("metric", names, metric.name, metric)
    CATALOGUE[metric.label] = metric


for _metric in (BLOCK_EFFICIENCY, MBSU, TOKEN_RATE, ACCURACY):
    register_metric(_metric)


def metric_labels() -> tuple[str, ...]:
    """Of all metrics: the columns of the figure."""
    return tuple(CATALOGUE)


def compared() -> list[Metric]:
    """The metrics that tell structures apart."""
    return [metric for metric in CATALOGUE.values() if metric is not ACCURACY]


def best_of(drawn: Sequence[Values]) -> Estimate:
    """Of several cells the first, which is the best. Each resample takes its own best: the choice is uncertain too."""
    return estimate(np.fmax.reduce(list(drawn)))


def mean_block_efficiency(quality: pd.DataFrame) -> float:
    """The mean over prompts of each one's own block efficiency, which weighs a short answer like a long one."""
    return float((quality.new_tokens / quality.blocks).mean())


def plain_token_rate(speed: pd.DataFrame) -> float:
    """Tokens a second relative to AR's, stalls and all: what `TOKEN_RATE` equals on a quiet machine."""
    own, ar = speed.new_tokens.sum() / speed.decode_s.sum(), speed.ar_new_tokens.sum() / speed.ar_decode_s.sum()
    return float(own / ar)


def is_steady(speed: pd.DataFrame) -> bool:
    """Whether AR was in step in nearly all turns, so that the cell's token rate is to be believed."""
    return bool((~speed.steady.astype(bool)).mean() <= UNSTEADY)
