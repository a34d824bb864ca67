"""The four metrics of a cell with bootstrap intervals over prompts.

Each metric is a function of sums over prompts, so a resample is a row of counts: how often each prompt was drawn.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rsdbench.tasks.scores import of_resamples

RESAMPLES = 1000
RESAMPLES_ACCURACY = 300  # corpus BLEU goes through sacrebleu for each resample
LEVEL = 0.95
UNSTEADY = 0.1  # share of a cell's turns that may be out of step
SEED = 20240222  # of the resampling: the same records give the same intervals


class Estimate(NamedTuple):
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@lru_cache(maxsize=8)
def resampled_counts(prompts: int, resamples: int) -> np.ndarray:
    """How often each prompt is drawn, [1 + resamples, prompts]; the first row is the sample itself."""
    drawn = np.random.default_rng(SEED).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    return np.vstack([np.ones((1, prompts), dtype=drawn.dtype), drawn])


def estimate(values: np.ndarray) -> Estimate:
    """The first entry as the value, percentiles of the others as the interval; undefined resamples are left out."""
    finite = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(finite):
        return Estimate(float(values[0]), float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(values[0]), float(low), float(high))


def ratio(numerator: pd.Series, denominator: pd.Series) -> np.ndarray:
    """Sum over sum, for the sample and for each resample, [1 + RESAMPLES]."""
    counts = resampled_counts(len(numerator), RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (counts @ numerator.to_numpy(float)) / (counts @ denominator.to_numpy(float))


def prompt_sums(records: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """By cell and phase, each prompt's sums, in the order of the records."""
    sums = ["new_tokens", "blocks", "steady_s", "ar_new_tokens", "ar_steady_s"]
    every = records.groupby(["cell_id", "phase", "prompt_id"], sort=False)[sums].sum()
    return {key: own.droplevel([0, 1]) for key, own in every.groupby(level=[0, 1], sort=False)}


def resampled(metric: str, sums: pd.DataFrame, prompts: pd.Index, cost: float) -> np.ndarray:
    """Block efficiency, MBSU or token rate of the sample and of each resample of some prompts, [1 + RESAMPLES].

    sums: of a cell, as `prompt_sums`, which may lack some of the prompts; cost: as `block_cost`.
    """
    sums = sums.reindex(prompts, fill_value=0)
    if metric == "token rate":
        return ratio(sums.new_tokens, sums.steady_s) / ratio(sums.ar_new_tokens, sums.ar_steady_s)
    return ratio(sums.new_tokens, sums.blocks) / (cost if metric == "MBSU" else 1)


def block_efficiency(quality: pd.DataFrame) -> Estimate:
    """Generated tokens / blocks."""
    return estimate(ratio(quality.new_tokens, quality.blocks))


def mbsu(quality: pd.DataFrame) -> Estimate:
    """Memory-bound speed-up: block efficiency / (c L + 1), c the ratio of parameters, L drafter calls a block."""
    first = quality.iloc[0]
    cost = block_cost(first.drafter_params, first.target_params, first.depth)
    return Estimate(*(x / cost for x in block_efficiency(quality)))


def block_cost(drafter_params: Any, target_params: Any, depth: Any) -> Any:
    """Weights that a block reads, in targets: c L + 1."""
    return drafter_params / target_params * depth + 1


def mean_block_efficiency(quality: pd.DataFrame) -> float:
    """The mean over prompts of each one's own block efficiency, which weighs a short answer like a long one."""
    return float((quality.new_tokens / quality.blocks).mean())


def token_rate(speed: pd.DataFrame) -> Estimate:
    """Tokens a second relative to AR's on the same prompts, over decoding seconds without stalls.

    A resample draws a prompt with all of its turns, so the interval covers the spread of both.
    """
    sums = speed.groupby("prompt_id", sort=False)[["new_tokens", "steady_s", "ar_new_tokens", "ar_steady_s"]].sum()
    own, ar = ratio(sums.new_tokens, sums.steady_s), ratio(sums.ar_new_tokens, sums.ar_steady_s)
    return estimate(own / ar)


def plain_token_rate(speed: pd.DataFrame) -> float:
    """Tokens a second relative to AR's, stalls and all: what `token_rate` equals on a quiet machine."""
    own, ar = speed.new_tokens.sum() / speed.decode_s.sum(), speed.ar_new_tokens.sum() / speed.ar_decode_s.sum()
    return float(own / ar)


def is_steady(speed: pd.DataFrame) -> bool:
    """Whether AR was in step in nearly all turns, so that the cell's token rate is to be believed."""
    return bool((~speed.steady.astype(bool)).mean() <= UNSTEADY)


def accuracy(metric: str, statistics: np.ndarray, ar_scores: np.ndarray) -> Estimate:
    """Score relative to AR's on the same prompts; the resamples are paired.

    statistics: of the answers, [prompts, k]; ar_scores: `resampled_scores` of AR's answers to the same prompts.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return estimate(resampled_scores(metric, statistics) / ar_scores)


def resampled_scores(metric: str, statistics: np.ndarray) -> np.ndarray:
    """The score of the sample and of each resample, [1 + RESAMPLES_ACCURACY]."""
    return of_resamples(metric, statistics, resampled_counts(len(statistics), RESAMPLES_ACCURACY))
