"""From a configuration to row jobs and their cells, each named by its content."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rsdbench.drafters import is_drafter
from rsdbench.models.checkpoints import fingerprint, local_checkpoint
from rsdbench.plugins import plugin_hashes
from rsdbench.results.schema import SCHEMA, SETTINGS, short_digest
from rsdbench.seeds import seed_from
from rsdbench.selection import Point, points_of
from rsdbench.tasks.examples import dataset_content


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

    def seed(self, *parts: object) -> int:
        """A seed for what is the same in all of the row's cells."""
        return seed_from(f"{self.name} {self.config.seed} {parts}")

    @cached_property
    def yaml(self) -> str:
        """The resolved configuration as text."""
        return OmegaConf.to_yaml(self.config)

    @cached_property
    def content(self) -> dict[str, Any]:
        """What the row's cells depend on. A local model or dataset counts by its contents, not by where it lies."""
        plain = OmegaConf.to_container(self.config, resolve=True)
        content = {key: plain[key] for key in SETTINGS}
        if not plain["decode"]["profile"]:  # cells without this pass are what they were before it could be asked
            del content["decode"]["profile"]
        content["dataset"] = dataset_content(plain["dataset"])
        for role in ("drafter", "target"):
            model = {key: value for key, value in plain[role].items() if key != "quantization"}
            folder = None if is_drafter(model["path"]) else local_checkpoint(model["path"])
            content[role] = {"name": model["name"], "contents": fingerprint(str(folder)) if folder else model}
        # what came later is left out where it is not used: cells keep the names that they had before
        if plain["target"]["quantization"]:
            content["target"]["quantization"] = plain["target"]["quantization"]
        if plain["backend"]:
            content["backend"] = plain["backend"]
        if plain["plugins"]:
            content["plugins"] = plugin_hashes(plain["plugins"])
        if plain["max_memory"]:
            content["max_memory"] = {str(device): size for device, size in plain["max_memory"].items()}
        return content

    @cached_property
    def cells(self) -> list[Cell]:
        """Autoregressive decoding first, then method by method and budget by budget.

        Raises:
            UsageError: an unknown method, a budget without structures, or a structure of another budget.
        """
        return [Cell(self, point.method, point.structure, point.budget) for point in self.points]

    @cached_property
    def points(self) -> list[Point]:
        """The same as methods and structures."""
        return points_of(self.config)
