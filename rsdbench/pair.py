"""A target and its drafter, loaded and checked against each other."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from rsdbench.backends.choice import EAGER, Engine, can_compile, choose, chosen
from rsdbench.backends.self_check import check_model
from rsdbench.decoding.drafter import is_model
from rsdbench.decoding.forward import position_limit
from rsdbench.drafters import is_drafter, make_drafter
from rsdbench.errors import UsageError
from rsdbench.models.loading import Source, find_source, lay_out, load_model, load_tokenizer, name_of
from rsdbench.models.placement import CPU, Memory, device_map, devices_of, free_memory, head_device
from rsdbench.models.quantization import check_dtype, check_quantization, shrink
from rsdbench.models.vocabularies import check_tokenizers, check_vocabularies, common_tokens

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(repr=False)
class Pair:
    """Two Hugging Face causal LMs over one vocabulary, or one and a `Drafter` of another kind.

    tokenizer: None if neither came with one.

    quantization: how the target's weights were quantised when they were loaded; positions: of a sequence, prompt and
    new tokens, that both models decode as they should (0: all they have); checked: whether `check_model` passed.
    """

    target: Any
    drafter: Any
    tokenizer: Any = None
    quantization: str | None = None
    positions: int = 0
    checked: bool = False
    compiled: Engine | None = None

    def __post_init__(self) -> None:
        have = min(map(position_limit, self.models))
        self.positions = min(self.positions or have, have)

    def __repr__(self) -> str:
        own = [f"{name_of(m)} ({parameters(m):,} parameters)" for m in reversed(self.models)]
        models = " over ".join(own if is_model(self.drafter) else [self.drafter.name, *own])
        return f"Pair({models}, {self.target.dtype}, {', '.join(self.devices)}, forward: {self.forward})"

    @property
    def models(self) -> list[Any]:
        """The causal LMs, the target first."""
        return [self.target, self.drafter] if is_model(self.drafter) else [self.target]

    @property
    def device(self) -> torch.device:
        """Where distributions are compared: that of the target's head."""
        return head_device(self.target)

    @property
    def devices(self) -> list[str]:
        """All devices that hold a part of either model."""
        return list(dict.fromkeys(device for model in self.models for device in devices_of(model)))

    @property
    def can_compile(self) -> bool:
        """Whether `compile` would find a backend that is faster than the eager one."""
        return self.quantization is None and can_compile(self.target, self.drafter, self.devices) is None

    @property
    def forward(self) -> str:
        """The name of the backend, as records say it."""
        return self.engine.name if self.compiled else EAGER

    @cached_property
    def eager(self) -> Engine:
        """Operators as they stand."""
        return choose(self.target, self.drafter)

    @property
    def engine(self) -> Engine:
        """What decodes."""
        return self.compiled or self.eager

    def compile(self) -> None:
        """Decode with compiled code on a CPU, with CUDA graphs on a GPU.

        What a method needs is compiled when it is first decoded, or taken from an earlier process.

        Raises:
            UsageError: the models are not both on one of these, or quantised on a CPU, or cannot be compiled.
        """
        reason = can_compile(self.target, self.drafter, self.devices)
        if self.quantization and self.device.type == CPU:
            reason = f"does not go with quantization={self.quantization} on a CPU"
        if reason:
            raise UsageError(f"compile=true {reason}: take compile=false")
        self.compiled = choose(self.target, self.drafter, compile=True)
        return_memory()

    def use(self, backend: str) -> None:
        """Decode with a backend of that name, such as one of a plugin's.

        Raises:
            UsageError: there is none, or it is not for these models.
        """
        self.compiled = chosen(backend, self.target, self.drafter)

    @cached_property
    def cost_ratio(self) -> float:
        """c = parameters of the drafter / parameters of the target."""
        return parameters(self.drafter) / parameters(self.target)


