"""Whether two models mean the same by their tokens."""

from __future__ import annotations

from typing import Any

from rsdbench.errors import UsageError


def check_tokenizers(target: Any, drafter: Any) -> None:
    """Both must map the same text to the same ids. One may have tokens of its own, such as [PAD], at ids of its own.

    Raises:
        UsageError: an id or a token that both have is another in each.
    """
    if target is None or drafter is None or target is drafter:
        return
    ours, theirs = target.get_vocab(), drafter.get_vocab()
    by_id = {place: token for token, place in theirs.items()}
    differing = [t for t, i in ours.items() if theirs.get(t, i) != i or by_id.get(i, t) != t]
    if differing:
        raise UsageError(
            "target and drafter have different tokenizers: draft tokens would mean different text, such as "
            f"{ours[differing[0]]}, which is {differing[0]!r} to the target"
        )


def common_tokens(target: Any, drafter: Any) -> int | None:
    """How many ids two tokenizers that agree reach to together; None if one of them is not known."""
    if target is None or drafter is None:
        return None
    return 1 + max(set(target.get_vocab().values()) & set(drafter.get_vocab().values()), default=-1)


def check_vocabularies(target: int, drafter: int | None, common: int | None) -> None:
    """Both must have logits for the same tokens; a drafter that takes any target's has None.

    common: as `common_tokens`: vocabularies that both reach so far differ in padding and added tokens only.

    Raises:
        UsageError: their vocabularies have different sizes.
    """
    alike = drafter == target or (common is not None and common <= min(target, drafter or 0))
    if drafter is not None and not alike:
        raise UsageError(
            f"target has a vocabulary of {target} tokens and drafter one of {drafter}: they must share one, or differ "
            "in padding behind the tokens of tokenizers that agree"
        )
