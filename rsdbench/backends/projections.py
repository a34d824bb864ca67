"""One product for the queries, keys and values of an attention layer, instead of three small ones.

On a GPU a product of one row with a small matrix takes as long as its launch, whatever its size: OPT-125M's three
projections took 12 of the 57 microseconds of a layer on an H100. On a CPU a compiled forward of one to 31 rows of the
6M target takes 0.84 to 0.93 of the time. The layers keep their names, and their weights become views of the joint ones,
so that a model's parameters and its state are what they were.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rsdbench.backends.cuda_graphs.row_layers import linear

NAMES = ("q_proj", "k_proj", "v_proj")


class Joint(torch.nn.Module):
    """Linear layers of the same input, as one; the outputs of the last input are kept until the last layer is asked."""

    def __init__(self, layers: list[torch.nn.Linear]) -> None:
        super().__init__()
        self.sizes = [layer.out_features for layer in layers]
        bias = None if layers[0].bias is None else torch.cat([layer.bias.data for layer in layers])
        self.register_buffer("weight", stacked([layer.weight.data for layer in layers]), persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.input: Tensor | None = None
        self.outputs: tuple[Tensor, ...] = ()

    def forward(self, x: Tensor, place: int) -> Tensor:
        """The output of one of the layers."""
        if x is not self.input:
            self.input, self.outputs = x, linear(x, self.weight, self.bias).split(self.sizes, -1)
        output = self.outputs[place]
        if place == len(self.sizes) - 1:
            self.input, self.outputs = None, ()
        return output


class Part(torch.nn.Linear):
    """A linear layer whose weights are a part of joint ones."""

    def __init__(self, layer: torch.nn.Linear, joint: Joint, place: int) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.joint, self.place = joint, place
        self.weight = torch.nn.Parameter(joint.weight.split(joint.sizes)[place], layer.weight.requires_grad)
        bias = None if joint.bias is None else joint.bias.split(joint.sizes)[place]
        self.bias = None if bias is None else torch.nn.Parameter(bias, layer.bias.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        """As of any linear layer."""
        return self.joint(x, self.place)


def stacked(weights: list[Tensor]) -> Tensor:
    """Weights one below another, in the order in which they lie in memory: by output or by input."""
    by_input = all(weight.t().is_contiguous() for weight in weights)
    return torch.cat([weight.t() for weight in weights], 1).t() if by_input else torch.cat(weights)


def join_projections(model: Any) -> None:
    """Join the projections of all attention layers that have plain ones; a second call changes nothing."""
    for module in list(model.modules()):
        layers = [getattr(module, name, None) for name in NAMES]
        if can_be_joined(layers):
            joint = Joint(layers)
            for place, (name, layer) in enumerate(zip(NAMES, layers, strict=True)):
                setattr(module, name, Part(layer, joint, place))


def can_be_joined(layers: list[Any]) -> bool:
    """Whether these are linear layers with plain weights on one device, of one input, and all or none has a bias."""
    if not all(type(x) is torch.nn.Linear and type(x.weight.data) is Tensor for x in layers):
        return False
    kinds = {(x.in_features, x.weight.dtype, x.weight.device, x.bias is None) for x in layers}
    return len(kinds) == 1 and not any(hasattr(x, "_hf_hook") for x in layers)
