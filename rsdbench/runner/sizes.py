"""How large a model is, without loading it: what a plan needs to know of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rsdbench.drafters import is_drafter
from rsdbench.errors import UsageError
from rsdbench.models.checkpoints import cached_checkpoint, local_checkpoint


@dataclass(frozen=True)
class ModelSize:
    """parameters, tied ones counted once; of these, embeddings: tokens' embeddings and the head.

    heads: those that have keys and values of their own; hidden: width of a layer; positions: how many there are, or
    None if the model names no limit.
    """

    parameters: int
    embeddings: int
    layers: int
    hidden: int
    heads: int
    head_size: int
    vocabulary: int
    positions: int | None


def opt(parameters: int, layers: int, hidden: int, heads: int, embedding: int) -> ModelSize:
    """A model of the OPT family (arXiv 2205.01068)."""
    vocabulary = 50_272
    return ModelSize(
        parameters, vocabulary * embedding, layers, hidden, heads, hidden // heads, vocabulary, positions=2048
    )


NOTHING = ModelSize(0, 0, 0, 0, 0, 0, 0, positions=None)  # of a drafter that is no model

# the paper's models, so that its grid can be planned where they are not
KNOWN = {
    "facebook/opt-125m": opt(125_239_296, layers=12, hidden=768, heads=12, embedding=768),
    "facebook/opt-350m": opt(331_196_416, layers=24, hidden=1024, heads=16, embedding=512),
    "facebook/opt-13b": opt(12_853_473_280, layers=40, hidden=5120, heads=40, embedding=5120),
    "facebook/opt-30b": opt(29_974_540_288, layers=48, hidden=7168, heads=56, embedding=7168),
    "facebook/opt-66b": opt(65_719_701_504, layers=64, hidden=9216, heads=72, embedding=9216),
}


@lru_cache
def model_size(name: str, revision: str | None = None) -> ModelSize:
    """The size of an embedded model, a folder, or a hub id that is known here or lies in the local cache.

    Raises:
        UsageError: nothing here says how large it is.
    """
    if is_drafter(name):
        return NOTHING
    folder = local_checkpoint(name)
    if folder is None and name in KNOWN:
        return KNOWN[name]
    folder = folder or cached_checkpoint(name, revision)
    if folder is None:
        raise UsageError(
            f"nothing here says how large model '{name}' is: plan it where it is on disk, or plan one of "
            f"{', '.join(KNOWN)}"
        )
    try:
        return read_size(folder)
    except (OSError, ValueError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the size of model '{name}' cannot be read from '{folder}' ({reason})") from None


def read_size(folder: Path) -> ModelSize:
    """The same from a checkpoint's configuration and the headers of its weight files.

    Raises:
        OSError: there are no weights, or a file cannot be read.
        ValueError: a file is not what its name says.
        AttributeError: the configuration does not name a size.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    text = config.get_text_config()
    width = getattr(text, "word_embed_proj_dim", None) or text.hidden_size
    heads = text.num_attention_heads
    return ModelSize(
        parameters=count_parameters(folder),
        embeddings=text.vocab_size * width * (1 if text.tie_word_embeddings else 2),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=getattr(text, "num_key_value_heads", None) or heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=text.vocab_size,
        positions=getattr(text, "max_position_embeddings", None),
    )


def count_parameters(folder: Path) -> int:
    """Parameters of a checkpoint: from the headers of safetensors files, else from the size of `.bin` files.

    Raises:
        OSError: there are neither.
        ValueError: a header is damaged.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="np") as tensors:
                shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file.name}: {error}") from None
    if shapes:
        return sum(math.prod(shape) for shape in shapes.values())
    size = sum(file.stat().st_size for file in folder.glob("pytorch_model*.bin"))
    if not size:
        raise OSError("it has no weights")
    return size // bytes_of(folder)


def bytes_of(folder: Path) -> int:
    """Bytes of a number in a checkpoint's `.bin` files, from its configuration."""
    config = json.loads((folder / "config.json").read_text())
    return 2 if (config.get("dtype") or config.get("torch_dtype")) in ("float16", "bfloat16") else 4
