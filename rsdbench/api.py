"""Decode prompts with one method: the function that users and the runner call."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from rsdbench.decoding.backend import Job
from rsdbench.decoding.drafter import is_model
from rsdbench.decoding.generation import Generation
from rsdbench.decoding.loop import decode
from rsdbench.drafters import check_fits
from rsdbench.errors import UsageError
from rsdbench.methods import get_method, get_shape, load, tree_rule
from rsdbench.pair import Pair
from rsdbench.probe import check_method
from rsdbench.sampling.distributions import Sampling


def generate(
    pair: Pair,
    prompts: list[list[int]],
    method: str = "rsd_s",
    structure: str | int | Sequence[int] | None = None,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    eos_token_id: int | Collection[int] | None = None,
) -> Generation:
    """Decode a batch of prompts with one method; the tokens follow the target's own distribution, whatever the drafter.

    prompts: lists of token ids, of any lengths; structure: as in the benchmark's table, such as "6", "2x3" or "2-1-1",
    or as a number or a list of branching factors; None: the first one of the table's smallest budget.
    A sequence ends with `eos_token_id` (or any of several), after `max_new_tokens`, or when prompt and new tokens fill
    the positions that both models have. Nothing past that is kept or counted. The same seed on the same machine gives
    the same tokens.

    Raises:
        UsageError: an unknown method, or one that the drafter cannot draft for; a structure of another form;
            temperature < 0; top_p outside (0, 1]; max_new_tokens < 1; an empty prompt, one with ids outside the
            vocabulary, or one that leaves no position.
    """
    sampling, shape, name = Sampling.at(temperature, top_p), get_shape(method, structure), method
    method, certain = get_method(name), not is_model(pair.drafter) and pair.drafter.certain
    check_method(name)
    if certain:
        check_fits(name, pair.drafter.name, certain)
    check_prompts(pair, prompts, max_new_tokens)
    if not prompts:
        return Generation([], [], [])
    ends = eos_token_id if isinstance(eos_token_id, Collection) else {eos_token_id}
    room = [min(max_new_tokens, pair.positions - len(prompt)) for prompt in prompts]
    rule = tree_rule(method, certain and shape.depth > 0)
    job = Job(
        load(method.strategy), rule, shape, sampling, prompts, room, pair.positions, seed, frozenset(ends)
    )  # fmt: skip
    with torch.inference_mode():
        return decode(job, pair.engine.backend(job))


def check_prompts(pair: Pair, prompts: list[list[int]], max_new_tokens: int) -> None:
    """See that prompts can be decoded.

    Raises:
        UsageError: as in `generate`.
    """
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    limit, vocabulary = pair.positions, pair.target.config.get_text_config().vocab_size
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, list | tuple):
            raise UsageError("prompts must be a list of lists of token ids, one list a prompt")
        if not prompt:
            raise UsageError(f"prompt {i} is empty: give at least one token, such as the model's BOS")
        if len(prompt) >= limit:
            raise UsageError(f"prompt {i} has {len(prompt)} tokens, but these models decode {limit} positions: cut it")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise UsageError(f"prompt {i} has token ids outside the vocabulary of {vocabulary}")
