"""One parquet file a cell, complete or absent: the only record of a run."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from rsdbench import __version__
from rsdbench.errors import UsageError
from rsdbench.experiment.cells import Cell
from rsdbench.files import check_writable, whole_file

COLUMNS = pa.schema(
    [
        ("cell_id", pa.string()),
        ("experiment", pa.string()),
        ("row", pa.string()),  # the figure's row, such as "OPT-25K-2.6M, De-En"
        ("drafter", pa.string()),
        ("target", pa.string()),
        ("dataset", pa.string()),
        ("method", pa.string()),
        ("structure", pa.string()),
        ("budget", pa.int32()),
        ("depth", pa.int32()),  # drafter calls a block
        ("seed", pa.int64()),
        ("prompt_id", pa.string()),
        ("phase", pa.string()),  # quality: decoded in batches; speed: at batch 1, in turns with AR
        ("prompt_tokens", pa.int32()),
        ("source_cut", pa.int32()),  # characters of the source that did not fit
        ("new_tokens", pa.int32()),
        ("blocks", pa.int32()),
        ("accepted_by_depth", pa.list_(pa.int32())),
        ("tokens", pa.list_(pa.int32())),
        ("prefill_s", pa.float64()),  # times of the quality phase are the batch's, divided by its prompts
        ("decode_s", pa.float64()),
        ("draft_s", pa.float64()),
        ("target_s", pa.float64()),
        ("verify_s", pa.float64()),
        ("commit_s", pa.float64()),
        ("ar_new_tokens", pa.int32()),  # speed phase: AR on the same prompt, in turns
        ("ar_decode_s", pa.float64()),
        ("text", pa.string()),
        ("reference", pa.string()),
        ("metric", pa.string()),  # bleu or rouge2
        ("drafter_params", pa.int64()),
        ("target_params", pa.int64()),
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("max_new_tokens", pa.int32()),
        ("batch_size", pa.int32()),
        ("device", pa.string()),
        ("dtype", pa.string()),
    ]
)


def prepare(results: Path) -> None:
    """Make the folder of the cells and see that it can be written.

    Raises:
        UsageError: it cannot.
    """
    try:
        check_writable(results / "cells")
    except OSError as error:
        reason = error.strerror or str(error)
        hint = "give another one with results=DIR"
        raise UsageError(f"results folder '{results}' cannot be written ({reason}): {hint}") from None


def write(cell: Cell, results: Path, rows: list[dict[str, Any]], metadata: dict[str, str]) -> None:
    """Write a cell's record, complete or not at all."""
    table = pa.Table.from_pylist(rows, COLUMNS)
    metadata = {**metadata, "config": cell.row.yaml, "cell": json.dumps(cell.config)}
    table = table.replace_schema_metadata({f"rsdbench.{key}": value for key, value in metadata.items()})
    with whole_file(cell.path(results)) as stream:
        pq.write_table(table, stream, write_page_checksum=True)


def is_done(cell: Cell, results: Path) -> bool:
    """Whether the cell's record is there and whole."""
    path = cell.path(results)
    return path.is_file() and read_file(path) is not None


def read_file(path: Path) -> pa.Table | None:
    """A record, or None if it is damaged or of another schema; page checksums are verified."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError):
        return None
    return table if table.num_rows and table.schema.equals(COLUMNS, check_metadata=False) else None


def provenance(device: Any, dtype: str) -> dict[str, str]:
    """What every record of a job says of where it comes from."""
    import torch

    if device.type == "cpu":
        name = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    else:
        name = torch.get_device_module(device).get_device_name(device)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "device": f"{device} ({name})",
        "dtype": dtype,
        "git_commit": git_commit(),
        "rsdbench": __version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }


def git_commit() -> str:
    """The commit of the checkout that this package runs from; "" outside of one."""
    here = Path(__file__).resolve().parent
    try:
        ran = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip()


def read(results: Path) -> pd.DataFrame:
    """All records of a results folder.

    Raises:
        UsageError: there is no such folder, it holds no record, or one is damaged.
    """
    folder = results / "cells"
    files = sorted(folder.glob("[!.]*.parquet"))
    if not files:
        raise UsageError(f"'{results}' holds no results: there is no record in '{folder}'")
    tables = {file: read_file(file) for file in files}
    damaged = [file.name for file, table in tables.items() if table is None]
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise UsageError(
            f"damaged record '{folder / damaged[0]}'{more}: run the same experiment again, which recomputes it, "
            "or delete the file"
        )
    return pa.concat_tables([table.replace_schema_metadata() for table in tables.values()]).to_pandas()


def newest_config(results: Path) -> DictConfig:
    """The configuration that the newest record was made with."""
    newest = max((results / "cells").glob("[!.]*.parquet"), key=lambda file: file.stat().st_mtime)
    return OmegaConf.create(pq.read_schema(newest).metadata[b"rsdbench.config"].decode())
