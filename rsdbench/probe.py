"""Whether what a method is made of gives what it must: looked at once, on a few small distributions.

A rule of a user's own that forgets a factor would be decoded without a word, and wrong. Whether a rule that answers in
due form is lossless is for the certificate to say.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rsdbench.errors import UsageError
from rsdbench.methods import get_method, load
from rsdbench.plugins import of_plugin
from rsdbench.verification import Verdict

WORDS, ROWS, DRAFTS = 5, 4, 2
TOLERANCE = 1e-3


@lru_cache
def check_method(name: str) -> None:
    """See that a method's rule for single nodes answers with probabilities of the right shapes.

    Raises:
        UsageError: it does not.
    """
    method = get_method(name)
    if not method.drafts or method.whole_tree:
        return
    p, q, drafts, present = example(method.independent)
    who = f"{of_plugin('method', name)}the rule of method '{name}'"
    try:
        answer = load(method.rule)(p, q, drafts, present)
    except Exception as error:  # of any kind: it is the user's own code
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UsageError(f"{who} failed on p [{ROWS}, {WORDS}] ({type(error).__name__}: {reason})") from error
    problem = problem_of(answer, present)
    if problem:
        raise UsageError(f"{who} gave {problem}")


def example(independent: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p, q [B, V], drafts and present [B, k]: also equal distributions, a one-hot one, and a missing draft."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.rand(2, ROWS, WORDS, generator=generator).softmax(-1)
    q[1] = p[1]
    p[2] = torch.eye(WORDS)[3]
    drafts = torch.stack([torch.randperm(WORDS, generator=generator)[:DRAFTS] for _ in range(ROWS)])
    if independent:
        drafts[0] = drafts[0, 0]
    present = torch.ones(ROWS, DRAFTS, dtype=torch.bool)
    present[3, 1] = False
    return p, q, drafts, present


def problem_of(answer: Any, present: Tensor) -> str | None:
    """What is wrong with a verdict."""
    if not isinstance(answer, tuple) or not all(isinstance(x, Tensor) for x in answer) or len(answer) != 2:
        return f"{type(answer).__name__}, and must give a Verdict(accept, residual)"
    accept, residual = Verdict(*answer)
    for part, found, size in (("accept", accept, (ROWS, DRAFTS)), ("residual", residual, (ROWS, WORDS))):
        if tuple(found.shape) != size:
            return f"{part} {tuple(found.shape)} for {ROWS} nodes of {DRAFTS} drafts, and must give {size}"
        if found.isnan().any():
            return f"NaN in {part}"
    if (accept < 0).any() or (accept > 1 + TOLERANCE).any():
        return f"an accept of {float(accept.max()):g}, and must stay between 0 and 1"
    if (accept[~present] != 0).any():
        return "a probability to accept a draft that is not there"
    if (residual < 0).any() or ((residual.sum(-1) - 1).abs() > TOLERANCE).any():
        return f"a residual of sum {float(residual.sum(-1).max()):g}, and its probabilities must add up to 1"
    return None
