"""What a model's KV cache holds, layer by layer, as a forward of one token shows it; and what its layers attend to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rsdbench.decoding.forward import FULL, Rows, Window
from rsdbench.decoding.kv_cache import LayerCache, Layout, SlotCache


class Probe(LayerCache):
    """A layer that notes its layout."""

    layout: Layout | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Look, and keep nothing."""
        self.layout = Layout(key_states.device, key_states.shape[1], key_states.shape[3], key_states.dtype)
        return key_states, value_states


@torch.no_grad()
def layouts_of(model: Any, device: torch.device) -> list[Layout]:
    """The layout of each layer's keys and values, as a forward of one token shows it."""
    cache = SlotCache([torch.empty(0, 0, 1, 0)] * (2 * model.config.get_text_config().num_hidden_layers))
    cache.layers = [Probe(cache, i) for i in range(len(cache.layers))]
    cache.read = 1
    one = torch.zeros(1, 1, dtype=torch.long, device=device)
    bias = torch.zeros(1, 1, 1, 1, dtype=model.dtype, device=device)
    model(input_ids=one, attention_mask=bias, position_ids=one, past_key_values=cache, use_cache=True)
    return [layer.layout for layer in cache.layers]


def windows_of(config: Any) -> dict[str, Window]:
    """What each kind of a model's layers attends to, by the names that transformers gives the kinds."""
    config = config.get_text_config()
    sliding, chunk = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    known = {
        "full_attention": FULL,
        "sliding_attention": Window(sliding or 0),
        "chunked_attention": Window(chunk or 0, chunk=True),
    }
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if sliding else "full_attention"]
    return {kind: known[kind] for kind in dict.fromkeys(kinds) if kind in known} or {"full_attention": FULL}


def masks(
    windows: dict[str, Window], bias: Callable[..., Tensor], rows: Rows, previous: bool, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:  # fmt: skip
    """The mask of all layers, or of each kind of them. bias: `attention_bias`."""
    made = {kind: bias(rows, previous, dtype, window) for kind, window in windows.items()}
    return made if len(made) > 1 else next(iter(made.values()))


def width_of(mask: Tensor | dict[str, Tensor]) -> int:
    """Slots that a mask is over."""
    return (mask if isinstance(mask, Tensor) else next(iter(mask.values()))).shape[-1]
