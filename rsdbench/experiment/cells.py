"""From a configuration to row jobs and their cells, each named by its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from rsdbench.engine.checkpoints import fingerprint, resolve_checkpoint
from rsdbench.engine.drafting import NoDrafting
from rsdbench.engine.methods import BASELINE, METHODS, get_method, get_shape
from rsdbench.engine.models import DTYPES
from rsdbench.errors import UsageError
from rsdbench.experiment.tasks import local_file
from rsdbench.sampling.laws import Warp
from rsdbench.seeds import seed_from

SCHEMA = 2  # of the records; part of every cell's name
# the settings that a cell's tokens and times depend on, beside its models, dataset, method and structure
SETTINGS = ("seed", "device", "dtype", "decode", "quality", "speed")


@dataclass(frozen=True)
class Cell:
    """One point of the grid before the best structure is chosen: a row job's settings, a method and a structure."""

    row: RowJob
    method: str
    structure: str
    budget: int

    @cached_property
    def config(self) -> dict[str, Any]:
        """All that the cell's content depends on."""
        own = {"schema": SCHEMA, "method": self.method, "structure": self.structure, "budget": self.budget}
        return {**self.row.content, **own}

    @property
    def name(self) -> str:
        """The readable part of `id`."""
        return f"{self.row.name}_{self.method}_{self.structure}"

    @cached_property
    def id(self) -> str:
        """Readable part and hash of `config`."""
        return f"{self.name}_{short_digest(self.config_json)}"

    @property
    def config_json(self) -> str:
        """`config` as text, always the same."""
        return json.dumps(self.config, sort_keys=True)

    def path(self, results: Path) -> Path:
        """Where the cell's record lies when it is done."""
        return results / "cells" / f"{self.id}.parquet"

    def seed(self, *parts: object) -> int:
        """A seed of its own for each part of the cell's work."""
        return seed_from(f"{self.id} {self.row.config.seed} {parts}")


@dataclass(frozen=True)
class RowJob:
    """All cells of one (drafter, target, dataset), which share two loaded models."""

    config: DictConfig

    @cached_property
    def name(self) -> str:
        """Drafter, target and dataset."""
        return "_".join(self.config[axis].name for axis in ("drafter", "target", "dataset"))

    @cached_property
    def label(self) -> str:
        """As the figure's rows are titled: "OPT-25K-2.6M, De-En"."""
        drafter, target = self.config.drafter.name.upper(), self.config.target.name.upper()
        family = drafter.split("-")[0] + "-"
        return f"{drafter}-{target.removeprefix(family)}, {self.config.dataset.label}"

    @cached_property
    def yaml(self) -> str:
        """The resolved configuration as text."""
        return OmegaConf.to_yaml(self.config)

    @cached_property
    def content(self) -> dict[str, Any]:
        """What the row's cells depend on. A local model or dataset counts by its contents, not by where it lies."""
        plain = OmegaConf.to_container(self.config, resolve=True)
        content = {key: plain[key] for key in SETTINGS}
        file = local_file(plain["dataset"]["path"])
        content["dataset"] = {**plain["dataset"], "path": file_digest(file) if file else plain["dataset"]["path"]}
        for role in ("drafter", "target"):
            mark = fingerprint(resolve_checkpoint(plain[role]["path"], plain[role]["revision"]))
            content[role] = {"name": plain[role]["name"], "contents": mark or plain[role]}
        return content

    @cached_property
    def cells(self) -> list[Cell]:
        """Autoregressive decoding first, then method by method and budget by budget.

        Raises:
            UsageError: an unknown method, a budget without structures, or a structure of another budget.
        """
        return [
            Cell(self, method, structure, get_shape(method, structure).budget)
            for method, structure in planned_cells(self.config)
        ]


def short_digest(text: str) -> str:
    """What a cell's name ends in, from its configuration as text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache
def file_digest(file: Path) -> str:
    """A short hash of a file's contents."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def planned_cells(config: DictConfig) -> list[tuple[str, str]]:
    """Method and structure of each cell of a row: autoregressive decoding first, then method by method.

    Raises:
        UsageError: an unknown method, a budget without structures, or a structure of another budget.
    """
    names = list(METHODS) if config.methods is None else config.methods
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"methods must be a list such as [sd,rsd_s], not '{names}'")
    if not isinstance(config.budgets, ListConfig) or not all(isinstance(b, int) for b in config.budgets):
        raise UsageError(f"budgets must be a list of numbers such as [6,30], not '{config.budgets}'")
    drafting = [name for name in dict.fromkeys(names) if not isinstance(get_method(name).drafting, NoDrafting)]
    budgets = dict.fromkeys(config.budgets)
    return [(BASELINE, "0")] + [(m, s) for m in drafting for b in budgets for s in structures_of(config, m, b)]


def structures_of(config: DictConfig, method: str, budget: Any) -> list[str]:
    """The structures of a method at a budget: from the configuration if it names any, else from the table.

    Raises:
        UsageError: there are none, or one has another number of nodes than the budget.
    """
    own: Mapping = (config.structures or {}).get(method, {})
    table = get_method(method).drafting.structures
    chosen = own.get(budget, own.get(str(budget))) or table.get(budget)
    if not chosen:
        known = ", ".join(map(str, table))
        raise UsageError(
            f"method '{method}' has no structures of budget {budget}: choose from {known}, or give "
            f"structures={{{method}: {{{budget}: [...]}}}}"
        )
    for structure in map(str, chosen):
        nodes = get_shape(method, structure).budget
        if nodes != budget:
            raise UsageError(
                f"structure '{structure}' of method '{method}' has {nodes} nodes, but its budget is {budget}: "
                "they must be equal"
            )
    return [str(s) for s in chosen][: config.max_structures]


def check_settings(config: DictConfig) -> None:
    """Everything about a row job that can be wrong and seen without loading a model.

    Raises:
        UsageError: the first thing that is wrong.
    """
    decode = config.decode
    for key, value, kind in (
        ("decode.temperature", decode.temperature, (int, float)),
        ("decode.top_p", decode.top_p, (int, float)),
        ("decode.max_new_tokens", decode.max_new_tokens, int),
        ("quality.batch_size", config.quality.batch_size, int),
        ("speed.num_prompts", config.speed.num_prompts, int),
        ("seed", config.seed, int),
    ):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UsageError(f"{key} must be a number, not '{value}'")
    Warp(decode.temperature, decode.top_p)
    for key, value, least in (
        ("decode.max_new_tokens", decode.max_new_tokens, 1),
        ("quality.batch_size", config.quality.batch_size, 1),
        ("speed.num_prompts", config.speed.num_prompts, 0),
    ):
        if value < least:
            raise UsageError(f"{key} must be at least {least}, not {value}")
    if config.dtype != "auto" and config.dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{config.dtype}': choose auto, {', '.join(DTYPES)}")
    if config.speed.num_prompts > config.dataset.num_prompts:
        raise UsageError(
            f"speed.num_prompts ({config.speed.num_prompts}) must not exceed dataset.num_prompts "
            f"({config.dataset.num_prompts})"
        )
