"""Level 1 of a rule that sees a whole tree, exactly: every small tree, and every way in which its uniforms may fall.

A rule compares the uniform of each node with a number of the tree's own. So its answer is known everywhere from its
answers at the corners of the cube of uniforms, once each node's number is found, by bisection. In float64 the law of
the L + 1 tokens that begin with a block is then a finite sum. No random number is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rsdbench.backends.repeat import stop_early
from rsdbench.certificate.enumeration import law_pairs
from rsdbench.certificate.evidence import Evidence, Finding
from rsdbench.decoding.shapes import TreeShape
from rsdbench.decoding.tree import ancestors_of
from rsdbench.methods import METHODS, get_shape, load
from rsdbench.verification import Distributions, Outcome, TreeRule, TreeView

SIZES = (2, 3, 4)  # vocabularies
STRUCTURES = ("1", "2", "3", "2-1", "1-2", "2-2", "3-1", "2x2")  # of which a method has those of its form
MOST_NODES = 6
BOUND = 1e-12  # of |output law - target's law|
REPEATS = 6  # sets of distributions for each structure and vocabulary
BELOW_ONE = 1 - 2.0**-53
BISECTIONS = 60
ROWS = 2**17  # that a rule is given at once


class Trees(NamedTuple):
    """All trees that can be drafted: tokens and valid [T, N], probability [T]."""

    tokens: Tensor
    valid: Tensor
    probability: Tensor


def tables(size: int, depth: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Distributions p and q behind every prefix of m = 0, 1, ..., `depth` tokens, [V^m, V] each."""
    pairs = list(law_pairs(size, seed))
    generator = torch.Generator().manual_seed(seed)
    p, q = [], []
    for length in range(depth + 1):
        chosen = torch.randint(len(pairs), (size**length,), generator=generator).tolist()
        for out, which in ((p, 0), (q, 1)):
            out.append(torch.stack([pairs[i][which] for i in chosen]))
    return p, q


def prefixes(shape: TreeShape, tokens: Tensor, size: int) -> Tensor:
    """The number of the prefix that each row of trees stands for, among those of its length: [T, N] -> [T, 1 + N]."""
    codes = [torch.zeros(len(tokens), dtype=torch.long)]
    for node, parent in enumerate(shape.parents):
        codes.append(codes[parent + 1] * size + tokens[:, node])
    return torch.stack(codes, 1)


def every_tree(shape: TreeShape, q: list[Tensor], size: int, independent: bool) -> Trees:
    """Draft in all ways: siblings independently, or without replacement, where there may be too few tokens."""
    tokens = torch.zeros(1, shape.budget, dtype=torch.long)
    valid, probability = torch.zeros_like(tokens, dtype=torch.bool), torch.ones(1, dtype=torch.float64)
    for node, parent in enumerate(shape.parents):
        own = q[shape.depths[2 + parent]][prefixes(shape, tokens, size)[:, parent + 1]].clone()  # [T, V]
        for sibling in range(node):
            if shape.parents[sibling] == parent and not independent:
                taken = torch.nn.functional.one_hot(tokens[:, sibling], size) * valid[:, sibling : sibling + 1]
                own = own * (1 - taken)
        there = valid[:, parent] if parent >= 0 else torch.ones(len(own), dtype=torch.bool)
        mass = own.sum(1, keepdim=True) * there.unsqueeze(1)
        law = torch.where(mass > 0, own / mass, 0.0)
        law = torch.cat([law, (mass == 0).double()], 1)  # the last: no draft
        old, new = law.nonzero(as_tuple=True)
        tokens, valid, probability = tokens[old], valid[old], probability[old] * law[old, new]
        tokens[:, node], valid[:, node] = new % size, new < size
    return Trees(tokens, valid, probability)


def ask(rule: TreeRule, shape: TreeShape, seen: TreeView, uniforms: Tensor) -> Outcome:
    """The rule's answers, for trees one after another."""
    answers = [
        rule(part_of(seen, slice(i, i + ROWS)), uniforms[i : i + ROWS], stop_early)
        for i in range(0, len(uniforms), ROWS)
    ]
    return Outcome(*(torch.cat(x) for x in zip(*answers, strict=True)))


def part_of(seen: TreeView, rows: slice | Tensor) -> TreeView:
    """Some of the trees."""
    tokens, parents, valid, ancestors = (x[rows] for x in seen[:4])
    p, q = (d._replace(log=d.log[rows]) for d in (seen.p, seen.q))
    return seen._replace(tokens=tokens, parents=parents, valid=valid, ancestors=ancestors, p=p, q=q)


def as_rules_see(shape: TreeShape, trees: Trees, p: list[Tensor], q: list[Tensor], size: int) -> TreeView:
    """The trees with the distributions at their rows."""
    codes, count = prefixes(shape, trees.tokens, size), len(trees.tokens)
    rows = [[table[d][codes[:, r]].log() for r, d in enumerate(shape.depths[1:])] for table in (p, q)]
    log_p, log_q = torch.stack(rows[0], 1), torch.stack(rows[1], 1)[:, : 1 + shape.expanded]
    levels = torch.tensor(shape.levels)
    return TreeView(
        trees.tokens, torch.tensor(shape.parents).expand(count, -1) + 1, trees.valid,
        ancestors_of(shape.parents).expand(count, -1, -1), levels, shape.fanout,
        Distributions(log_p, lambda x: x), Distributions(log_q, lambda x: x),
    )  # fmt: skip


