"""From a task's source text to a prompt of token ids that leaves room for what will be generated."""

from __future__ import annotations

from collections.abc import Callable

from rsdbench.errors import UsageError

CUTS = ("proportional", "longest")
TREE_POSITIONS = 32  # kept free behind a prompt's new tokens, whichever structures run: prompts must not depend on them


def encode_prompt(
    encoded: Callable[[str], list[int]],
    template: str,
    source: str,
    max_tokens: int,
    lead: str = "",
    cut: str = "proportional",
) -> tuple[list[int], int]:
    """Fill `template` (it contains "{source}"), put `lead` before it, and encode it; a long source is cut at its end.

    cut: "longest" keeps as much of the source as fits; "proportional" shortens it by the share of tokens that are too
    many until it fits, and cuts some characters more. Nothing but the source is cut.
    Returns the token ids, at most `max_tokens`, and the number of characters of the source that were cut.

    Raises:
        UsageError: there is no room for the source at all.
    """

    def encode(length: int) -> list[int]:
        return encoded(lead + template.replace("{source}", source[:length]))

    ids = encode(len(source))
    if len(ids) <= max_tokens:
        return ids, 0
    bare = len(encode(0))
    if bare > max_tokens:
        parts = "the prompt template with its instruction and examples" if lead else "the prompt template alone"
        raise UsageError(f"{parts} takes {bare} tokens, but only {max_tokens} are free")
    shorten = longest if cut == "longest" else proportional
    length = shorten(encode, len(source), len(ids), max_tokens)
    return encode(length), len(source) - length


def proportional(encode: Callable[[int], list[int]], length: int, tokens: int, max_tokens: int) -> int:
    """A length whose prompt fits. length, tokens: of the source, and of the prompt with all of it."""
    while tokens > max_tokens:
        length = min(length - 1, length * max_tokens // tokens)
        tokens = len(encode(length))
    return length


def longest(encode: Callable[[int], list[int]], length: int, tokens: int, max_tokens: int) -> int:
    """A length whose prompt fits, where one character more would not fit; as `proportional`."""
    fits, too_long = 0, length
    guess = length * max_tokens // tokens
    while too_long - fits > 1:
        if len(encode(guess)) <= max_tokens:
            fits = guess
        else:
            too_long = guess
        guess = (fits + too_long) // 2
    return fits
