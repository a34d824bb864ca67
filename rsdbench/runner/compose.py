"""Compose the configuration of each row job with Hydra."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import nullcontext
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from rsdbench.drafters import fitting, is_certain, is_drafter
from rsdbench.errors import UsageError
from rsdbench.methods import METHODS
from rsdbench.models.checkpoints import local_checkpoint, resolve_checkpoint
from rsdbench.models.quantization import check_quantization
from rsdbench.notes import note
from rsdbench.plugins import load_plugins
from rsdbench.results.schema import AXES
from rsdbench.tasks.examples import check_dataset

PACKAGE = Path(__file__).resolve().parents[1]
# inside an installed package, or beside it in a checkout
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
LONGEST_NAME = 60  # characters: three of them, a method and a hash make a file's name
CUSTOM = "custom"  # the choice of an axis that the user gives a path


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
    load_plugins(config.plugins)
    if config.methods is None:
        asked = list(config.grid.methods or METHODS)  # all by name: what a record asks for must not grow
        config.methods = fitting(asked, is_certain(config.drafter.path))
        left = [name for name in asked if name not in config.methods]
        if left:
            note(f"without {', '.join(left)}: drafter '{config.drafter.path}' has no distribution to draw from")
    for axis in AXES:
        fill_in(config[axis])
        check_name(axis, config[axis])
    return config, choices


def fill_in(chosen: DictConfig) -> None:
    """What a choice of an axis leaves open follows from the rest: the name from the path, the label from the name.

    A "\\n" in a prompt's texts, as shells pass it on, is a new line.
    """
    if chosen.name is None:
        path = Path(str(chosen.path or CUSTOM))
        chosen.name = (path.stem if "template" in chosen else path.name)[:LONGEST_NAME]
    if "label" in chosen and chosen.label is None:
        chosen.label = chosen.name
    for key in ("template", "instruction"):
        if isinstance(chosen.get(key), str):
            chosen[key] = chosen[key].replace("\\n", "\n")


def check_name(axis: str, chosen: DictConfig) -> None:
    """See that a choice's name can be a part of a file's; a number is taken as text.

    Raises:
        UsageError: it cannot.
    """
    chosen.name = str(chosen.name)
    if not chosen.name.strip() or len(chosen.name) > LONGEST_NAME or re.search(r"[/\\\x00-\x1f]", chosen.name):
        raise UsageError(
            f"{axis}.name is a part of files' names: it must have 1 to {LONGEST_NAME} characters and no slash, not "
            f"'{chosen.name[:100]}'"
        )


def row_jobs(overrides: list[str]) -> list[tuple[list[str], DictConfig]]:
    """The rows that a job runs: every value of an axis that is left at `all`, each row composed anew.

    An axis that is left there, but has a path, is one model or dataset of the user's own.

    overrides: the job's own, so that what the user changes on an axis applies to each of its values.
    Returns each row's own overrides, which compose that row alone, and its configuration.

    Raises:
        UsageError: the experiment names no values for an axis that is left open.
    """
    config, choices = compose(overrides)
    values = []
    for axis, axes in AXES.items():
        chosen = CUSTOM if choices[axis] == "all" and config[axis].path is not None else choices[axis]
        alias = OmegaConf.to_container(config.dataset_alias) if axis == "dataset" else {}
        if chosen == "all" and not config.grid[axes]:
            raise UsageError(f"experiment '{config.name}' has no list of {axes}: choose one with {axis}=NAME")
        values.append([alias.get(v, v) for v in (config.grid[axes] if chosen == "all" else [chosen])])
    others = [text for text, o in zip(overrides, parsed(overrides), strict=True) if o.key_or_group not in AXES]
    jobs = [
        [*others, *(f"{axis}={value}" for axis, value in zip(AXES, row, strict=True))]
        for row in itertools.product(*values)
    ]
    return [(job, compose(job)[0]) for job in jobs]


def row_configs(overrides: list[str]) -> list[DictConfig]:
    """The configurations of `row_jobs`."""
    return [config for _, config in row_jobs(overrides)]


SEARCH = "hydra.searchpath"  # folders of a user's own config groups


def with_config_dir(arguments: list[str]) -> list[str]:
    """Arguments in which Hydra's `--config-dir FOLDER` is the override that means the same in sweeps and plans.

    Raises:
        UsageError: there is no such folder.
    """
    found, rest = [], iter(arguments)
    for argument in rest:
        flag, given, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            folder = Path(value if given else next(rest, "")).expanduser().absolute()
            if not folder.is_dir():
                raise UsageError(f"--config-dir needs a folder that is there, not '{folder}'")
            argument = f"{SEARCH}=['file://{folder}']"
        found.append(argument)
    return found


def sweep(overrides: list[str]) -> list[list[str]]:
    """The jobs that Hydra's `-m` makes of overrides such as `seed=0,1`, without those that configure Hydra itself.

    Raises:
        UsageError: an override takes its values from a pattern, which says too little to be frozen.
    """
    choices = []
    for text, override in zip(overrides, parsed(overrides), strict=True):
        if override.key_or_group.startswith(("hydra/", "hydra.")) and override.key_or_group != SEARCH:
            continue
        if override.is_sweep_override():
            key = override.get_key_element()
            try:
                choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            except HydraException:  # a glob
                raise UsageError(f"'{text}' is a pattern: list the values, as in {key}=A,B") from None
        else:
            choices.append([text])
    return [list(job) for job in itertools.product(*choices)]


def parsed(overrides: list[str]) -> list[Override]:
    """Overrides in Hydra's grammar.

    Raises:
        UsageError: one adds a setting, which nobody would read.
    """
    found = OverridesParser.create().parse_overrides(overrides)
    for override in found:
        name = override.key_or_group
        if (override.is_add() or override.is_force_add()) and not name.startswith("hydra") and name not in settings():
            raise UsageError(no_setting(name))
    return found


@lru_cache
def settings() -> tuple[str, ...]:
    """All settings that can be overridden, and the config groups."""
    config, choices = compose([])
    return (*choices, *flat(OmegaConf.to_container(config)))


def flat(nested: dict[str, Any], above: str = "") -> Iterator[str]:
    """Names of all settings, joined by dots."""
    for key, value in nested.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from flat(value, f"{above}{key}.")


def no_setting(name: str) -> str:
    """What is said of a setting that does not exist."""
    close = get_close_matches(name, settings(), 1, 0.5)
    meant = f": did you mean {close[0]}?" if close else ""
    return f"there is no setting '{name}'{meant} (rsdbench run --help lists all)"


def check_sources(config: DictConfig, here: bool = True) -> None:
    """Find a row's models and dataset, without loading them or importing torch: what is not there is said at once.

    here: whether those of the hub must be on disk or reachable.

    Raises:
        UsageError: a model or the dataset is neither on disk nor reachable, or the target cannot be quantised.
    """
    for role in ("drafter", "target"):
        if not isinstance(config[role].path, str):
            raise UsageError(f"{role}.path is not set: choose a {role}")
        if role == "drafter" and is_drafter(config[role].path):
            continue
        if here or local_checkpoint(config[role].path):
            resolve_checkpoint(config[role].path, config[role].revision)
    if here:
        check_quantization(config.target.quantization)
    check_dataset(config.dataset, here)
