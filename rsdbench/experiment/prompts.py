"""From a task's source text to a prompt of token ids that leaves room for what will be generated."""

from __future__ import annotations

from typing import Any

from rsdbench.errors import UsageError


def encode_prompt(tokenizer: Any, template: str, source: str, max_tokens: int) -> tuple[list[int], int]:
    """Fill `template` (it contains "{source}") and tokenise it; a long source is cut at its end, the template never.

    Returns the token ids, at most `max_tokens`, and the number of characters of the source that were cut.

    Raises:
        UsageError: the template alone does not fit into `max_tokens`.
    """
    kept = source
    while True:
        ids = tokenizer(template.replace("{source}", kept)).input_ids
        if len(ids) <= max_tokens:
            return ids, len(source) - len(kept)
        if not kept:
            raise UsageError(f"the prompt template alone takes {len(ids)} tokens, but only {max_tokens} are free")
        kept = kept[: min(len(kept) - 1, len(kept) * max_tokens // len(ids))]
