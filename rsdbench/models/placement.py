"""Which device each module of a pair goes to, decided from sizes and free memory before any weight is read.

One GPU if target and drafter fit, else all GPUs, else the CPU holds the rest and lends its layers to the first GPU
(accelerate's `device_map` and hooks). The drafter goes beside the target's head, where distributions are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rsdbench.decoding.forward import position_limit
from rsdbench.errors import UsageError

ROOM = 0.1  # of a device's free memory that weights, keys and values leave for workspace
GIB = 2**30
CPU = "cpu"
# bytes by device as accelerate names them: an accelerator by its number, and "cpu"
Memory = Mapping[int | str, int]
LENGTH = 4096  # positions of a sequence that room is kept for, unless more or fewer are asked for
DeviceMap = dict[str, int | str]


def device_map(
    target: Any, drafter: Any, memory: Memory, offload: bool = True, batch_size: int = 0, max_length: int | None = None
) -> DeviceMap:
    """A device for the target's modules; the drafter's is that of the head.

    target, drafter: models on the meta device, or None for one that is in place already; memory: free bytes of the
    devices that may be used; offload: whether the CPU may hold a part; batch_size, max_length: sequences and positions
    (None: at most `LENGTH`) for whose keys and values there must be room.

    Raises:
        UsageError: they do not fit; says what they need, what there is, and what to do.
    """
    weights = bytes_of(target) + bytes_of(drafter)
    own, beside_head = (cache_bytes(m, batch_size, max_length) for m in (target, drafter))
    usable = {device: int(free * (1 - ROOM)) for device, free in memory.items()}
    gpus = {device: free for device, free in usable.items() if device != CPU}
    for device, free in (gpus or usable).items():
        if weights + own + beside_head <= free:
            return {"": device}
    if target is not None and gpus:
        # layers are shared out evenly, and so are their keys and values, which lie where a layer computes
        left = {device: max(0, free - own // len(gpus) * (device != CPU)) for device, free in usable.items()}
        choices = [{device: left[device] for device in gpus}] if len(gpus) > 1 else []
        choices += [left] if offload and CPU in usable else []
        for devices in choices:
            if found := spread(target, bytes_of(drafter) + beside_head, devices):
                return found
    raise UsageError(too_small(weights, own + beside_head, memory, offload))


def spread(target: Any, beside_head: int, usable: Memory) -> DeviceMap | None:
    """Modules over several devices, with so many bytes kept free on the one that has the head; None if they don't fit.

    Layers are shared out evenly, so that each GPU has room for its layers' keys and values.
    """
    from accelerate.utils import get_balanced_memory, infer_auto_device_map

    whole = list(target._no_split_modules or [])
    head = name_of(target, target.get_output_embeddings())
    for place in (device for device in usable if device != CPU):
        free = {device: size - beside_head * (device == place) for device, size in usable.items()}
        if free[place] <= 0:
            continue
        balanced = get_balanced_memory(target, free, no_split_module_classes=whole)
        found = infer_auto_device_map(target, balanced, no_split_module_classes=whole)
        if "disk" not in found.values() and computes_on(found, head) == place:
            return dict(found)
    return None


def computes_on(places: DeviceMap, module: str) -> int | str:
    """The device on which a module computes: what the CPU holds is lent to the first GPU."""
    parents = [name for name in places if name == "" or f"{module}.".startswith(f"{name}.")]
    device = places[max(parents, key=len)]
    return min(d for d in places.values() if d != CPU) if device == CPU and len(set(places.values())) > 1 else device


def name_of(model: Any, module: Any) -> str:
    """A module's name in its model."""
    return next(name for name, own in model.named_modules() if own is module)


def bytes_of(model: Any) -> int:
    """Bytes of a model's parameters and buffers; tied ones count once."""
    if model is None:
        return 0
    return sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))


def cache_bytes(model: Any, batch_size: int, max_length: int | None) -> int:
    """Bytes of the keys and values of so many sequences of so many positions; 0 for a model that is in place."""
    if model is None:
        return 0
    config = model.config
    positions = min(max_length or LENGTH, position_limit(model))
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    column = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize
    return batch_size * positions * column


def too_small(weights: int, cache: int, memory: Memory, offload: bool) -> str:
    """What to say about a pair that does not fit."""
    there = ", ".join(f"{free / GIB:.1f} GiB on {device_name(device)}" for device, free in memory.items())
    advice = ["target.quantization=int8 or int4" if offload else "target.quantization=int4"]
    if set(memory) - {CPU}:
        advice += ["a smaller quality.batch_size (max_length in load_pair)"] * (cache > 0) + ["more GPUs (device=auto)"]
        if offload:
            part = "CPU memory for a part (device=auto max_memory={0:70GiB,cpu:200GiB})"
            advice.append("more CPU memory" if CPU in memory else part)
    return (
        f"target and drafter take {weights / GIB:.1f} GiB, keys and values of a batch {cache / GIB:.1f} GiB, and "
        f"{ROOM:.0%} of a device's memory stays free for workspace, but there are {there or 'no devices'}: take "
        f"{' or '.join(advice)}"
    )


