"""Accuracy of answers: BLEU, chrF and ROUGE-2 by their libraries, from statistics of single answers that add up.

The statistics of an answer are computed once, when it is decoded, and stored with it; a corpus's score follows from
their sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from rsdbench.errors import UsageError
from rsdbench.plugins import register


@dataclass(frozen=True)
class Score:
    """statistics: answer, reference -> numbers; corpus: their sums [k] over so many answers -> score in percent."""

    statistics: Callable[[str, str], tuple[float, ...]]
    corpus: Callable[[np.ndarray, int], float]


def of_resamples(metric: str, statistics: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The score of each resample.

    statistics: [answers, k]; counts: how often a resample has each answer, [resamples, answers]. Returns [resamples].

    Raises:
        UsageError: there is no score of that name.
    """
    if metric not in SCORES:
        raise UsageError(f"the answers were scored by '{metric}', which is no score here: name its --plugin MODULE")
    return np.array(
        [SCORES[metric].corpus(sums, n) for sums, n in zip(counts @ statistics, counts.sum(1), strict=True)]
    )


def of_texts(metric: str, texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """The statistics of answers, [answers, k]."""
    return np.array([SCORES[metric].statistics(t, r) for t, r in zip(texts, references, strict=True)], dtype=float)


@lru_cache(maxsize=1)
def bleu() -> Any:
    """sacreBLEU's scorer of single sentences."""
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


@lru_cache(maxsize=200_000)
def bleu_statistics(text: str, reference: str) -> tuple[float, ...]:
    """What corpus BLEU sums: 4 n-gram matches, 4 n-gram totals, length, reference length."""
    score = bleu().sentence_score(text, [reference])
    return (*score.counts, *score.totals, score.sys_len, score.ref_len)


def corpus_bleu(sums: np.ndarray, _: int) -> float:
    """SacreBLEU's corpus score with its default smoothing."""
    numbers = [round(x) for x in sums.tolist()]
    return bleu().compute_bleu(numbers[:4], numbers[4:8], numbers[8], numbers[9], smooth_method="exp").score


@lru_cache(maxsize=1)
def rouge_scorer() -> Any:
    """rouge-score's scorer, with Porter stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge2"], use_stemmer=True)


@lru_cache(maxsize=200_000)
def rouge2_statistics(text: str, reference: str) -> tuple[float, ...]:
    """ROUGE-2 F1."""
    return (rouge_scorer().score(reference, text)["rouge2"].fmeasure,)


@lru_cache(maxsize=1)
def chrf() -> Any:
    """sacreBLEU's chrF of single answers."""
    from sacrebleu.metrics import CHRF

    return CHRF()


@lru_cache(maxsize=200_000)
def chrf_statistics(text: str, reference: str) -> tuple[float, ...]:
    """The answer's own chrF, from 0 to 1: their mean weighs a short answer like a long one."""
    return (chrf().sentence_score(text, [reference]).score / 100,)


def exact_match(text: str, reference: str) -> tuple[float, ...]:
    """1 for the same words, whatever their case and the space between them."""
    return (float(text.casefold().split() == reference.casefold().split()),)


def mean(sums: np.ndarray, count: int) -> float:
    """The mean of a statistic from 0 to 1, in percent."""
    return 100 * float(sums[0]) / count


def no_statistics(text: str, reference: str) -> tuple[float, ...]:
    """Nothing to be scored against."""
    return ()


def no_score(sums: np.ndarray, count: int) -> float:
    """No accuracy."""
    return float("nan")


NO_SCORE = "none"
SCORES: dict[str, Score] = {}


def register_score(name: str, score: Score) -> None:
    """Put a score into the catalogue: `dataset.metric=NAME` knows it.

    Raises:
        UsageError: the name is taken.
    """
    register("score", SCORES, name, score)


register_score("bleu", Score(bleu_statistics, corpus_bleu))
register_score("rouge2", Score(rouge2_statistics, mean))
register_score("chrf", Score(chrf_statistics, mean))
register_score("exact_match", Score(exact_match, mean))
register_score(NO_SCORE, Score(no_statistics, no_score))
