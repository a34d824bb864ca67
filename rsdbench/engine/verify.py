"""Walk down a verified tree: which drafts are accepted, and which token follows them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from rsdbench.engine import walk
from rsdbench.engine.compiled_steps import Steps
from rsdbench.engine.tree import DraftTree, TreeShape
from rsdbench.engine.walk import Drafts, Outcome
from rsdbench.rules import Rule
from rsdbench.sampling.laws import Warp

start = lru_cache(maxsize=64)(walk.start)


def verify(
    shape: TreeShape, tree: DraftTree, tempered: Tensor, rule: Rule, warp: Warp, uniforms: Tensor, noise: Tensor,
    root: Tensor, compiled: Steps | None = None,
) -> Outcome:  # fmt: skip
    """Accept drafts from the root downwards and draw the last token.

    tempered [B, 1 + N, V], the target's laws before `Warp.cut`; uniforms [B, L, `walk.slots_of` the largest fanout];
    noise [B, V], Gumbel, for the last token; root [B, 1], the token there; compiled: the same walk, compiled for this
    rule.
    """
    drafts = Drafts(tempered, tree.laws, tree.tokens, tree.parents, tree.valid)
    if compiled is not None:
        outcome = compiled.verify(drafts, walk.slots_of(max(shape.fanouts, default=1)), uniforms, noise, root)
        if outcome is not None:
            return outcome
    state = start(len(tempered), shape.budget, shape.depth, tempered.shape[-1], tempered.device)
    for depth, fanout in enumerate(shape.fanouts):
        state = walk.descend(rule, warp, drafts, uniforms[:, depth, :fanout], state)
        if reading_is_free(tempered.device) and not state.going.any():
            break
    return walk.finish(warp, tempered, root, noise, state)


def reading_is_free(device: torch.device) -> bool:
    """Whether the host may look at a tensor: on an accelerator it would stall the queue, so there the walk goes on."""
    return device.type == "cpu"
