"""Compose the configuration of each row job with Hydra."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from rsdbench.engine.checkpoints import resolve_checkpoint
from rsdbench.errors import UsageError
from rsdbench.experiment.tasks import check_dataset

PACKAGE = Path(__file__).resolve().parents[1]
# inside an installed package, or beside it in a checkout
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
AXES = {"drafter": "drafters", "target": "targets", "dataset": "datasets"}


def compose(overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    """A configuration, and what was chosen for each config group.

    A launcher's worker process has no initialised Hydra, the main process has.
    """
    ready = GlobalHydra.instance().is_initialized()
    with nullcontext() if ready else hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra.compose("config", overrides, return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config.hydra
    OmegaConf.resolve(config)
    return config, choices


def row_configs(overrides: list[str]) -> list[DictConfig]:
    """The rows that a job runs: every value of an axis that is left at `all`, each row composed anew.

    overrides: the job's own, so that what the user changes on an axis applies to each of its values.

    Raises:
        UsageError: the experiment names no values for an axis that is left open.
    """
    config, choices = compose(overrides)
    values = []
    for axis, axes in AXES.items():
        chosen = choices[axis]
        alias = OmegaConf.to_container(config.dataset_alias) if axis == "dataset" else {}
        if chosen == "all" and not config.grid[axes]:
            raise UsageError(f"experiment '{config.name}' has no list of {axes}: choose one with {axis}=NAME")
        values.append([alias.get(v, v) for v in (config.grid[axes] if chosen == "all" else [chosen])])
    parsed = OverridesParser.create().parse_overrides(overrides)
    others = [text for text, o in zip(overrides, parsed, strict=True) if o.key_or_group not in AXES]
    return [
        compose([*others, *(f"{axis}={value}" for axis, value in zip(AXES, row, strict=True))])[0]
        for row in itertools.product(*values)
    ]


def check_sources(config: DictConfig) -> None:
    """Find a row's models and dataset, without loading them or importing torch: what is not there is said at once.

    Raises:
        UsageError: a model or the dataset is neither on disk nor reachable.
    """
    for role in ("drafter", "target"):
        if not isinstance(config[role].path, str):
            raise UsageError(f"{role}.path is not set: choose a {role}")
        resolve_checkpoint(config[role].path, config[role].revision)
    check_dataset(config.dataset)
