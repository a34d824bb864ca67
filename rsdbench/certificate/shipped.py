"""Level 3: the embedded models on their own prompts, each method against autoregressive decoding.

Both are sampled, so that nothing but `generate` is trusted: a two-sample test on the first two tokens, and the
difference in BLEU or ROUGE-2 with a permutation test (if a method is lossless, its text and AR's are exchangeable).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig

from rsdbench.api import generate
from rsdbench.certificate.evidence import Evidence, Finding
from rsdbench.certificate.joint import LEAST_EXPECTED, sampling_text, upper_tail
from rsdbench.methods import BASELINE, METHODS
from rsdbench.results.metrics import LEVEL, RESAMPLES_ACCURACY, weights
from rsdbench.runner.cells import RowJob
from rsdbench.runner.compose import row_configs
from rsdbench.runner.run import RowRunner
from rsdbench.sampling.distributions import Sampling
from rsdbench.seeds import seed_from
from rsdbench.tasks.examples import answer_text
from rsdbench.tasks.scores import of_resamples, of_texts

FIRST_PROMPTS, FIRST_TOKENS = 2, 2
PROMPT_TOKENS, NEW_TOKENS = 64, 16  # at most, so that minutes suffice
PERMUTATIONS = 500


class Sample(NamedTuple):
    """What one method gave on a row: how often each beginning came, for each prompt, and the prompts' texts.

    forward: how the models ran, as in a run's records.
    """

    beginnings: list[Counter[tuple[int, ...]]]
    texts: list[str]
    references: list[str]
    forward: str


@lru_cache(maxsize=1)
def runner(row: RowJob) -> RowRunner:
    """The loaded models and prompts of the last row."""
    return RowRunner(row)


def sample(row: RowJob, method: str, structure: str | None, copies: int, seed: int) -> Sample:
    """Decode `copies` beginnings of the first prompts, and all prompts once to their ends."""
    own, settings = runner(row), row.config.decode

    def decode(prompts: list[list[int]], tokens: int, part: str) -> list[list[int]]:
        return generate(
            own.pair, prompts, method, structure, tokens, settings.temperature, settings.top_p,
            seed=seed_from(f"{seed} {row.name} {method} {part}"), eos_token_id=own.stop,
        ).tokens  # fmt: skip

    first = [example.prompt for example in own.examples[:FIRST_PROMPTS]]
    beginnings = decode([p for p in first for _ in range(copies)], FIRST_TOKENS, "beginnings")
    texts = decode([e.prompt for e in own.examples], settings.max_new_tokens, "texts")
    return Sample(
        [Counter(map(tuple, beginnings[i * copies : (i + 1) * copies])) for i in range(len(first))],
        [answer_text(tokens, own.pair.tokenizer) for tokens in texts],
        [e.reference for e in own.examples],
        own.pair.forward,
    )


def two_sample(ours: Counter[tuple[int, ...]], theirs: Counter[tuple[int, ...]]) -> tuple[float, int]:
    """Chi-square statistic and degrees of freedom of two samples of equal size; rare outcomes are pooled."""
    seen = np.array([(ours[x], theirs[x]) for x in ours | theirs], dtype=float)
    common = seen.sum(1) >= 2 * LEAST_EXPECTED
    rest = seen[~common].sum(0, keepdims=True)
    cells = np.concatenate([seen[common], rest[rest.sum(1) > 0]])
    return float(((cells[:, 0] - cells[:, 1]) ** 2 / cells.sum(1)).sum()), len(cells) - 1


class Difference(NamedTuple):
    """Score of a method less AR's, its 95 % interval, and the two-sided p-value of "no difference"."""

    value: float
    low: float
    high: float
    p_value: float


def score_difference(ours: Sample, theirs: Sample, metric: str, seed: int) -> Difference:
    """Paired over prompts: bootstrap for the interval; for the p-value, the two texts of a prompt change places."""
    prompts = len(ours.texts)
    statistics = of_texts(metric, ours.texts + theirs.texts, ours.references * 2)

    def scores(own: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Of resamples that take some prompts' texts from ours and some from theirs."""
        return of_resamples(metric, statistics, np.hstack((own, other)))

    counts = weights("", tuple(range(prompts)))[: 1 + RESAMPLES_ACCURACY]
    nothing = np.zeros_like(counts)
    differences = scores(counts, nothing) - scores(nothing, counts)
    kept = np.random.default_rng(seed).integers(0, 2, size=(PERMUTATIONS, prompts))
    spread = np.sqrt(np.mean((scores(kept, 1 - kept) - scores(1 - kept, kept)) ** 2))
    low, high = np.quantile(differences[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    p_value = math.erfc(abs(differences[0]) / spread / math.sqrt(2)) if spread > 0 else 1.0
    return Difference(float(differences[0]), float(low), float(high), p_value)


@dataclass(frozen=True)
class ShippedRow(Evidence):
    """One row of the embedded grid (drafter, target, dataset), all methods."""

    row: RowJob
    methods: tuple[str, ...]
    copies: int
    seed: int

    @property
    def runs(self) -> list[tuple[str, str | None]]:
        """Method and structure of each part, AR first."""
        tables = {m: METHODS[m].structures for m in self.methods}
        return [(BASELINE, None), *((m, table[min(table)][0]) for m, table in tables.items() if table)]

    def parts(self) -> list[Callable[[], Sample]]:
        """One a method."""
        return [partial(sample, self.row, *run, self.copies, self.seed) for run in self.runs]

    def conclude(self, results: list[Sample]) -> list[Finding]:
        """Two findings a method."""
        baseline, decode = results[0], self.row.config.decode
        setting = (
            f"{self.row.label}, {sampling_text(Sampling.at(decode.temperature, decode.top_p))}, {baseline.forward}"
        )
        findings = []
        for (method, structure), own in zip(self.runs[1:], results[1:], strict=True):
            tests = [two_sample(a, b) for a, b in zip(own.beginnings, baseline.beginnings, strict=True)]
            statistic, freedom = (sum(x) for x in zip(*tests, strict=True))
            findings.append(
                Finding(3, "first two tokens against AR's", method, structure, setting, self.copies * FIRST_PROMPTS,
                        statistic, freedom=freedom, p_value=upper_tail(statistic, freedom))
            )  # fmt: skip
            metric = self.row.config.dataset.metric
            value, low, high, p = score_difference(own, baseline, metric, self.seed)
            check = {"bleu": "BLEU", "rouge2": "ROUGE-2"}[metric] + " less AR's"
            findings.append(
                Finding(3, check, method, structure, setting, len(own.texts), value, p_value=p, low=low, high=high)
            )
        return findings


def shipped_rows(methods: list[str], copies: int, texts: int, seed: int) -> list[ShippedRow]:
    """The embedded grid's rows, largest target first; none if no method drafts."""
    drafting = tuple(m for m in methods if METHODS[m].drafts)
    if not drafting:
        return []
    overrides = [
        "experiment=standin", "device=cpu", "speed.num_prompts=0", f"dataset.num_prompts={texts}",
        f"dataset.max_prompt_tokens={PROMPT_TOKENS}", f"decode.max_new_tokens={NEW_TOKENS}",
    ]  # fmt: skip
    rows: list[DictConfig] = row_configs(overrides)
    return [ShippedRow(RowJob(config), drafting, copies, seed) for config in reversed(rows)]
