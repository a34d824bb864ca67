"""Linear layers in compiled forwards: large products go to oneDNN, small models' products into the code around them.

In float32 torch multiplies matrices with its BLAS, MKL, whatever the processor. On two cores of an AMD Zen 5 oneDNN
takes a half to a quarter of MKL's time: for a matrix of 1600 x 384 that is not in the caches, 34 us and not 99 for one
row, 45 and not 144 for seven, 318 and not 757 for 112. Compiled code reaches it as torch's own compiler does for other
types, through a function of AOTInductor's C interface; an operator of ours only lends it a name that may be exported.

A drafter of 25K parameters is the other extreme: each of its 13 products takes longer to call than to run. As sums of
elementwise products they are fused with all the rest into one function, on one thread and with one piece of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LARGE = 2**16  # weights: products with fewer take less time than oneDNN's preparations
FUSED = {"cpp.threads": 1, "memory_planning": True}  # Inductor's options for a small model
SHIM = (
    "AOTITorchError aoti_torch_cpu__linear_pointwise(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle*, "
    "const char*, const double**, int64_t, const char**, AtenTensorHandle*)"
)


# a shim is found by an operator's name and called with its arguments
@torch.library.custom_op(
    "rsdbench::_linear_pointwise", mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, str then, float[]? numbers, str? algorithm) -> Tensor",
)  # fmt: skip
def large_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, then: str, numbers: Sequence[float] | None, algorithm: str | None
) -> Tensor:
    """A linear layer by oneDNN: x [..., I], weight [O, I] in any order, bias [O] -> [..., O].

    then, numbers, algorithm: "none", None, None; the shim could apply a function to the output as well.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, numbers or [], algorithm)


@large_linear.register_fake
def _(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def onednn_at_hand() -> bool:
    """Whether this build of torch has oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def shims() -> dict[str, Any]:
    """Inductor's options with which compiled code calls oneDNN itself."""
    operator = torch.ops.rsdbench._linear_pointwise.default
    return {"aot_inductor.custom_ops_to_c_shims": {operator: [SHIM]}} if onednn_at_hand() else {}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What stands for a linear layer in a compiled forward.

    A product that is not oneDNN's and its bias are apart, so that the sum is fused with what follows it.
    """
    if onednn_at_hand() and weight.numel() >= LARGE and x.dtype == weight.dtype == torch.float32:
        return torch.ops.rsdbench._linear_pointwise(x, weight, bias, "none", None, None)
    product = torch.matmul(x, weight.t())
    return product if bias is None else product + bias


def is_small(model: Any) -> bool:
    """Whether no product of a model with its weights is a large one, and all are in float32."""
    weights = [getattr(x, "weight", None) for x in model.modules() if not isinstance(x, torch.nn.Embedding)]
    return all(w.numel() < LARGE and w.dtype == torch.float32 for w in weights if w is not None)


def summed_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` in a small model: products of x [..., I] and weight [O, I], and their sums, [..., O]."""
    product = (x.unsqueeze(-2) * weight).sum(-1)
    return product if bias is None else product + bias


def summed_matmul(left: Tensor, right: Tensor) -> Tensor:
    """`torch.matmul` in a small model, the same way: [..., R, K] and [..., K, C] -> [..., R, C]."""
    if min(left.dim(), right.dim()) < 2:
        return torch.matmul(left, right)
    return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)


def decompositions(small: bool) -> dict[Any, Callable[..., Tensor]]:
    """What stands for torch's operators when a model is compiled, a small one or another."""
    if small:
        return {torch.ops.aten.linear.default: summed_linear, torch.ops.aten.matmul.default: summed_matmul}
    return {torch.ops.aten.linear.default: linear}
