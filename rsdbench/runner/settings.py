"""Whether the settings of a row job are usable."""

from __future__ import annotations

from omegaconf import DictConfig

from rsdbench.backends.choice import BACKENDS
from rsdbench.errors import UsageError
from rsdbench.pair import DTYPES
from rsdbench.sampling.distributions import Sampling
from rsdbench.selection import check_own_structures


def check_settings(config: DictConfig) -> None:
    """Everything about a row job that can be wrong and seen without loading a model.

    Raises:
        UsageError: the first thing that is wrong.
    """
    check_own_structures(config)
    decode = config.decode
    for key, value, kind in (
        ("decode.temperature", decode.temperature, (int, float)),
        ("decode.top_p", decode.top_p, (int, float)),
        ("decode.max_new_tokens", decode.max_new_tokens, int),
        ("quality.batch_size", config.quality.batch_size, int),
        ("speed.num_prompts", config.speed.num_prompts, int),
        ("speed.turns", config.speed.turns, int),
        ("prefix_memory", config.prefix_memory, (int, float)),
        ("seed", config.seed, int),
    ):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UsageError(f"{key} must be a number, not '{value}'")
    Sampling.at(decode.temperature, decode.top_p)
    if not -(2**63) <= config.seed < 2**63:
        raise UsageError(f"seed must be a number of at most 18 digits, not {config.seed}")
    for key, value, least in (
        ("decode.max_new_tokens", decode.max_new_tokens, 1),
        ("quality.batch_size", config.quality.batch_size, 1),
        ("speed.num_prompts", config.speed.num_prompts, 0),
        ("speed.turns", config.speed.turns, 1),
        ("prefix_memory", config.prefix_memory, 0),
    ):
        if value < least:
            raise UsageError(f"{key} must be at least {least}, not {value}")
    width = config.speed.half_width
    if width is not None and (not isinstance(width, int | float) or isinstance(width, bool) or width <= 0):
        raise UsageError(f"speed.half_width must be null or a number above 0, such as 0.05, not '{width}'")
    if config.dtype != "auto" and config.dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{config.dtype}': choose auto, {', '.join(DTYPES)}")
    if config.compile not in ("auto", True, False):
        raise UsageError(f"unknown compile '{config.compile}': choose auto, true or false")
    if config.backend is not None and config.backend not in BACKENDS:
        raise UsageError(f"unknown backend '{config.backend}': choose from {', '.join(BACKENDS)}, or null")
    if config.check not in (True, False):
        raise UsageError(f"unknown check '{config.check}': choose true or false")
    if decode.profile not in (True, False):
        raise UsageError(f"unknown decode.profile '{decode.profile}': choose true or false")
    if decode.profile and not config.speed.num_prompts:
        raise UsageError(
            "decode.profile=true needs speed.num_prompts of at least 1, which is what it decodes once more"
        )
    if config.speed.num_prompts > config.dataset.num_prompts:
        raise UsageError(
            f"speed.num_prompts ({config.speed.num_prompts}) must not exceed dataset.num_prompts "
            f"({config.dataset.num_prompts})"
        )
