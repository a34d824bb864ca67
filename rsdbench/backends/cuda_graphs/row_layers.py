"""Linear layers and layer norms of a model that use our kernels while they are recorded as CUDA graphs.

The layers stay what and where they are, with their weights; only their class, and so their forward, is another. All
that is not recorded, and all rows beyond the first of a linear layer, goes the libraries' way.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from rsdbench.backends.cuda_graphs.fused import fusing_is_possible
from rsdbench.backends.cuda_graphs.graphs import is_recording

functional = torch.nn.functional
NARROW = (torch.float32, torch.bfloat16, torch.float16)  # the kernels add up in float32


class RowLinear(torch.nn.Linear):
    """A linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        """As of any linear layer."""
        return linear(x, self.weight, self.bias)


class RowLayerNorm(torch.nn.LayerNorm):
    """A layer norm over the last dimension, with scale and shift."""

    def forward(self, x: Tensor) -> Tensor:
        """As of any layer norm."""
        if is_recording() and x.dtype in NARROW and x.is_contiguous() and x.shape[-1] <= kernels().LONGEST:
            return kernels().layer_norm(x, self.weight, self.bias, self.eps)
        return super().forward(x)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`, of a single row by our kernel."""
    one = x.numel() == x.shape[-1] and x.dtype in NARROW
    if one and is_recording() and x.is_contiguous() and weight.is_contiguous():
        return kernels().row_linear(x, weight, bias)
    return functional.linear(x, weight, bias)


@cache
def kernels() -> Any:
    """The kernels, which need Triton to be read."""
    from rsdbench.backends.cuda_graphs import row_kernels

    return row_kernels


def use_row_layers(model: Any) -> None:
    """Let all plain linear layers and layer norms of a model be ours, where Triton can be used."""
    if not fusing_is_possible():
        return
    for module in model.modules():
        if hasattr(module, "_hf_hook"):
            continue  # accelerate's, of a layer that is lent
        if type(module) is torch.nn.Linear and type(module.weight.data) is Tensor:
            module.__class__ = RowLinear
        if type(module) is torch.nn.LayerNorm and len(module.normalized_shape) == 1 and module.bias is not None:
            module.__class__ = RowLayerNorm
