"""What a model's KV cache holds, layer by layer, as a forward of one token shows it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
