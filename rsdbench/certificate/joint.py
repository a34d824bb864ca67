"""Level 2: the whole engine. The joint law of three consecutive tokens against the target's, by chi-square.

Everything is real: `generate`, a causal LM whose laws depend on the context, its cache, a ragged batch, the random
numbers. The vocabulary is small, so that the target's law over all continuations can be written down.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from scipy.special import chdtrc
from torch import Tensor

from rsdbench.api import generate
from rsdbench.backends.choice import EAGER
from rsdbench.certificate.evidence import Evidence, Finding
from rsdbench.certificate.mutants import SHARP, T1, Mutant
from rsdbench.certificate.on_backends import EAGER_ALONE, is_alone, pair_on
from rsdbench.certificate.tiny import VOCABULARY, tiny_pair
from rsdbench.methods import METHODS
from rsdbench.sampling.distributions import Sampling
from rsdbench.seeds import seed_from

LENGTH = 3
PROMPTS = ((2, 3, 4, 5, 1), (5, 0), (1, 1, 4), (3,))  # in turns in every batch, which they fill evenly
BATCH, BATCHES_A_PART = 4000, 5
LEAST_EXPECTED = 10  # rarer outcomes are pooled
SAMPLINGS = (T1, SHARP)
RAGGED, RAGGED_TOKENS = 32, 16  # prompts and new tokens where whole sequences are compared


def continuations() -> Tensor:
    """All sequences of `LENGTH` tokens, [V^LENGTH, LENGTH]."""
    return torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))


@lru_cache(maxsize=64)
@torch.no_grad()
def exact_joint_law(prompt: tuple[int, ...], sampling: Sampling) -> Tensor:
    """The tiny target's law of the next tokens, [V^LENGTH] in float64, by one plain forward over all continuations."""
    every = continuations()
    ids = torch.cat([torch.tensor(prompt).expand(len(every), -1), every], 1)
    logits = copy.deepcopy(tiny_pair().target).double()(input_ids=ids).logits[:, len(prompt) - 1 : -1]
    return sampling.probs(logits).gather(2, every.unsqueeze(-1)).squeeze(-1).prod(1)


def count_with(mutant: Mutant, batches: range, seed: int) -> Tensor:
    """`count` with the engine broken in one place."""
    with mutant.broken():
        return count(mutant.method, mutant.structure, mutant.sampling, batches, seed, mutant.backend)


