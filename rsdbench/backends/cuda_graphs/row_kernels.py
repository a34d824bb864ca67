"""Triton kernels for linear layers of one row and for layer norms, in which a library's own leave a GPU idle.

To be imported where Triton is.

On an H100 `row_linear` reads a large bfloat16 matrix at 2.7 to 3.0 TB/s, cuBLAS at 2.4 to 2.7, and a small one in 2.4
to 3.7 microseconds for 4.2 to 7.7; `layer_norm` of one row of 5,120 takes 2.3 for 7.3.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LONGEST = 2**14  # numbers of a row that `layer_norm` keeps in one program
READ = 4096  # weights of a row that a program of `row_linear` reads at once


@triton.jit
def layer_norm_kernel(x, weight, bias, y, width, eps, block: tl.constexpr):  # noqa: ANN001, ANN201
    """One program a row."""
    row, columns = tl.program_id(0), tl.arange(0, block)
    inside = columns < width
    values = tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, values - tl.sum(values, 0) / width, 0.0)
    variance = tl.sum(centred * centred, 0) / width
    found = centred * tl.rsqrt(variance + eps) * scale + shift
    tl.store(y + row * width + columns, found.to(y.dtype.element_ty), mask=inside)


@triton.jit
def row_linear_kernel(  # noqa: ANN201
    x, weight, bias, y, outputs, width: tl.constexpr, rows: tl.constexpr, block: tl.constexpr, biased: tl.constexpr  # noqa: ANN001
):  # fmt: skip
    """One program for one or two rows of the weights, so that the last programs end at about the same time."""
    own, columns = tl.program_id(0) * rows + tl.arange(0, rows), tl.arange(0, block)
    real = own < outputs
    total = tl.zeros((rows, block), tl.float32)
    for start in range(0, width, block):
        inside = start + columns < width
        place = own[:, None].to(tl.int64) * width + start + columns[None, :]
        weights = tl.load(
            weight + place, mask=real[:, None] & inside[None, :], other=0.0, eviction_policy="evict_first"
        )
        values = tl.load(x + start + columns, mask=inside, other=0.0)
        total += weights.to(tl.float32) * values.to(tl.float32)[None, :]
    found = tl.sum(total, 1)
    if biased:
        found += tl.load(bias + own, mask=real, other=0.0).to(tl.float32)
    tl.store(y + own, found.to(y.dtype.element_ty), mask=real)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As `torch.nn.functional.layer_norm` over the last dimension; x [..., D] contiguous, D at most `LONGEST`."""
    width, y = x.shape[-1], torch.empty_like(x)
    block = triton.next_power_of_2(width)
    layer_norm_kernel[(x.numel() // width,)](x, weight, bias, y, width, eps, block=block, num_warps=8)
    return y


def row_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `torch.nn.functional.linear` of a single row: x [..., K] of K numbers, weight [N, K], both contiguous."""
    outputs, width = weight.shape
    y = x.new_empty(*x.shape[:-1], outputs)
    block = min(READ, triton.next_power_of_2(width))
    rows, warps = 2 if block <= 1024 else 1, 4 if block <= 2048 else 8
    row_linear_kernel[(triton.cdiv(outputs, rows),)](
        x, weight, weight if bias is None else bias, y, outputs, width=width, rows=rows, block=block,
        biased=bias is not None, num_warps=warps,
    )  # fmt: skip
    return y
