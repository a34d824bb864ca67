"""Models and tokenizers through transformers, from a folder, the hub's cache or the hub. Their code is never run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from rsdbench.errors import UsageError
from rsdbench.models.checkpoints import load_source
from rsdbench.models.placement import CPU
from rsdbench.models.quantization import quantization_config

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
OWN_CODE = (
    "it needs code of its own (auto_map in its config.json), which is never run: take an architecture that "
    "transformers has"
)
PICKLED = (
    "its .bin file holds more than tensors, and to read it could run any code: take a copy in safetensors, or one from "
    "who you trust, converted on a machine that may be lost"
)


@dataclass(frozen=True)
class Source:
    """A model before its weights are read.

    name: as the user gave it; path and revision: what transformers takes; shell: the model on the meta device.
    """

    name: str
    path: str
    revision: str
    shell: Any

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.shell.config


def find_source(name: str, revision: str | None, dtype: torch.dtype) -> Source:
    """An embedded name, a folder or a hub id -> where it is and what it will be.

    Raises:
        UsageError: it is not there, not whole, or no causal LM that transformers has.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    path, revision = load_source(name, revision)
    with loading(name, Path(path)):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        shell.tie_weights()
        if not isinstance(getattr(shell.config, "vocab_size", None), int):
            raise ValueError(f"its text model is a part of a larger one ({config.model_type}): take one of text alone")
    return Source(name, path, revision, shell)


def load_model(
    source: Source, dtype: torch.dtype, places: dict[str, Any], quantization: str | None = None
) -> Any:  # fmt: skip
    """A causal LM in evaluation mode, each module on the device that `places` gives it.

    Raises:
        UsageError: its weights cannot be loaded, or do not cover the model.
    """
    from transformers import AutoModelForCausalLM

    on_gpu = set(places.values()) != {CPU}
    options = {"quantization_config": quantization_config(quantization, on_gpu)} if quantization else {}
    with loading(source.name):
        model, found = AutoModelForCausalLM.from_pretrained(
            source.path, revision=source.revision, dtype=dtype, device_map=places, trust_remote_code=False,
            output_loading_info=True, **options,
        )  # fmt: skip
        if missing := sorted(found["missing_keys"]):
            raise ValueError(f"its files lack {len(missing)} of its weights, such as {missing[0]}")
    return model.eval()


@contextmanager
def loading(name: str, folder: Path | None = None) -> Iterator[None]:
    """What goes wrong in the block keeps a model from being loaded. folder: where its configuration is read from.

    Raises:
        UsageError: instead of whatever was raised, unless memory ran out.
    """
    try:
        yield
    except (UsageError, torch.OutOfMemoryError):
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, UnpicklingError) as error:
        reason = OWN_CODE if folder and has_own_code(folder) else one_line(error)
        if isinstance(error, UnpicklingError) or "weights_only" in str(error):
            reason = PICKLED
        raise UsageError(f"model '{name}' cannot be loaded: {reason}") from error


def has_own_code(folder: Path) -> bool:
    """Whether a checkpoint names code of its own."""
    try:
        return "auto_map" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False


def load_tokenizer(source: Source) -> Any:
    """The tokenizer of a checkpoint, or None if it has no files of one.

    Raises:
        UsageError: it is there, and cannot be loaded.
    """
    from transformers import AutoTokenizer

    # without any of these files, transformers would make up an empty tokenizer from the model's type
    folder = Path(source.path)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(source.path, revision=source.revision, trust_remote_code=False)
    except Exception as error:  # of any kind: there are many kinds of tokenizers
        if not folder.is_dir() and isinstance(error, OSError):  # of the hub, which has none for it
            return None
        raise UsageError(
            f"the tokenizer of model '{source.name}' cannot be loaded ({one_line(error)}): copy or download its files "
            "again"
        ) from error


def one_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def name_of(model: Any) -> str:
    """What people call a model: the last part of its path."""
    return Path(model.config.name_or_path or type(model).__name__).name


def lay_out(model: Any) -> None:
    """Let the weights of linear layers on a CPU in float32 lie by input, in which order few rows read them faster.

    For most shapes oneDNN takes 0.6 to 0.9 times as long as by output, and MKL 0.6 of it for one row.
    """
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        plain = isinstance(layer, torch.nn.Linear) and type(weight.data) is torch.Tensor  # others are quantised
        if plain and weight.device.type == "cpu" and weight.dtype == torch.float32:
            weight.data = weight.data.t().contiguous().t()
