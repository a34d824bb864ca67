"""`rsdbench run`: compose the rows of an experiment with Hydra and run their missing cells."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rsdbench.errors import UsageError
from rsdbench.experiment.compose import CONFIGS, check_sources, row_configs


def job(_: DictConfig) -> None:
    """A Hydra job. Bad input ends it as an exit, not as an exception, which Hydra would announce in its own words."""
    try:
        run_rows(list(HydraConfig.get().overrides.task))
    except UsageError as error:
        print(f"rsdbench: {error}", file=sys.stderr)
        sys.exit(2)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"rsdbench: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


def run_rows(overrides: list[str]) -> None:
    """Check every row of a job before the first model is loaded, then run them one after another."""
    configs = row_configs(overrides)
    for row_config in configs:
        check_sources(row_config)

    from rsdbench.experiment import records
    from rsdbench.experiment.cells import RowJob, check_settings

    for row_config in configs:
        check_settings(row_config)
    rows = [RowJob(row_config) for row_config in configs]
    results = Path(hydra.utils.to_absolute_path(configs[0].results))
    cells = [cell for row in rows for cell in row.cells]
    records.prepare(results)
    missing = sum(not records.is_done(cell, results) for cell in cells)
    if not missing:
        print(f"all {len(cells)} cells are done already: {results}")
        return

    from rsdbench.engine.models import quiet_libraries
    from rsdbench.experiment.runner import run_row
    from rsdbench.faces.progress import Progress

    quiet_libraries()
    with Progress(missing) as progress:
        for row in rows:
            progress.row(row.label)
            run_row(row, results, progress.finished)
    print(f"{missing} cells done, {len(cells) - missing} were there already: {results}")


def one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's messages in a line."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"unknown {group} '{name}': choose from {', '.join(sorted(error.options))}"
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    lines = [line.strip() for cause in causes for line in str(cause).splitlines()]
    return " ".join(dict.fromkeys(line for line in lines if line and not line.startswith(("full_key", "object_type"))))


def main(arguments: list[str]) -> None:
    """Hand over to Hydra.

    Raises:
        UsageError: an override, a group's choice or a setting is wrong.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed
    sys.argv = ["rsdbench run", *arguments]
    application = hydra.main(config_path=str(CONFIGS), config_name="config", version_base="1.3")(job)
    try:
        application()
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(one_line(error)) from None
