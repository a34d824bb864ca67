"""Times of blocks without what is none of their work."""

from __future__ import annotations

import numpy as np

STALL = 3.0  # a block that takes so many times a quick one of its prompt has met a stall, not work of its own
QUICK = 0.25  # share of a prompt's blocks that are quicker than what counts as a quick one


def without_stalls(blocks: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Times of blocks [N] with each stall replaced by a quick block of its prompt, the lower quartile.

    prompts [N]: which blocks are of one prompt, and therefore of one length and one kind of work. On a quiet machine no
    block takes `STALL` times the quartile, and nothing is replaced. It is a quartile and not the median because a
    disturbance may last for a whole turn, which is half of a prompt's blocks.
    """
    if not len(blocks):
        return blocks
    order = np.lexsort((blocks, prompts))
    starts = np.flatnonzero(np.diff(prompts[order], prepend=prompts[order[0]] - 1))
    counts = np.diff(starts, append=len(order))
    quick = np.empty(len(blocks))
    quick[order] = np.repeat(blocks[order[starts + ((counts - 1) * QUICK).astype(int)]], counts)
    return np.where(blocks > STALL * quick, quick, blocks)