def count(
    method: str, structure: str | None, sampling: Sampling, batches: range, seed: int, backend: str = EAGER
) -> Tensor:  # fmt: skip
    """How often each continuation came, [prompts, V^LENGTH], in batches of `BATCH`; each has a seed of its own.

    backend: of `on_backends`; where it decodes one sequence at a time, each of a batch has a seed of its own.
    """
    total = torch.zeros(len(PROMPTS), VOCABULARY**LENGTH, dtype=torch.long)
    prompts = [list(p) for p in PROMPTS] * (BATCH // len(PROMPTS))
    place = VOCABULARY ** torch.arange(LENGTH - 1, -1, -1)
    for batch in batches:
        own = f"{seed} {method} {structure} {sampling} {batch}"
        outcome = (torch.tensor(decoded(method, structure, prompts, LENGTH, sampling, own, backend)) * place).sum(1)
        for i in range(len(PROMPTS)):
            total[i] += torch.bincount(outcome[i :: len(PROMPTS)], minlength=total.shape[1])
    return total


def decoded(
    method: str, structure: str | None, prompts: list[list[int]], length: int, sampling: Sampling, seed: str,
    backend: str,
) -> list[list[int]]:  # fmt: skip
    """New tokens of prompts, decoded as a batch, or one at a time where the backend does."""
    parts = [[prompt] for prompt in prompts] if is_alone(backend) else [prompts]
    found = (
        generate(
            pair_on(backend), part, method, structure, length, sampling.temperature, sampling.top_p,
            seed=seed_from(seed if len(parts) == 1 else f"{seed} {i}"),
        )
        for i, part in enumerate(parts)
    )  # fmt: skip
    return [tokens for out in found for tokens in out.tokens]


def chi_square(observed: Tensor, sampling: Sampling) -> tuple[float, int, float]:
    """Statistic, degrees of freedom and p-value of counts [prompts, V^LENGTH] against the target's law.

    The prompts are independent, so their statistics add up. Outcomes that the target cannot have make it infinite.
    """
    statistic, freedom = 0.0, 0
    for prompt, counts in zip(PROMPTS, observed, strict=True):
        law = exact_joint_law(prompt, sampling)
        if counts[law == 0].sum() > 0:
            return float("inf"), 1, 0.0
        expected, seen = pooled(law * counts.sum(), counts.double())
        statistic += float(((seen - expected) ** 2 / expected).sum())
        freedom += len(expected) - 1
    return statistic, freedom, upper_tail(statistic, freedom)


def pooled(expected: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Rare outcomes as one; if they are rare together too, they join the least common of the others."""
    order = expected.argsort(descending=True)[: int((expected > 0).sum())]
    expected, observed = expected[order], observed[order]
    common = max(1, int((expected >= LEAST_EXPECTED).sum()))
    if expected[common:].sum() < LEAST_EXPECTED:
        common -= 1
    return tuple(torch.cat([x[:common], x[common:].sum().unsqueeze(0)]) for x in (expected, observed))


def upper_tail(statistic: float, freedom: int) -> float:
    """Probability that a chi-square variable is at least so large; 0 below about 1e-308."""
    return float(chdtrc(freedom, statistic)) if freedom else 1.0


def structures(method: str) -> list[str | None]:
    """All structures of the smallest budget and the first one of the largest; None for a method without drafts."""
    table = METHODS[method].structures
    return [*table[min(table)], table[max(table)][0]] if table else [None]


def sampling_text(sampling: Sampling) -> str:
    """How a table names a sampling."""
    return f"T = {sampling.temperature:g}" + (f", top-p {sampling.top_p:g}" if sampling.top_p < 1 else "")


@dataclass(frozen=True)
class JointLaw(Evidence):
    """Level 2 of a method and structure at one sampling; of a mutant, if one is given."""

    method: str
    structure: str | None
    sampling: Sampling
    samples: int
    seed: int
    mutant: Mutant | None = None
    backend: str = EAGER

    def parts(self) -> list[Callable[[], Tensor]]:
        """A few batches each."""
        number = -(-self.samples // BATCH)
        parts: list[Callable[[], Tensor]] = []
        for start in range(0, number, BATCHES_A_PART):
            batches = range(start, min(start + BATCHES_A_PART, number))
            if self.mutant is None:
                own = self.method, self.structure, self.sampling, batches, self.seed, self.backend
                parts.append(partial(count, *own))
            else:
                parts.append(partial(count_with, self.mutant, batches, self.seed))
        return parts

    @property
    def setting(self) -> str:
        """Sampling, and the backend if it is another than the eager one."""
        backend = self.mutant.backend if self.mutant else self.backend
        return sampling_text(self.sampling) + (f", {backend}" if backend != EAGER else "")

    def conclude(self, results: list[Tensor]) -> list[Finding]:
        """Chi-square of all counts."""
        observed = torch.stack(results).sum(0)
        statistic, freedom, p_value = chi_square(observed, self.sampling)
        check = self.mutant.description if self.mutant else "joint law of three tokens"
        return [
            Finding(2, check, self.method, self.structure or "-", self.setting, int(observed.sum()),
                    statistic, freedom=freedom, p_value=p_value, mutant=self.mutant is not None)
        ]  # fmt: skip


def ragged_prompts(number: int) -> list[list[int]]:
    """Prompts of 1 to 12 tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 13, (number,), generator=generator).tolist()
    return [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


@lru_cache(maxsize=1)
@torch.no_grad()
def greedy() -> list[list[int]]:
    """The tiny target's most probable continuations of the ragged prompts, by plain forwards without a cache."""
    model, tokens = tiny_pair().target, []
    for prompt in ragged_prompts(RAGGED):
        ids = torch.tensor([prompt])
        for _ in range(RAGGED_TOKENS):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
        tokens.append(ids[0, len(prompt) :].tolist())
    return tokens


def differing_from_greedy(method: str, structure: str | None) -> int:
    """Prompts whose tokens at T = 0 are not the target's greedy ones."""
    out = generate(tiny_pair(), ragged_prompts(RAGGED), method, structure, RAGGED_TOKENS, temperature=0.0)
    return sum(ours != theirs for ours, theirs in zip(out.tokens, greedy(), strict=True))


@dataclass(frozen=True)
class Greedy(Evidence):
    """Level 2 at T = 0: every token equals the target's own."""

    method: str
    structure: str | None

    def parts(self) -> list[Callable[[], int]]:
        """One."""
        return [partial(differing_from_greedy, self.method, self.structure)]

    def conclude(self, results: list[int]) -> list[Finding]:
        """No prompt may differ."""
        check = "prompts that differ from greedy decoding"
        return [Finding(2, check, self.method, self.structure or "-", "T = 0", RAGGED, results[0], bound=0.0)]


def sampled(method: str, structure: str | None, seed: int) -> list[list[int]]:
    """Tokens of a ragged batch at T = 1."""
    prompts = ragged_prompts(RAGGED)
    return generate(tiny_pair(), prompts, method, structure, RAGGED_TOKENS, seed=seed).tokens


@dataclass(frozen=True)
class Reproducible(Evidence):
    """Level 2: a seed decides every token, and another seed gives others."""

    method: str
    structure: str | None
    seed: int

    def parts(self) -> list[Callable[[], list[list[int]]]]:
        """Twice the same seed, and another one."""
        return [partial(sampled, self.method, self.structure, seed) for seed in (self.seed, self.seed, self.seed + 1)]

    def conclude(self, results: list[list[list[int]]]) -> list[Finding]:
        """Prompts on which the same seed differs; all of them if the other seed changes nothing."""
        once, again, other = results
        differing = sum(a != b for a, b in zip(once, again, strict=True)) if once != other else len(once)
        check = "prompts that differ at the same seed"
        return [Finding(2, check, self.method, self.structure or "-", "T = 1", len(once), differing, bound=0.0)]


@dataclass(frozen=True)
class SameTokens(Evidence):
    """Level 2 of another backend: the same random numbers give the eager backend's tokens."""

    method: str
    structure: str | None
    sampling: Sampling
    seed: int
    backend: str

    def parts(self) -> list[Callable[[], list[list[int]]]]:
        """The eager backend's tokens, and the other's."""
        alone = self.backend if is_alone(self.backend) else EAGER  # the same batches have the same random numbers
        eager = EAGER_ALONE if is_alone(alone) else EAGER
        prompts = ragged_prompts(RAGGED)
        own = self.method, self.structure, prompts, RAGGED_TOKENS, self.sampling, f"{self.seed} same tokens"
        return [partial(decoded, *own, backend) for backend in (eager, self.backend)]

    def conclude(self, results: list[list[list[int]]]) -> list[Finding]:
        """Prompts that differ: one may, where a draw falls within a rounding error."""
        theirs, ours = results
        differing = sum(a != b for a, b in zip(ours, theirs, strict=True))
        check = f"prompts that differ from the eager backend's, {self.backend}"
        return [
            Finding(2, check, self.method, self.structure or "-", sampling_text(self.sampling), len(ours), differing,
                    bound=1.0)
        ]  # fmt: skip