def device_name(device: int | str) -> str:
    """How messages name a device."""
    return "the CPU" if device == CPU else f"GPU {device}"


def free_memory(device: str, max_memory: Mapping[int | str, int | str] | None = None) -> dict[int | str, int]:
    """Free bytes of the devices that may be used: of all for "auto", else of one; at most `max_memory`, where given.

    max_memory: as accelerate's, {0: "40GiB", "cpu": "200GiB"}; devices that it does not name are not used.

    Raises:
        UsageError: the device or a cap is unknown, or the device is not here.
    """
    free = free_of(device)
    if max_memory is None:
        return free
    if not isinstance(max_memory, Mapping):
        raise UsageError(f"max_memory must be null or sizes of devices, as {{0:40GiB,cpu:200GiB}}, not '{max_memory}'")
    caps = {int(key) if str(key).isdecimal() else key: cap_of(key, size) for key, size in max_memory.items()}
    if unknown := [key for key in caps if key not in free]:
        named = ", ".join(map(str, free))
        raise UsageError(f"max_memory names device '{unknown[0]}', which is not used here: name some of {named}")
    return {key: min(size, caps[key]) for key, size in free.items() if caps.get(key)}


def cap_of(device: int | str, size: int | str) -> int:
    """A size such as "40GiB" in bytes."""
    from accelerate.utils import convert_file_size_to_int

    try:
        return convert_file_size_to_int(size)
    except (ValueError, AttributeError):
        raise UsageError(f"max_memory of {device} must be a size such as 40GiB, not '{size}'") from None


def free_of(device: str) -> dict[int | str, int]:
    """Free bytes of each device that `device` allows.

    Raises:
        UsageError: it is unknown, or not here.
    """
    import psutil

    host = psutil.virtual_memory().available
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device == "auto":
        if here is None:
            return {CPU: host}
        return {i: free_on(here.type, i, host) for i in range(torch.accelerator.device_count())} | {CPU: host}
    try:
        place = torch.device(device)
    except RuntimeError:
        raise UsageError(f"unknown device '{device}': choose auto, cpu, cuda or cuda:N") from None
    if place.type == CPU:
        return {CPU: host}
    index = place.index if place.index is not None else 0
    if here is None or place.type != here.type or index >= torch.accelerator.device_count():
        raise UsageError(f"device '{device}' is not available here: choose auto or cpu")
    return {index: free_on(here.type, index, host)}


def free_on(kind: str, index: int, host: int) -> int:
    """Free bytes of an accelerator; one that does not say shares the host's memory."""
    module = torch.get_device_module(kind)
    if not hasattr(module, "mem_get_info"):
        return host
    unused = module.memory_reserved(index) - module.memory_allocated(index)  # by torch, which gives it to new tensors
    return module.mem_get_info(index)[0] + unused


def torch_device(device: int | str) -> torch.device:
    """As torch names a device."""
    if isinstance(device, int):
        return torch.device(torch.accelerator.current_accelerator().type, device)
    return torch.device(device)


def execution_device(module: Any) -> torch.device:
    """Where a module computes: as accelerate's hook says, or where its weights lie."""
    hook = getattr(module, "_hf_hook", None)
    for own in getattr(hook, "hooks", (hook,)):
        if (device := getattr(own, "execution_device", None)) is not None:
            return torch_device(device)
    return next(module.parameters()).device


def head_device(model: Any) -> torch.device:
    """Where a model's logits are computed."""
    return execution_device(model.get_output_embeddings() or model.get_input_embeddings())


def layer_devices(model: Any) -> list[torch.device]:
    """Where each layer of a model computes, and so where its keys and values are."""
    count = model.config.num_hidden_layers
    if not is_spread(model):
        return [head_device(model)] * count
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)
    return [execution_device(layer) for layer in layers]


def is_spread(model: Any) -> bool:
    """Whether a model's modules are on several devices, or offloaded."""
    places = set(getattr(model, "hf_device_map", {}).values())
    return len(places) > 1 or "disk" in places


def devices_of(model: Any) -> list[str]:
    """All devices that hold a part of a model: ["cpu"], or ["cuda:0", "cuda:1", "cpu"]."""
    if not is_spread(model):
        return [str(head_device(model))]
    places = dict.fromkeys(model.hf_device_map.values())
    return [device if device == "disk" else str(torch_device(device)) for device in places]
