"""Where a result comes from: code, versions, device, host, job."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rsdbench import __version__
from rsdbench.sources import code_hash

PACKAGE = Path(__file__).resolve().parents[1]


def provenance(device: Any, dtype: str) -> dict[str, str]:
    """What every record of a process says of where it comes from. device: a `torch.device`."""
    import torch

    if device.type == "cpu":
        name = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    else:
        name = torch.get_device_module(device).get_device_name(device)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "job": slurm_job(),
        "device": f"{device} ({name})",
        "dtype": dtype,
        "git_commit": git_commit(),
        "code": code_hash(),
        "rsdbench": __version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }


def git_commit() -> str:
    """The commit of the checkout that this package runs from, and "dirty" if its files differ from it; "" outside."""
    commit = git("rev-parse", "HEAD")
    changed = commit and git("status", "--porcelain", "--untracked-files=no", "--", str(PACKAGE))
    return f"{commit} dirty" if changed else commit


def git(*arguments: str) -> str:
    """What git says of this package's folder; "" if it says nothing."""
    try:
        ran = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


def slurm_job() -> str:
    """The Slurm job that this process belongs to, as Slurm's tools name it: "17" or "17_3"; "" outside of one."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