def thresholds(rule: TreeRule, shape: TreeShape, seen: TreeView, corners: Tensor, rows: Tensor) -> Tensor:
    """The number that each node's uniform is compared with, [T, N]; any where it decides nothing.

    corners [C, N]; rows [T, C, L + 1], the rule's paths there. NaN where the number depends on other uniforms.
    """
    found = torch.zeros(seen.tokens.shape, dtype=torch.float64)
    for node in range(shape.budget):
        low = (corners[:, node] == 0).nonzero().squeeze(1)
        high = low + 2**node
        differs = (rows[:, low] != rows[:, high]).any(2)  # [T, C / 2]
        tree = differs.any(1).nonzero().squeeze(1)
        last = differs.shape[1] - 1 - differs.flip(1).byte().argmax(1)
        both = []
        for setting in (differs.byte().argmax(1), last):
            corner = low[setting[tree]]
            uniforms, below, above = (
                corners[corner].clone(),
                torch.zeros(len(tree)).double(),
                torch.ones(len(tree)).double(),
            )
            part, at_zero = part_of(seen, tree), rows[tree, corner]
            for _ in range(BISECTIONS if len(tree) else 0):
                uniforms[:, node] = (below + above) / 2
                same = (ask(rule, shape, part, uniforms).rows == at_zero).all(1)
                below, above = torch.where(same, uniforms[:, node], below), torch.where(same, above, uniforms[:, node])
            both.append(above)
        found[tree, node] = torch.where((both[0] - both[1]).abs() <= BOUND, both[0], float("nan"))
    return found


def deviation(rule: TreeRule, shape: TreeShape, size: int, independent: bool, seed: int) -> float:
    """The largest |output law - target's law| over all sequences of L + 1 tokens; infinite without a law."""
    p, q = tables(size, shape.depth, seed)
    trees = every_tree(shape, q, size, independent)
    seen = as_rules_see(shape, trees, p, q, size)
    nodes, count = shape.budget, len(trees.tokens)
    bits = torch.arange(2**nodes).unsqueeze(1) >> torch.arange(nodes) & 1
    corners = bits.double() * BELOW_ONE
    each = torch.arange(count).repeat_interleave(len(corners))
    outcome = ask(rule, shape, part_of(seen, each), corners.repeat(count, 1))
    rows = outcome.rows.view(count, len(corners), -1)
    if not proper(outcome):
        return float("inf")
    limit = thresholds(rule, shape, seen, corners, rows).unsqueeze(1)  # [T, 1, N]
    weight = torch.where(bits == 0, limit, 1 - limit).prod(2) * trees.probability.unsqueeze(1)  # [T, C]
    accepted = (rows > 0).sum(2).flatten()
    codes = prefixes(shape, trees.tokens, size)
    end = outcome.rows.gather(1, accepted.unsqueeze(1)).squeeze(1)
    mass = (weight.flatten().unsqueeze(1) * outcome.last).double()
    ours, theirs = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for length, law in enumerate(p):
        ours, theirs = (ours.unsqueeze(1) * law).flatten(), (theirs.unsqueeze(1) * law).flatten()
        own = accepted == length
        ours.view(-1, size).index_add_(0, codes[each[own], end[own]], mass[own])
    error = float((ours - theirs).abs().max())
    return error if error == error else float("inf")


def proper(outcome: Outcome) -> bool:
    """Whether all answers are distributions."""
    law = outcome.last
    return bool(((law >= 0).all() & ((law.sum(1) - 1).abs() <= BOUND).all()).item())


@dataclass(frozen=True)
class TreeRuleAlone(Evidence):
    """Level 1 of a method whose rule sees whole trees."""

    method: str
    seed: int

    def structures(self) -> list[str]:
        """Those of the method's form, whose parents the draw does not decide."""
        form = METHODS[self.method].form
        own = [s for s in STRUCTURES if re.fullmatch(form.pattern, s)]
        return [s for s in own if form.shape(s).parents and form.shape(s).budget <= MOST_NODES]

    def parts(self) -> list[Callable[[], float]]:
        """One for each structure, vocabulary and set of distributions."""
        method = METHODS[self.method]
        return [
            partial(deviation, load(method.rule), get_shape(self.method, structure), size, method.independent, seed)
            for structure in self.structures()
            for size in SIZES
            for seed in self.seeds()
        ]

    def seeds(self) -> range:
        """Of the sets of distributions."""
        return range(self.seed, self.seed + REPEATS)

    def conclude(self, results: list[float]) -> list[Finding]:
        """The largest error of each structure."""
        number = len(SIZES) * REPEATS
        check = f"deviation of the joint law of a block's tokens, V = {SIZES[0]}-{SIZES[-1]}"
        return [
            Finding(1, check, self.method, structure, "float64, every tree", number,
                    max(results[i * number : (i + 1) * number]), bound=BOUND)
            for i, structure in enumerate(self.structures())
        ]  # fmt: skip


def trees_alone(methods: list[str], seed: int) -> list[TreeRuleAlone]:
    """Of those methods whose rule sees whole trees."""
    return [TreeRuleAlone(name, seed) for name in methods if METHODS[name].whole_tree]
