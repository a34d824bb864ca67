"""What decoding a batch gives."""

from __future__ import annotations

from dataclasses import dataclass, field

PHASES = ("draft", "target", "verify", "commit")


@dataclass
class Generation:
    """What `generate` returns; every list has one entry a prompt, in the prompts' order.

    tokens: new token ids, prompt not included, the end-of-sequence token included; blocks: target calls after the
    prefill; accepted_by_depth: how many of the kept tokens were drafts accepted at depth 1, 2, ..., L. Times are of
    the whole batch, in seconds; block_s are those of its blocks, which add up to decode_s. backend: what decoded it;
    fallbacks: as in `Backend`.
    """

    tokens: list[list[int]]
    blocks: list[int]
    accepted_by_depth: list[list[int]]
    prefill_s: float = 0.0
    decode_s: float = 0.0
    block_s: list[float] = field(default_factory=list)
    phase_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    backend: str = ""
    fallbacks: tuple[str, ...] = ()

    @property
    def block_efficiency(self) -> float:
        """New tokens / target calls, over all prompts; NaN without any."""
        return sum(map(len, self.tokens)) / sum(self.blocks) if self.blocks else float("nan")

    @property
    def acceptance_by_depth(self) -> list[float]:
        """For each depth, in how many of all blocks a draft at that depth was accepted and kept."""
        return [sum(depth) / sum(self.blocks) for depth in zip(*self.accepted_by_depth, strict=True)]

    @property
    def tokens_per_second(self) -> float:
        """New tokens of the whole batch / decoding seconds, prefill not included; NaN if nothing was decoded."""
        return sum(map(len, self.tokens)) / self.decode_s if self.decode_s else float("nan")
