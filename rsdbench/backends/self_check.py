"""Whether decoding runs a model as transformers does, seen once when it is loaded.

Decoding gives every model a 4-D mask over its own order of cache columns, and takes for granted that logits depend on
tokens, positions and that mask alone. Families that mask or weigh by column, attend to a window, or keep a state that
cannot be rolled back would give wrong tokens without an error: AR and every method alike, so that ratios look right.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from rsdbench.backends.eager import CachedLM
from rsdbench.decoding.forward import Rows, position_limit, prompt_rows
from rsdbench.decoding.tree import ancestors_of
from rsdbench.errors import UsageError
from rsdbench.models.layouts import layouts_of
from rsdbench.models.placement import head_device
from rsdbench.sampling.distributions import wide
from rsdbench.structures import BRANCHING

SHORT = 24  # tokens that are forwarded where no window is larger
WINDOW = re.compile(r"(?!.*(layers|pattern)).*(window|chunk).*")  # settings that are sizes of windows
TREE = "2-1"  # nodes 0 and 1 below the root, 2 below 0, 3 below 1: whichever branch is kept, the other is rejected
BRANCHES = ((0, 1, 3), (0, 2, 4))  # rows of the tree, 0 is the root: those that each branch reads in order
# differences of logits, of their own spread: rounding stays below, a mask that is not the model's own goes beyond
TOLERANCE = {torch.float32: 2e-3, torch.float16: 3e-2, torch.bfloat16: 0.1}


def check_model(model: Any, name: str, max_length: int | None = None) -> int:
    """Forward a random text without cache, and through the prefill and the rows of a tree; compare the logits.

    max_length: positions that will be decoded at most, None: all that the model has. Returns the positions for which
    the check holds: a window that no text of `max_length` fills is not looked into.

    Raises:
        UsageError: the logits differ by more than rounding, or the model does not take what decoding gives it.
    """
    limit = position_limit(model)
    longest = min(limit, max_length or limit)
    window = smallest_window(model.config)
    # a text a little longer than its window would hide so few tokens that rounding covers them
    length = min(limit, max(SHORT, window + window // 2)) if longest > window else min(longest, SHORT)
    try:
        with torch.inference_mode():
            own, ours = both_logits(model, random_text(model, length))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"model '{name}' cannot be decoded: its family ({model.config.model_type}) does not take a cache, a 4-D "
            f"mask and positions as decoding gives them ({reason}): take a model with plain causal "
            "attention (configs/README.md, Models)"
        ) from error
    off = difference(own, ours)
    if not off <= TOLERANCE.get(model.dtype, max(TOLERANCE.values())):  # NaN is refused
        windowed = f", with windows of {window} positions," if window else ""
        raise UsageError(
            f"model '{name}' would be decoded wrongly: its family ({model.config.model_type}){windowed} does not keep "
            f"to the mask of a draft tree: its logits are {off:.0%} off the model's own: take another model "
            f"(check=false decodes it all the same; configs/README.md, Models)"
        )
    return limit if length >= window + window // 4 else window


def smallest_window(config: Any) -> int:
    """Positions of the smallest window or chunk that attention keeps to; 0 if the configuration names none."""
    settings = config.get_text_config().to_dict()
    sizes = [value for key, value in settings.items() if WINDOW.fullmatch(key) and type(value) is int and value > 0]
    return min(sizes, default=0)


def random_text(model: Any, length: int) -> Tensor:
    """Two texts that differ in their last two tokens, [2, length]; without tokens for images or the like."""
    config = model.config.get_text_config()
    special = {v for k, v in model.config.to_dict().items() if k.endswith(("_token_id", "_token_index"))
               and isinstance(v, int)}  # fmt: skip
    plain = torch.tensor([token for token in range(config.vocab_size) if token not in special] or [0])
    generator = torch.Generator().manual_seed(0)
    text = plain[torch.randint(len(plain), (length + 2,), generator=generator)]
    return torch.stack([text[:length], torch.cat([text[: length - 2], text[length:]])])


def both_logits(model: Any, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Logits behind the last three tokens of both texts, [2, 3, V]: the model's own, and those of a tree's rows."""
    shape, length, device = BRANCHING.shape(TREE), texts.shape[1], head_device(model)
    texts = texts.to(device)
    own = wide(model(input_ids=texts, use_cache=False, logits_to_keep=3).logits)
    cached = CachedLM(model, layouts_of(model, device), shape, 1, length + shape.depth + 1, previous=False)
    prefix, (a, b) = texts[:1, :-3], texts[:, -2:]
    if prefix.shape[1]:
        cached.logits(prompt_rows(prefix, 0, prefix.shape[1], cached.storage.scratch), keep=1)
    rows = torch.arange(1 + shape.budget, device=device)
    logits = cached.logits(
        Rows(
            tokens=torch.stack([texts[0, -3], a[0], b[0], a[1], b[1]]).unsqueeze(0),
            depths=torch.tensor(shape.depths[1:], device=device),
            ancestors=ancestors_of(shape.parents).to(device).unsqueeze(0),
            length=torch.tensor([length - 3], device=device),
            prefix=torch.arange(length - 3, device=device),
            slots=rows + 1,
        )
    )
    return own, torch.stack([wide(logits)[0, list(branch)] for branch in BRANCHES])


def difference(own: Tensor, ours: Tensor) -> float:
    """The largest root mean square difference of a row's logits, of the spread of its logits."""
    own, ours = own - own.mean(-1, keepdim=True), ours - ours.mean(-1, keepdim=True)
    spread = own.square().mean(-1).sqrt().clamp_min(torch.finfo(own.dtype).tiny)
    return float(((ours - own).square().mean(-1).sqrt() / spread).max())
