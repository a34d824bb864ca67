"""Metrics against the libraries they stand on, and their intervals against known laws."""

import numpy as np
import pandas as pd
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from rsdbench.results import metrics
from rsdbench.tasks import scores

TEXTS = ["the cat sat on the mat", "a dog runs", "library for parsing files of the format", "", "tool to read mail"]
REFERENCES = [
    "the cat is on the mat", "the dog runs fast", "library for parsing files in many formats", "shared data",
    "tool to read mail",
]  # fmt: skip


def estimated(metric, frame):
    return metric.estimate(metrics.Sample(frame))


def quality(**columns):
    n = len(next(iter(columns.values())))
    base = {"depth": [6] * n, "drafter_params": [1] * n, "target_params": [20] * n, "metric": ["bleu"] * n}
    return pd.DataFrame({**base, "prompt_id": [f"p{i}" for i in range(n)], **columns})


def test_block_efficiency_is_a_ratio_of_sums():
    value, low, high = estimated(metrics.BLOCK_EFFICIENCY, quality(new_tokens=[10, 100, 30], blocks=[10, 20, 30]))
    assert value == pytest.approx(140 / 60)
    assert 1.0 <= low <= value <= high <= 5.0


def test_mbsu_divides_by_the_cost_of_drafting():
    frame = quality(new_tokens=[10, 100], blocks=[10, 20])
    assert estimated(metrics.MBSU, frame).value == pytest.approx(110 / 30 / (6 / 20 + 1))


def test_token_rate_is_relative_to_ar_on_the_same_prompts():
    frame = pd.DataFrame(
        {
            "prompt_id": ["a", "b"],
            "new_tokens": [10, 20],
            "steady_s": [1.0, 1.0],
            "ar_new_tokens": [10, 20],
            "ar_steady_s": [2.0, 2.0],
        }
    )
    assert estimated(metrics.TOKEN_RATE, frame) == pytest.approx((2.0, 2.0, 2.0))


def test_one_prompt_has_no_width():
    assert estimated(metrics.BLOCK_EFFICIENCY, quality(new_tokens=[12], blocks=[4])) == pytest.approx((3, 3, 3))


def test_interval_covers_the_truth_as_often_as_it_says():
    """Of 200 experiments about 95 % cover; fewer than 87 % has a chance below 1e-4 (bootstrap shortfall included)."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        blocks = rng.integers(10, 30, 100)
        frame = quality(new_tokens=(blocks * rng.gamma(20, 0.1, 100)), blocks=blocks)
        _, low, high = estimated(metrics.BLOCK_EFFICIENCY, frame)
        covered += low <= 2.0 <= high
    assert covered >= 0.87 * 200


def test_corpus_bleu_is_sacrebleus():
    counts = np.array([[1, 1, 1, 1, 1], [2, 0, 3, 1, 0]])
    ours = scores.of_resamples("bleu", scores.of_texts("bleu", TEXTS, REFERENCES), counts)
    theirs = []
    for row in counts:
        picked = [i for i, n in enumerate(row) for _ in range(n)]
        score = sacrebleu.corpus_bleu([TEXTS[i] for i in picked], [[REFERENCES[i] for i in picked]])
        theirs.append(score.score)
    assert ours == pytest.approx(theirs)


def test_rouge_is_the_mean_of_the_librarys():
    scorer = RougeScorer(["rouge2"], use_stemmer=True)
    theirs = [scorer.score(r, t)["rouge2"].fmeasure for t, r in zip(TEXTS, REFERENCES, strict=True)]
    statistics = scores.of_texts("rouge2", TEXTS, REFERENCES)
    ours = scores.of_resamples("rouge2", statistics, np.array([[1, 1, 1, 1, 1], [0, 0, 2, 0, 1]]))
    assert ours == pytest.approx([100 * np.mean(theirs), 100 * (2 * theirs[2] + theirs[4]) / 3])


@pytest.mark.parametrize("metric", ["bleu", "rouge2"])
def test_accuracy_is_paired_by_prompt(metric):
    statistics = scores.of_texts(metric, TEXTS, REFERENCES)
    frame = quality(new_tokens=[1] * len(TEXTS)).assign(metric=metric)
    ar = metrics.Sample(frame, statistics)
    order = [3, 1, 0, 2, 4]  # whatever the order of the records
    same = metrics.Sample(frame.iloc[order], statistics[order], ar)
    assert metrics.ACCURACY.estimate(same) == pytest.approx((1.0, 1.0, 1.0))
    perfect = metrics.Sample(frame, scores.of_texts(metric, REFERENCES, REFERENCES), ar)
    assert metrics.ACCURACY.estimate(perfect).value > 1.2
