"""The block loop: draft, score, verify, commit, for a batch of prompts of different lengths."""

from __future__ import annotations

from rsdbench.decoding.backend import Backend, Job
from rsdbench.decoding.generation import Generation


def decode(job: Job, backend: Backend) -> Generation:
    """Prefill, then blocks until every sequence has ended."""
    batch = Batch(job)
    out = batch.out
    out.backend, out.fallbacks = backend.name, backend.fallbacks
    clock = backend.clock()
    backend.prefill()
    out.prefill_s = clock.stop()
    clock = backend.clock()
    while batch.alive:
        numbers = backend.numbers()
        tree = backend.draft(numbers)
        assert tree.parents.shape[1] == job.shape.budget, "a structure has exactly as many nodes as its budget"
        clock.mark("draft")
        log_p = backend.score(tree)
        clock.mark("target")
        verified = backend.verify(tree, log_p, numbers)
        clock.mark("verify")
        del log_p  # the next block may take its memory
        backend.keep(batch.append(backend.commit(verified)))
        clock.mark("commit")
    out.decode_s = clock.stop()
    out.phase_s, out.block_s = clock.seconds, clock.blocks
    return out


class Batch:
    """Which sequences are alive, and what they have so far. Rows of finished sequences are closed up at once."""

    def __init__(self, job: Job) -> None:
        self.job = job
        prompts, depth = job.prompts, job.shape.depth
        self.out = Generation([[] for _ in prompts], [0] * len(prompts), [[0] * depth for _ in prompts])
        self.accepted: list[list[int]] = [[] for _ in prompts]  # drafts that were accepted, of each prompt and block
        self.alive = list(range(len(prompts)))  # the prompt of each row

    def append(self, report: list[list[int]]) -> list[int]:
        """Keep what each sequence gets of a block; returns the rows that live on, in the order of their new places."""
        ended = []
        for row, (prompt, (accepted, *line)) in enumerate(zip(self.alive, report, strict=True)):
            new = line[: accepted + 1]
            tokens = self.out.tokens[prompt]
            tokens += new
            self.out.blocks[prompt] += 1
            self.accepted[prompt].append(accepted)
            if len(tokens) >= self.job.room[prompt] or not self.job.ends.isdisjoint(new):
                self.end(prompt)
                ended.append(row)
        rows = closed_up(len(self.alive), ended)
        self.alive = [self.alive[row] for row in rows]
        return rows

    def end(self, prompt: int) -> None:
        """Cut a sequence behind its last token that is kept, and count which of its drafts were accepted and kept."""
        tokens, accepted = self.out.tokens[prompt], self.accepted[prompt]
        first = len(tokens) - accepted[-1] - 1  # token of the last block
        del tokens[self.job.room[prompt] :]
        ends = (i for i in range(first, len(tokens)) if tokens[i] in self.job.ends)
        del tokens[next(ends, len(tokens)) + 1 :]
        accepted[-1] = min(accepted[-1], len(tokens) - first)
        counts = [sum(a > depth for a in accepted) for depth in range(self.job.shape.depth)]
        self.out.accepted_by_depth[prompt] = counts


def closed_up(count: int, ended: list[int]) -> list[int]:
    """The rows that live on, of `count`: those from the end of the batch take the places of ended ones before them."""
    keep = count - len(ended)
    gaps, living = [row for row in ended if row < keep], sorted(set(range(keep, count)).difference(ended))
    rows = list(range(keep))
    for gap, row in zip(gaps, living, strict=True):
        rows[gap] = row
    return rows
