"""Weight-only quantisation of a target with torchao: each linear layer but the head, activations as they are.

int8: a scale for each row. int4: a scale and a zero for each group of weights; packed for the tensor cores of a GPU of
compute capability 8.0 or above, and on a CPU, which has no need to save memory, in a byte each.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from rsdbench.errors import UsageError

KINDS = ("int8", "int4")
EXTRA = "pip install 'rsdbench[quantization]'"
GROUP = 32  # weights that share a scale and a zero in int4
# bytes of a weight on a GPU; int4 has two numbers of two bytes for each group
BYTES = {"int8": 1.0, "int4": 0.5 + 4 / GROUP}


def check_quantization(kind: str | None) -> None:
    """See that a kind of quantisation is known and can be had, without importing torch.

    Raises:
        UsageError: it is not.
    """
    if kind is None:
        return
    if kind not in KINDS:
        raise UsageError(f"unknown quantization '{kind}': choose {', '.join(KINDS)} or null")
    if find_spec("torchao") is None:
        raise UsageError(f"quantization={kind} needs the library torchao: {EXTRA}")


def check_dtype(kind: str | None, dtype: Any, on_gpu: bool) -> None:
    """See that quantised weights can be multiplied with activations of a `torch.dtype`.

    Raises:
        UsageError: the sums of float16 would overflow, or a GPU's kernels do not know the dtype.
    """
    name = str(dtype).removeprefix("torch.")
    allowed = ("bfloat16",) if on_gpu else ("bfloat16", "float32")
    if kind is not None and name not in allowed:
        raise UsageError(f"quantization={kind} does not go with dtype={name}: take {' or '.join(allowed)}")


def quantization_config(kind: str, on_gpu: bool) -> Any:
    """What transformers' `from_pretrained` takes to quantise weights as it loads them."""
    import torch
    from torchao.quantization import (
        Int4WeightOnlyConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        MappingType,
        PerGroup,
    )
    from transformers import TorchAoConfig

    if kind == "int8":
        how = Int8WeightOnlyConfig(set_inductor_config=False)
    elif on_gpu:
        how = Int4WeightOnlyConfig(
            group_size=GROUP, int4_packing_format="tile_packed_to_4d", int4_choose_qparams_algorithm="hqq",
            set_inductor_config=False,
        )  # fmt: skip
    else:
        how = IntxWeightOnlyConfig(torch.int4, PerGroup(GROUP), MappingType.ASYMMETRIC)
    return TorchAoConfig(how)


def shrink(model: Any, kind: str) -> None:
    """Give the weights of a model on the meta device the size that they have when they are quantised."""
    import torch

    head = model.get_output_embeddings()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not head:
            size = int(layer.weight.numel() * BYTES[kind])
            layer.weight = torch.nn.Parameter(torch.empty(size, dtype=torch.int8, device="meta"), requires_grad=False)
