"""The models of row jobs: found, loaded, and held from one row to the next."""

from __future__ import annotations

import gc
import json

import torch
from omegaconf import DictConfig, OmegaConf

from rsdbench.errors import UsageError
from rsdbench.notes import note
from rsdbench.pair import FoundPair, Pair, find_pair

HELD: dict[str, tuple[Pair, int]] = {}  # the pair of the last row job, and the tokens of a batch that it has room for


def found_pair(config: DictConfig) -> FoundPair:
    """A row's pair before its weights are read.

    Raises:
        UsageError: as in `find_pair`.
    """
    target, drafter = config.target, config.drafter
    return find_pair(
        target.path, drafter.path, config.device, config.dtype, target.revision, drafter.revision,
        target.quantization, config.max_memory,
    )  # fmt: skip


def pair_of(config: DictConfig, found: FoundPair, batch_size: int, max_length: int) -> Pair:
    """A row's pair: that of the row before if it has the same models and room, else that one is gone before.

    batch_size, max_length: of what will be decoded at once.
    """
    keys = ("target", "drafter", "device", "dtype", "max_memory", "compile", "backend", "check")
    key = json.dumps([OmegaConf.to_container(config[k]) if OmegaConf.is_config(config[k]) else config[k] for k in keys])
    room = batch_size * max_length
    if key not in HELD or HELD[key][1] < room:
        release_pair()
        HELD[key] = prepared(found.load(batch_size, max_length, config.check), config.compile, config.backend), room
    return HELD[key][0]


def release_pair() -> None:
    """Give back the memory of the pair that is held, which the next one may need."""
    HELD.clear()
    free_memory()


def free_memory() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def prepared(pair: Pair, compile: str | bool, backend: str | None) -> Pair:
    """A pair on the backend that was asked for, or compiled if it is to be."""
    if backend is not None:
        pair.use(backend)
    elif compile == "auto" and pair.can_compile:
        try:
            pair.compile()
        except UsageError as error:  # such as a model that cannot be exported
            note(f"the models' own forwards are used: {error}")
    elif compile is True:
        pair.compile()
    return pair
