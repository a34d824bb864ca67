"""The four metrics of a cell with bootstrap intervals over prompts.

Each metric is a function of sums over prompts, so a resample is a row of counts: how often each prompt was drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sacrebleu.metrics import BLEU

RESAMPLES = 1000
RESAMPLES_ACCURACY = 300  # corpus BLEU goes through sacrebleu for each resample
LEVEL = 0.95
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


def token_rate(speed: pd.DataFrame) -> Estimate:
    """Tokens a second relative to AR's on the same prompts."""
    own, ar = ratio(speed.new_tokens, speed.decode_s), ratio(speed.ar_new_tokens, speed.ar_decode_s)
    return estimate(own / ar)


def accuracy(quality: pd.DataFrame, ar_quality: pd.DataFrame) -> Estimate:
    """Score relative to AR's on the same prompts; the resamples are paired."""
    ar_quality = ar_quality.set_index("prompt_id").loc[quality.prompt_id]
    score = SCORES[quality.metric.iloc[0]]
    counts = resampled_counts(len(quality), RESAMPLES_ACCURACY)
    with np.errstate(divide="ignore", invalid="ignore"):
        own = score(quality.text, quality.reference, counts)
        return estimate(own / score(ar_quality.text, ar_quality.reference, counts))


def corpus_bleu(texts: pd.Series, references: pd.Series, counts: np.ndarray) -> np.ndarray:
    """SacreBLEU's corpus score of each resample, [resamples]."""
    statistics = np.array([bleu_statistics(t, r) for t, r in zip(texts, references, strict=True)])  # [prompts, 10]
    return np.array([bleu_from_statistics(s) for s in counts @ statistics])


@lru_cache(maxsize=200_000)
def bleu_statistics(text: str, reference: str) -> tuple[int, ...]:
    """What corpus BLEU sums: 4 n-gram matches, 4 n-gram totals, length, reference length."""
    score = bleu().sentence_score(text, [reference])
    return (*score.counts, *score.totals, score.sys_len, score.ref_len)


def bleu_from_statistics(sums: np.ndarray) -> float:
    """BLEU in percent from summed statistics, with sacrebleu's default smoothing."""
    numbers = [int(n) for n in sums]
    return BLEU.compute_bleu(numbers[:4], numbers[4:8], numbers[8], numbers[9], smooth_method="exp").score


@lru_cache(maxsize=1)
def bleu() -> BLEU:
    """One scorer: sentence statistics that add up to the corpus score."""
    return BLEU(effective_order=True)


def mean_rouge2(texts: pd.Series, references: pd.Series, counts: np.ndarray) -> np.ndarray:
    """Mean ROUGE-2 F1 (with stemming) of each resample, in percent, [resamples]."""
    scores = np.array([rouge2(t, r) for t, r in zip(texts, references, strict=True)])
    return 100 * (counts @ scores) / len(scores)


@lru_cache(maxsize=200_000)
def rouge2(text: str, reference: str) -> float:
    """ROUGE-2 F1 with Porter stemming."""
    return rouge_scorer().score(reference, text)["rouge2"].fmeasure


@lru_cache(maxsize=1)
def rouge_scorer() -> object:
    """One scorer."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge2"], use_stemmer=True)


SCORES: dict[str, Callable[[pd.Series, pd.Series, np.ndarray], np.ndarray]] = {
    "bleu": corpus_bleu,
    "rouge2": mean_rouge2,
}
