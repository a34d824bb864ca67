"""Walk down a verified tree: which drafts are accepted, and which token follows them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from rsdbench.backends.cuda_graphs.fused import fused
from rsdbench.decoding import descent
from rsdbench.decoding.descent import Drafts, Outcome
from rsdbench.decoding.nodes import Verdicts, follow, judge
from rsdbench.decoding.tree import DraftTree, TreeShape, node_depths, row_levels
from rsdbench.sampling.distributions import Warp
from rsdbench.verification import Rule

kept_start = lru_cache(maxsize=64)(descent.start)  # on a CPU alone: a recording must not read what may be dropped


def verify(
    shape: TreeShape, tree: DraftTree, tempered: Tensor, rule: Rule, warp: Warp, uniforms: Tensor, noise: Tensor,
    root: Tensor,
) -> Outcome:  # fmt: skip
    """Accept drafts from the root downwards and draw the last token.

    tempered [B, 1 + N, V], the target's laws before `Warp.cut`; uniforms [B, L, `descent.slots_of` the largest fanout];
    noise [B, 2, S], as in `gumbel.draw`, for the last token; root [B, 1], the token there.
    """
    drafts = Drafts(tempered, tree.laws, tree.tokens, tree.parents, tree.valid)
    free = reading_is_free(tempered.device)
    if shape.depth and len(tempered) == 1 and not free:
        state = follow(drafts, verdicts(shape, tree, drafts, rule, warp, uniforms), shape.depth)
        return fused(descent.finish)(warp, tempered, root, noise, state)
    start = kept_start if free else descent.start
    state = start(len(tempered), shape.budget, shape.depth, tempered.shape[-1], tempered.device)
    for depth, fanout in enumerate(shape.fanouts):
        state = descent.descend(rule, warp, drafts, uniforms[:, depth, :fanout], state)
        if free and not state.going.any():
            break
    return fused(descent.finish)(warp, tempered, root, noise, state)


def verdicts(
    shape: TreeShape, tree: DraftTree, drafts: Drafts, rule: Rule, warp: Warp, uniforms: Tensor
) -> Verdicts:  # fmt: skip
    """`judge` of a tree; arguments as in `verify`."""
    device = uniforms.device
    of_row = uniforms.index_select(1, row_levels(shape, device))[:, :, : max(shape.fanouts)]
    return fused(judge)(rule, warp, drafts, of_row, tree.ancestors, node_depths(shape, device)[1:], shape.depth)


def reading_is_free(device: torch.device) -> bool:
    """Whether the host may look at a tensor: on an accelerator it would stall the queue, so there the walk goes on."""
    return device.type == "cpu"


def to_host(x: Tensor) -> Callable[[], list]:
    """Begin to copy a tensor to the host: what waits for the copy alone, not for work queued after it, and reads it."""
    if x.device.type == "cpu":
        here = x.tolist()
        return lambda: here
    here = x.to("cpu", non_blocking=True)  # in pinned memory
    copied = torch.Event(x.device.type)
    copied.record(torch.accelerator.current_stream(x.device))

    def wait() -> list:
        copied.synchronize()
        return here.tolist()

    return wait
