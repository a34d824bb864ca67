"""A causal LM's forward of tree rows: the mask over KV slots, positions, and the model itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

UNLIMITED = 2**31  # positions of a model that names no limit


class Rows(NamedTuple):
    """What one forward takes.

    tokens [B, R]; depths [R], their positions from the root's; ancestors [B or 1, R, 1 + N] bool; length [B], the
    root's position, which is the number of tokens before it; prefix [end]: the positions of the prefix that are read,
    0, 1, ...; slots [R]: the KV slots that are written.
    """

    tokens: Tensor
    depths: Tensor
    ancestors: Tensor
    length: Tensor
    prefix: Tensor
    slots: Tensor


def prompt_rows(tokens: Tensor, first: int, last: int, scratch: int) -> Rows:
    """Tokens `first` to `last` of prompts [B, P], as rows of trees in which each token is below the one before it.

    scratch: the KV slot of position 0. What padding on the right writes lies behind a prompt's end, where it is hidden
    until it is written over.
    """
    place = torch.arange(last, device=tokens.device)
    numbers = place[first:]
    seen = torch.nn.functional.pad(numbers.unsqueeze(1) >= place, (scratch - 1, 0))  # of all slots but the first
    none = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    return Rows(tokens[:, first:last], numbers, seen.unsqueeze(0), none, place[:0], numbers + scratch)


class Window(NamedTuple):
    """Which tokens a layer attends to: less than `size` positions back, or of the same chunk of `size`; 0: all."""

    size: int
    chunk: bool = False


FULL = Window(0)


def attention_bias(rows: Rows, previous: bool, dtype: torch.dtype, window: Window = FULL) -> Tensor:
    """The additive mask over the slots [previous, root, nodes, prefix], 0 or the least number of `dtype`.

    previous: whether the token before the root is seen in its scratch slot (the drafter's case) rather than in the
    prefix. Returns [B, 1, R, 2 + N + end].
    """
    length = rows.length.unsqueeze(1)
    shape = (length.shape[0], rows.ancestors.shape[1], -1)
    before = ((length > 0) & previous).unsqueeze(1).expand(shape)
    prefix = (rows.prefix < length - int(previous)).unsqueeze(1).expand(shape)
    visible = torch.cat([before, rows.ancestors.expand(shape), prefix], -1)
    if window.size:
        visible = visible & within(window, rows)
    return torch.where(visible, 0.0, torch.finfo(dtype).min).to(dtype).unsqueeze(1)


def within(window: Window, rows: Rows) -> Tensor:
    """What a window shows of the slots that are seen at all, [B, R, 2 + N + end]."""
    place = (rows.length.unsqueeze(1) + rows.depths).unsqueeze(2)  # [B, R, 1]
    # ancestors come in the order of their slots, so that as many of them as lie behind one are as far from it
    seen = rows.ancestors.long()
    tree = (seen.flip(-1).cumsum(-1).flip(-1) - seen).expand(place.shape[0], -1, -1)
    before = (rows.depths + 1).view(1, -1, 1).expand(place.shape[0], -1, -1)
    back = torch.cat([before, tree, place - rows.prefix], -1)
    if window.chunk:
        return (place - back) // window.size == place // window.size
    return back < window.size


def forward(
    model: Any, rows: Rows, bias: Tensor | dict[str, Tensor], cache: Cache, keep: int = 0, vocabulary: int | None = None
) -> Tensor:  # fmt: skip
    """Logits [B, R, V] of rows, of the last `keep` of them if that is not 0; their keys and values go into the cache.

    bias: of all layers, or by their kind; vocabulary: V, if it may be another than the model's own, in which then
    nothing but padding differs. Positions are always given, and clamped to the model's last one: rows beyond it are
    never accepted.
    """
    own = model.get_input_embeddings().weight.shape[0]
    tokens = rows.tokens if vocabulary is None or vocabulary <= own else rows.tokens.clamp(max=own - 1)
    positions = (rows.length.unsqueeze(1) + rows.depths).clamp(0, position_limit(model) - 1)
    logits = model(
        input_ids=tokens, attention_mask=bias, position_ids=positions, past_key_values=cache, use_cache=True,
        logits_to_keep=keep,
    ).logits  # fmt: skip
    return logits if vocabulary is None else over_vocabulary(logits, vocabulary)


def over_vocabulary(logits: Tensor, size: int) -> Tensor:
    """Logits over a vocabulary of a size: surplus tokens go before anything is normalised, missing ones have -inf."""
    missing = size - logits.shape[-1]
    if missing <= 0:
        return logits[..., :size] if missing else logits
    return torch.nn.functional.pad(logits, (0, missing), value=float("-inf"))


def position_limit(model: Any) -> int:
    """Positions that a model has, from its configuration; a model that names none has no limit."""
    return getattr(model.config, "max_position_embeddings", None) or UNLIMITED