def return_memory() -> None:
    """Give what is free back to the system, if the C library can: what was joined or read leaves holes."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def parameters(model: Any) -> int:
    """Number of parameters of a causal LM or a `Drafter`; tied ones count once."""
    return model.parameters if not is_model(model) else sum(p.numel() for p in model.parameters())


@dataclass(frozen=True)
class FoundPair:
    """A pair of which everything is known and checked, and whose weights are not read yet; made by `find_pair`.

    target, drafter: each a `Source`, or a model that was loaded before, or a `Drafter`.
    """

    target: Any
    drafter: Any
    tokenizer: Any
    device: str
    dtype: torch.dtype
    quantization: str | None
    max_memory: Mapping[int | str, int | str] | None

    @property
    def positions(self) -> int:
        """Positions that both models have."""
        return min(position_limit(m) for m in (self.target, self.drafter) if is_model(m))

    def load(self, batch_size: int = 1, max_length: int | None = None, check: bool = True) -> Pair:
        """Read the weights. batch_size, max_length, check: as in `load_pair`.

        Raises:
            UsageError: the models do not fit, their weights cannot be loaded, or they would be decoded wrongly.
        """
        memory = free_memory(self.device, self.max_memory)
        room = batch_size, max_length
        models = placed(self.target, self.drafter, self.dtype, memory, self.quantization, room)
        named = zip(models, (self.target, self.drafter), ("target", "drafter"), strict=True)
        named = [(m, getattr(source, "name", role)) for m, source, role in named if is_model(m)]
        positions = [check_model(m, name, max_length) for m, name in named] if check else [0]
        kind = self.quantization or quantized_already(models[0])
        return Pair(*models, tokenizer=self.tokenizer, quantization=kind, positions=min(positions), checked=check)


def quantized_already(model: Any) -> str | None:
    """How a checkpoint's weights were quantised when it was saved, by its own name for it; None if they were not."""
    found = getattr(model.config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", "unknown")
    return str(getattr(method, "value", method))


def load_pair(
    target: Any, drafter: Any, device: str = "auto", dtype: str = "auto",
    target_revision: str | None = None, drafter_revision: str | None = None,
    quantization: str | None = None, max_memory: Mapping[int | str, int | str] | None = None,
    batch_size: int = 1, max_length: int | None = None, check: bool = True,
) -> Pair:  # fmt: skip
    """Load target and drafter: each an embedded name ("opt-6m"), a folder, a hub id, or a model already loaded.

    The drafter may also be the name of a registered drafter that is no model ("lookup"), or such a `Drafter` itself.
    device "auto" is one GPU if both fit, else all GPUs, else these and the CPU; the CPU where there is no GPU. dtype
    "auto" is float32 on a CPU and bfloat16 elsewhere, whatever a checkpoint's own. quantization: of the target's
    weights, "int8" or "int4". max_memory: as accelerate's, {0: "40GiB", "cpu": "200GiB"}, the devices that may be used
    and how much of them. batch_size, max_length: sequences, and positions of each (None: at most 4,096), for whose
    keys and values room is kept. check: forward a short text to see that the models are decoded as transformers
    does it (`check_model`); False spares two forwards of a model that passed before. A model already loaded is taken
    as it is.

    Raises:
        UsageError: a model is neither on disk nor reachable, is not whole, does not fit or would be decoded wrongly,
            the vocabularies or tokenizers differ, or a setting is unknown or not available.
    """
    found = find_pair(
        target, drafter, device, dtype, target_revision, drafter_revision, quantization, max_memory
    )  # fmt: skip
    return found.load(batch_size, max_length, check)


def find_pair(
    target: Any, drafter: Any, device: str, dtype: str, target_revision: str | None, drafter_revision: str | None,
    quantization: str | None, max_memory: Mapping[int | str, int | str] | None,
) -> FoundPair:  # fmt: skip
    """The first half of `load_pair`: everything but the weights.

    Raises:
        UsageError: as in `load_pair`, except for what only the weights show.
    """
    check_quantization(quantization)
    if quantization and not isinstance(target, str):
        raise UsageError(f"quantization={quantization} is for a target that is loaded by its name")
    memory = free_memory(device, max_memory)
    on_gpu = any(d != CPU for d in memory) if isinstance(target, str) else head_device(target).type != "cpu"
    kind = torch_dtype(dtype, on_gpu)
    check_dtype(quantization, kind, on_gpu)

    asked = ((target, target_revision), (drafter, drafter_revision))
    if is_drafter(drafter):
        asked = asked[0], (make_drafter(drafter), None)
    found = [find_source(m, revision, kind) if isinstance(m, str) else m for m, revision in asked]
    tokenizers = [load_tokenizer(m) if isinstance(m, Source) else None for m in found]
    check_tokenizers(*tokenizers)
    sizes = [m.config.get_text_config().vocab_size if is_model(m) else m.vocabulary for m in found]
    check_vocabularies(*sizes, common_tokens(*tokenizers))
    return FoundPair(*found, tokenizers[0] or tokenizers[1], device, kind, quantization, max_memory)


def placed(
    target: Any, drafter: Any, dtype: torch.dtype, memory: Memory, quantization: str | None,
    room: tuple[int, int | None],
) -> tuple[Any, Any]:  # fmt: skip
    """Both models with their weights, which those that are a `Source` still lack. room: batch size and length.

    Raises:
        UsageError: they do not fit, cannot be loaded, or are not beside each other.
    """
    if isinstance(target, Source):
        if quantization and set(memory) != {CPU}:
            shrink(target.shell, quantization)
        shells = [m.shell if isinstance(m, Source) else None for m in (target, drafter)]
        places = device_map(*shells, memory, quantization is None, *room)
        target = load_model(target, dtype, places, quantization)
        if quantization is None:
            lay_out(target)
    beside = head_device(target)
    if isinstance(drafter, Source):
        drafter = load_model(drafter, dtype, {"": beside})
        lay_out(drafter)
    if is_model(drafter) and head_device(drafter) != beside:
        raise UsageError(
            f"the target's head is on {beside} and the drafter on {head_device(drafter)}: move one of them"
        )
    return target, drafter


def torch_dtype(name: str, on_gpu: bool) -> torch.dtype:
    """The dtype of a name; "auto" is float32 on a CPU and bfloat16 elsewhere.

    Raises:
        UsageError: it is unknown.
    """
    if name != "auto" and name not in DTYPES:
        raise UsageError(f"unknown dtype '{name}': choose auto, {', '.join(DTYPES)}")
    return DTYPES.get(name) or (torch.bfloat16 if on_gpu else torch.float32)


def quiet_libraries() -> None:
    """No progress bars and warnings of libraries between the lines of ours."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
