"""A drafter that is no model, beside a backend: the sequences that it sees, and its drafts in the tree's buffers."""

from __future__ import annotations

import torch
from torch import Tensor

from rsdbench.decoding.backend import Job
from rsdbench.decoding.drafter import Drafter, Drafts
from rsdbench.decoding.shapes import TreeShape
from rsdbench.decoding.tree import DraftTree
from rsdbench.errors import UsageError
from rsdbench.plugins import of_plugin


class Proposer:
    """The living sequences of a batch, and who drafts for them."""

    def __init__(self, drafter: Drafter, job: Job, vocabulary: int) -> None:
        self.drafter, self.job, self.vocabulary = drafter, job, vocabulary
        self.generator = torch.Generator().manual_seed(job.seed)
        self.sequences = [list(prompt) for prompt in job.prompts]
        self.depths = torch.tensor(job.shape.depths[2:])

    def fill(self, tree: DraftTree, lengths: list[int]) -> None:
        """Draft. Of the tree's buffers, parents and ancestors hold since they were made."""
        job, batch = self.job, len(self.sequences)
        drafts = self.drafter.draft(self.sequences, job.shape, self.vocabulary, self.generator)
        drafts = checked(drafts, self.drafter, batch, job.shape, self.vocabulary)
        inside = torch.tensor(lengths).unsqueeze(1) + self.depths < job.limit
        tree.tokens[:, 2:].copy_(drafts.tokens)
        tree.valid.copy_(drafts.valid & inside)
        if drafts.log_q is not None:
            tree.log_q.copy_(drafts.log_q)

    def append(self, report: list[list[int]]) -> None:
        """Each sequence goes on with what a block gave it, `Verified.report`."""
        for sequence, (accepted, *line) in zip(self.sequences, report, strict=True):
            sequence += line[: accepted + 1]

    def keep(self, rows: list[int]) -> None:
        """Go on with these."""
        self.sequences = [self.sequences[row] for row in rows]


def checked(drafts: Drafts, drafter: Drafter, batch: int, shape: TreeShape, vocabulary: int) -> Drafts:
    """What a drafter gave, if it is what it must give.

    Raises:
        UsageError: it is not, with what was expected.
    """
    who = f"{of_plugin('drafter', drafter.name)}drafter '{drafter.name}'"
    wanted = {"tokens": (batch, shape.budget), "valid": (batch, shape.budget)}
    if not drafter.certain:
        wanted["log_q"] = (batch, 1 + shape.expanded, vocabulary)
    for name, size in wanted.items():
        found = getattr(drafts, name, None)
        if not isinstance(found, Tensor) or tuple(found.shape) != size:
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(f"{who} gave {name} {given}, and a tree of this shape needs {size}")
    drafted = drafts.tokens[drafts.valid]
    if drafted.numel() and not 0 <= int(drafted.min()) <= int(drafted.max()) < vocabulary:
        raise UsageError(f"{who} gave token ids outside the target's vocabulary of {vocabulary}")
    if not drafter.certain and not torch.allclose(drafts.log_q.exp().sum(-1), torch.ones(()), atol=1e-3):
        raise UsageError(f"{who} gave log_q whose probabilities do not add up to 1")
    return drafts
