"""Walk down a verified tree: which drafts are accepted, and which token follows them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from rsdbench.engine import walk
from rsdbench.engine.compiled_steps import Steps
from rsdbench.engine.tree import DraftTree, TreeShape
from rsdbench.engine.walk import Below, Drafts, Outcome
from rsdbench.rules import Rule
from rsdbench.sampling.laws import Warp


def verify(
    shape: TreeShape, tree: DraftTree, tempered: Tensor, rule: Rule, warp: Warp, uniforms: Tensor, noise: Tensor,
    root: Tensor, compiled: Steps | None = None,
) -> Outcome:  # fmt: skip
    """Accept drafts from the root downwards and draw the last token.

    tempered [B, 1 + N, V], the target's laws before `Warp.cut`; uniforms [B, L, `walk.slots_of` the largest fanout];
    noise [B, V], Gumbel, for the last token; root [B, 1], the token there; compiled: the same steps, compiled for this
    rule.
    """
    device = tempered.device
    drafts = Drafts(tempered, tree.laws, tree.tokens, tree.parents, tree.valid)
    state = walk.start(len(tempered), shape.depth, tempered.shape[-1], device)
    for depth, fanout in enumerate(shape.fanouts, start=1):
        level = below(shape, depth, device)
        chances = uniforms[:, depth - 1, : fanout if compiled is None else walk.slots_of(fanout)]
        if compiled is None:
            state = walk.descend(rule, warp, drafts, level, chances, state)
        else:
            state = compiled.descend(drafts, level, chances, state)
        if reading_is_free(device) and not state.going.any():
            break
    if compiled is None:
        return walk.finish(warp, tempered, root, noise, state)
    return compiled.finish(tempered, root, noise, state)


def reading_is_free(device: torch.device) -> bool:
    """Whether the host may look at a tensor: on an accelerator it would stall the queue, so there the walk goes on."""
    return device.type == "cpu"


@lru_cache(maxsize=1024)
def below(shape: TreeShape, depth: int, device: torch.device) -> Below:
    """The level at a depth of 1 to L."""
    level, above = shape.level(depth), shape.starts[depth - 2] if depth > 1 else -1
    nodes = torch.arange(level.start, level.stop, device=device)
    return Below(nodes, torch.tensor(above, device=device), torch.tensor(depth, device=device))
