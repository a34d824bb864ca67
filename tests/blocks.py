"""Blocks of a backend one at a time, as the loop calls them, with all that the phases give."""

from typing import NamedTuple

import torch

from rsdbench.decoding.backend import Job
from rsdbench.decoding.loop import Batch
from rsdbench.methods import get_method, get_shape, load, tree_rule
from rsdbench.sampling.distributions import Sampling


class Block(NamedTuple):
    """tree, log_p and verified are copies; prefixes: prompt and tokens of each sequence before the block."""

    prefixes: list
    tree: object
    log_p: torch.Tensor
    numbers: object
    verified: object


def job_of(pair, method, structure, prompts, temperature=1.0, top_p=1.0, room=None, seed=0):
    own = get_method(method)
    return Job(
        load(own.strategy), tree_rule(own), get_shape(method, structure), Sampling.at(temperature, top_p), prompts,
        room or [20] * len(prompts), pair.positions, seed,
    )  # fmt: skip


def copied(values):
    return type(values)(*(tuple(y.clone() for y in x) if isinstance(x, tuple) else x.clone() for x in values))


@torch.inference_mode()
def blocks(pair, job):
    """Decode a job; yields a `Block` each time."""
    backend, batch = pair.engine.backend(job), Batch(job)
    backend.prefill()
    while batch.alive:
        prefixes = [job.prompts[i] + batch.out.tokens[i] for i in batch.alive]
        numbers = copied(backend.numbers())
        tree = backend.draft(numbers)
        log_p = backend.score(tree)
        verified = backend.verify(tree, log_p, numbers)
        found = Block(prefixes, copied(tree), log_p.clone(), numbers, copied(verified))
        backend.keep(batch.append(backend.commit(verified)))
        yield found


def path_to(tree, sequence, node):
    """Tokens from the root's child down to a node (-1: the root itself)."""
    tokens = []
    while node >= 0:
        tokens.append(int(tree.tokens[sequence, 2 + node]))
        node = int(tree.parents[sequence, node])
    return tokens[::-1]
