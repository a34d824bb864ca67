"""A model's forward as one compiled graph, from the model itself: exported, compiled ahead of time, kept on disk.

A forward of a small model is mostly Python: OPT's modules take 0.3 ms for two layers whose arithmetic takes
microseconds. `torch.export` turns the very same Hugging Face modules into a graph, with the mask before them and the
tempered law behind them, and Inductor compiles it to a library (AOTInductor) that takes any batch, any number of rows
and any length. The graph is kept without its weights, so that models of one architecture share it, and the loaded
weights are used where they lie.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from rsdbench.engine.cache import StorageLayer, TreeCache, attention_bias, position_limit
from rsdbench.errors import UsageError
from rsdbench.sampling.laws import tempered


class Rows(NamedTuple):
    """What one forward of tree rows takes, beside the storage.

    tokens [B, R]; depths [R], their positions from the root's; ancestors [B, R, 1 + N] bool; length [B], the root's
    position; steps [end] and previous [], as in `attention_bias`; columns [R] of the storage that are written;
    temperature [], above 0.
    """

    tokens: Tensor
    depths: Tensor
    ancestors: Tensor
    length: Tensor
    steps: Tensor
    previous: Tensor
    columns: Tensor
    temperature: Tensor


# rows, keys and values of each layer [B, H, columns, D] -> logits [B, R, V], log-laws at the temperature [B, R, V]
Forward = Callable[[Rows, list[Tensor]], tuple[Tensor, Tensor]]
HERE = Path(__file__)
SOURCES = (HERE, HERE.with_name("cache.py"), HERE.parents[1] / "sampling" / "laws.py")  # of what is in a graph
UNLIKE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}  # of a configuration: not in the graph


class GraphCache(Cache):
    """What stands for `TreeCache` inside the exported graph: its storage is an input, keys and values of each layer."""

    def __init__(self, storage: list[Tensor], written: Tensor, read: int) -> None:
        super().__init__(layers=[StorageLayer(self, i) for i in range(len(storage) // 2)])
        self.storage, self.written, self.read = storage, written, slice(0, read)
        self.columns = storage[0].shape[2]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, H, R, D] into one layer, in place; returns its keys and values [B, H, C, D]."""
        own_keys, own_values = self.storage[2 * layer : 2 * layer + 2]
        own_keys.index_copy_(2, self.written, keys)
        own_values.index_copy_(2, self.written, values)
        return own_keys[:, :, self.read], own_values[:, :, self.read]


