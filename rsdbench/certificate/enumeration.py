"""Level 1: a verification rule alone, exactly. Every ordered tuple of drafts is enumerated.

The production rule is what runs: it answers with acceptance probabilities and a residual, so the law of the emitted
token is a finite sum and no random number is drawn. In float64 this checks the mathematics. In float32, which decoding
uses, it checks that nothing is lost to rounding, also where many drafts meet.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.certificate.evidence import Evidence, Finding
from rsdbench.methods import METHODS, get_shape, load
from rsdbench.verification import NodeRule

SIZES = (2, 3, 4, 5, 6)  # vocabularies
MOST_DRAFTS = {torch.float64: 4, torch.float32: 7}
MOST_TUPLES = 2200  # of one vocabulary: larger ones are left out where there are many drafts
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-6}  # of |output law - p|
CONCENTRATIONS = (5.0, 1.0, 0.2, 0.02)  # of the Dirichlet laws, from flat to spiky
REPEATS = 4  # of each pair of concentrations
NEARLY = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-6)  # how much of another law is mixed in where p and q are alike
ROWS = 16_384  # that a rule is given at once


class Enumeration(NamedTuple):
    """One pair of laws: largest |output law - p|, probability that a draft is accepted, and the most it could be.

    error is infinite where the rule's answer is not made of probabilities.
    """

    error: float
    acceptance: float
    optimum: float


class Proposals(NamedTuple):
    """Ordered draft tuples: drafts [n, k], present [n, k] bool, probability [n]."""

    drafts: Tensor
    present: Tensor
    probability: Tensor


def rounded(law: Tensor, dtype: torch.dtype) -> Tensor:
    """The law as decoding has it in `dtype`, where too small a probability is zero (`tempered`); in float64."""
    law = law.to(dtype)
    return law.where(law >= torch.finfo(dtype).tiny, 0).double()


def law_pairs(size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (p, q), each [size] in float64: random ones from flat to spiky, and the corners where rules break."""
    generator = torch.Generator().manual_seed(seed * 10 + size)

    def dirichlet(concentration: float) -> Tensor:
        gamma = torch._standard_gamma(torch.full((size,), concentration, dtype=torch.float64), generator=generator)
        return (gamma + 1e-300) / (gamma + 1e-300).sum()

    for _ in range(REPEATS):
        for p_shape, q_shape in itertools.product(CONCENTRATIONS, repeat=2):
            yield dirichlet(p_shape), dirichlet(q_shape)
    p, q = dirichlet(1.0), dirichlet(1.0)
    for share in NEARLY:
        yield p, (1 - share) * p + share * q
    one_hot = torch.zeros(size, dtype=torch.float64)
    one_hot[size // 2] = 1.0
    half = (torch.arange(size) < (size + 1) // 2).double()
    tiny = torch.full((size,), 1e-300, dtype=torch.float64)
    tiny[0] = 1.0
    steps, float_steps = (10.0 ** torch.linspace(0, least, size, dtype=torch.float64) for least in (-300, -36))
    steps, float_steps = steps / steps.sum(), float_steps / float_steps.sum()
    p_half, q_half = p * half / (p * half).sum(), q * half / (q * half).sum()
    q_rest = q * (1 - half) / (q * (1 - half)).sum()
    yield from (
        (p, p), (one_hot, one_hot), (tiny, tiny),  # identical laws
        (p, one_hot), (one_hot, q),
        (p_half, q), (p, q_half), (p_half, q_rest),  # zeros in p, in q, and no token in common
        (tiny, q), (p, tiny), (tiny, tiny.flip(0)), (steps, q), (p, steps), (steps, steps.flip(0)), (steps, steps),
        (float_steps, q), (p, float_steps), (float_steps, float_steps.flip(0)), (float_steps, float_steps),
    )  # fmt: skip


@lru_cache(maxsize=256)
def arrangements(size: int, k: int, replacement: bool) -> Tensor:
    """All ordered k-tuples of 0..size-1, [n, k]."""
    chosen = itertools.product(range(size), repeat=k) if replacement else itertools.permutations(range(size), k)
    tuples = list(chosen)
    return torch.tensor(tuples, dtype=torch.long).view(len(tuples), k)


def proposals(q: Tensor, k: int, replacement: bool) -> Proposals:
    """Every ordered tuple of k drafts from q [V]; without replacement there are fewer where q runs out of tokens."""
    support = q.nonzero().squeeze(1)
    number = k if replacement else min(k, len(support))
    order = arrangements(len(support), number, replacement)
    drafts = support[order]
    if replacement:
        probability = q[drafts].prod(1)
    else:
        probability = q.new_ones(len(order))
        rest = q[support].expand(len(order), -1)
        for column in (order[:, i : i + 1] for i in range(number)):
            # divide by what is left, not by 1 - what was taken: masses of 1e-300 count
            probability = probability * (rest.gather(1, column) / rest.sum(1, keepdim=True)).squeeze(1)
            rest = rest.scatter(1, column, 0.0)
    missing = (0, k - number)
    present = torch.nn.functional.pad(torch.ones_like(drafts, dtype=torch.bool), missing)
    return Proposals(torch.nn.functional.pad(drafts, missing), present, probability)


def enumerate_rule(
    rule: NodeRule, size: int, k: int, replacement: bool, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Enumeration]:
    """Check a rule on all pairs of `law_pairs`, which it is given in `dtype`; sums are in float64."""
    pairs = [(rounded(p, dtype), rounded(q, dtype)) for p, q in law_pairs(size, seed)]
    every = [proposals(q, k, replacement) for _, q in pairs]
    counts = [len(x.probability) for x in every]
    repeats = torch.tensor(counts)
    p, q = (torch.stack(laws).to(dtype).repeat_interleave(repeats, 0) for laws in zip(*pairs, strict=True))
    drafts, present = torch.cat([x.drafts for x in every]), torch.cat([x.present for x in every])
    verdicts = [rule(*rows) for rows in zip(*(x.split(ROWS) for x in (p, q, drafts, present)), strict=True)]
    accept = torch.cat([v.accept for v in verdicts]).double().split(counts)
    residual = torch.cat([v.residual for v in verdicts]).double().split(counts)
    return [weigh(pair[0], *parts, BOUNDS[dtype]) for pair, *parts in zip(pairs, every, accept, residual, strict=True)]


def weigh(p: Tensor, proposal: Proposals, accept: Tensor, residual: Tensor, bound: float) -> Enumeration:
    """Add up the law of the first emitted token: accept [n, k], residual [n, V] for each draft tuple."""
    out, reaching = torch.zeros_like(p), proposal.probability
    for j in range(accept.shape[1]):
        out.index_add_(0, proposal.drafts[:, j], reaching * accept[:, j])
        reaching = reaching * (1 - accept[:, j])
    accepted = float(out.sum())
    out += (reaching.unsqueeze(1) * residual).sum(0)
    proper = (
        ((accept >= 0) & (accept <= 1)).all()  # False for NaN too
        and (accept[~proposal.present] == 0).all()
        and (residual >= 0).all()
        and ((residual.sum(1) - 1).abs() <= bound).all()
    )
    error = float((out - p).abs().max()) if proper else float("inf")
    return Enumeration(error, accepted, optimal_acceptance(p, proposal))


def optimal_acceptance(p: Tensor, proposal: Proposals) -> float:
    """The most that any lossless rule can accept of these drafts: min over token sets H of p(H) + 1 - Pr(all in H).

    It is the value of the optimal transport between p and the draft tuples (SpecTr, arXiv 2310.15141, section 4), by
    the duality of maximum flow and minimum cut.
    """
    size = len(p)
    sets = torch.arange(2**size)
    bits = 2 ** torch.arange(size)
    weight = ((sets.unsqueeze(1) & bits) > 0).to(p.dtype) @ p  # p(H)
    drafted = torch.zeros(len(proposal.probability), size, dtype=torch.bool)
    drafted.scatter_(1, torch.where(proposal.present, proposal.drafts, proposal.drafts[:, :1]), True)
    drafted = (drafted * bits).sum(1)
    inside = (drafted & ~sets.unsqueeze(1)) == 0  # [2^V, n]
    return float((weight + 1 - inside.to(p.dtype) @ proposal.probability).min())


@dataclass(frozen=True)
class RuleAlone(Evidence):
    """Level 1 of a rule, for all `methods` it serves, in one precision, for each number of drafts a node can have."""

    methods: tuple[str, ...]
    rule: NodeRule
    replacement: bool
    most: int
    dtype: torch.dtype
    seed: int

    def numbers(self) -> range:
        """1, 2, ... drafts; 0 where no structure has any."""
        return range(1, min(MOST_DRAFTS[self.dtype], self.most) + 1) if self.most else range(1)

    def sizes(self, k: int) -> list[int]:
        """Vocabularies that are not too large for k drafts."""
        return [size for size in SIZES if size**k <= MOST_TUPLES]

    def parts(self) -> list[Callable[[], list[Enumeration]]]:
        """One for each number of drafts and vocabulary."""
        return [
            partial(enumerate_rule, self.rule, size, k, self.replacement, self.seed, self.dtype)
            for k in self.numbers()
            for size in self.sizes(k)
        ]

    def conclude(self, results: list[list[Enumeration]]) -> list[Finding]:
        """The largest error of each number of drafts; acceptance and optimum are means over the pairs of laws."""
        remaining = iter(results)
        findings = []
        for k in self.numbers():
            own = [x for _ in self.sizes(k) for x in next(remaining)]
            error, bound = max(e.error for e in own), BOUNDS[self.dtype]
            acceptance, optimum = (sum(x) / len(own) for x in ([e.acceptance for e in own], [e.optimum for e in own]))
            setting = f"{str(self.dtype).removeprefix('torch.')}, V = {SIZES[0]}-{self.sizes(k)[-1]}, k = {k}"
            findings += [
                Finding(1, "deviation of the output law from p", method, "-", setting, len(own), error, bound=bound,
                        acceptance=acceptance, optimum=optimum)
                for method in self.methods
            ]  # fmt: skip
        return findings


def rules_alone(methods: list[str], seed: int) -> list[RuleAlone]:
    """The rules of `methods` in both precisions; methods with the same rule and kind of drafts share the work."""
    served: dict[tuple[NodeRule, bool, int], list[str]] = {}
    for name in (name for name in methods if not METHODS[name].whole_tree):
        method = METHODS[name]
        table = method.structures
        most = max((f for own in table.values() for s in own for f in get_shape(name, s).fanouts), default=0)
        served.setdefault((load(method.rule), method.independent, most), []).append(name)
    return [RuleAlone(tuple(names), *key, dtype, seed) for key, names in served.items() for dtype in BOUNDS]