class Step(torch.nn.Module):
    """What is exported: `Forward` through a model's own modules."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: tuple[Tensor, ...], storage: list[Tensor]) -> tuple[Tensor, Tensor]:
        """See `Forward`. What is exported knows tuples, but no names in them."""
        rows = Rows(*rows)
        bias = attention_bias(rows.ancestors, rows.length, rows.steps, rows.previous, self.model.dtype)
        positions = (rows.length.unsqueeze(1) + rows.depths).clamp(0, position_limit(self.model) - 1)
        cache = GraphCache(storage, rows.columns, bias.shape[-1])
        logits = self.model(
            input_ids=rows.tokens, attention_mask=bias, position_ids=positions, past_key_values=cache, use_cache=True
        ).logits
        return logits, tempered(logits, rows.temperature)


class CompiledForward:
    """A `Forward` in a library, with the weights that it reads; it holds them, for the library only points there."""

    def __init__(self, path: Path, model: Any) -> None:
        self.library = torch._inductor.aoti_load_package(str(path))
        weights = Step(model).state_dict()
        self.weights = {name: weights[name] for name in self.library.get_constant_fqns()}
        self.library.load_constants(self.weights, check_full_update=True, user_managed=True)

    def __call__(self, rows: Rows, storage: list[Tensor]) -> tuple[Tensor, Tensor]:
        """See `Forward`. The library takes the strides of what it was exported with on trust."""
        # calling the library itself would read its description of arguments anew each time, in 0.03 ms
        return tuple(self.library.loader.boxed_run([*(x.contiguous() for x in rows), *storage]))


def compiled_forward(model: Any) -> Forward:
    """The compiled forward of a model on a CPU; compiled now if no earlier process has left it on disk.

    Raises:
        UsageError: there is no C++ compiler, the model's code cannot be exported, or the graph cannot be kept on disk.
    """
    path = cache_folder() / f"{key(model)}.pt2"
    if path.exists():
        with suppress(RuntimeError):  # a damaged file is written anew
            return CompiledForward(path, model)
    if not compiler_at_hand():
        raise UsageError("compile=true needs a C++ compiler: install g++, set $CXX, or take compile=false")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            build(model, Path(folder) / path.name).replace(path)
        return CompiledForward(path, model)
    except OSError as error:
        raise UsageError(
            f"compiled forwards cannot be kept in '{path.parent}' ({error.strerror or error}): make room there, set "
            "$XDG_CACHE_HOME to another folder, or take compile=false"
        ) from None
    except RuntimeError as error:
        raise UsageError(refusal(model, error)) from error


def build(model: Any, path: Path) -> Path:
    """Export and compile a model's forward into a file.

    Raises:
        UsageError: the model's code cannot be exported or compiled.
        OSError: the file cannot be written.
    """
    rows, storage = examples(model)
    dynamic = torch.export.Dim.DYNAMIC
    sizes = Rows(
        tokens={0: dynamic, 1: dynamic}, depths={0: dynamic}, ancestors=dict.fromkeys(range(3), dynamic),
        length={0: dynamic}, steps={0: dynamic}, previous={}, columns={0: dynamic}, temperature={},
    )  # fmt: skip
    shapes = {"rows": tuple(sizes), "storage": [{0: dynamic, 2: dynamic}] * len(storage)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            exported = torch.export.export(Step(model), (tuple(rows), storage), dynamic_shapes=shapes, strict=False)
            return Path(
                torch._inductor.aoti_compile_and_package(
                    exported, package_path=str(path),
                    inductor_configs={"aot_inductor.package_constants_in_so": False},
                )
            )  # fmt: skip
        except OSError:
            raise
        except Exception as error:  # of any kind: exporting runs all of the model's own code
            raise UsageError(refusal(model, error)) from error


def refusal(model: Any, error: Exception) -> str:
    """One line on a model that cannot be compiled."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{type(model).__name__} cannot be compiled ({reason}): take compile=false"


def examples(model: Any) -> tuple[Rows, list[Tensor]]:
    """Inputs of `Forward` with B = 2, R = 3, N = 4 and end = 5: sizes of 0 and 1 would be taken as fixed."""
    batch, rows, nodes, end = 2, 3, 4, 5
    tokens, row = torch.zeros(batch, rows, dtype=torch.long), torch.arange(rows)
    cache = TreeCache(model.config.num_hidden_layers, batch, nodes, end + 3)  # more than are read
    cache.window(0, slice(0, rows))
    with torch.no_grad():  # shows the shape of the storage
        model(
            input_ids=tokens, attention_mask=torch.zeros(batch, 1, rows, rows, dtype=model.dtype),
            position_ids=row.expand(batch, -1), past_key_values=cache, use_cache=True,
        )  # fmt: skip
    ancestors = torch.ones(batch, rows, 1 + nodes, dtype=torch.bool)
    length, steps, one = torch.tensor([end, end]), torch.arange(end), torch.tensor(1)
    inputs = Rows(tokens, row, ancestors, length, steps, one, row + 1, torch.tensor(1.0))
    return inputs, [x.clone() for x in cache.views(batch)]


def key(model: Any) -> str:
    """What a compiled graph depends on: architecture and sizes, type, versions, this processor, threads."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in UNLIKE}
    parts = (
        type(model).__name__, sorted(config.items(), key=str), str(model.dtype), torch.__version__,
        version("transformers"), model.config._attn_implementation, processor(), torch.get_num_threads(),
        *(file.read_text() for file in SOURCES),
    )  # fmt: skip
    return f"{model.config.model_type}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


@lru_cache
def processor() -> str:
    """What the compiler takes from the processor it runs on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"


def cache_folder() -> Path:
    """Where compiled graphs are kept, for all runs of a user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rsdbench" / "compiled"


def compiler_at_hand() -> bool:
    """Whether there is a C++ compiler to call."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None
