"""What this machine has of what an experiment needs. No model is loaded; the network costs seconds at the most."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rsdbench import __version__
from rsdbench.backends.aot.library import compiler_at_hand
from rsdbench.drafters import is_drafter
from rsdbench.errors import UsageError
from rsdbench.models.checkpoints import cached_checkpoint, hub_problem, local_checkpoint, weights_problem
from rsdbench.models.quantization import EXTRA
from rsdbench.runner.footprint import GIB
from rsdbench.runner.provenance import slurm_job
from rsdbench.tasks.examples import chosen_rows, open_split
from rsdbench.tasks.hub_datasets import download_command
from rsdbench.tasks.splits import local_data

OK, MISSING, PARTIAL, ABSENT = "ok", "missing", "partial", "absent"  # absent: and not needed
LIBRARIES = ("transformers", "datasets", "accelerate", "huggingface_hub", "tokenizers", "safetensors", "hydra-core")
FOREIGN = ("*.h5", "*.msgpack")  # weights for other frameworks, as large as those that are needed


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; remedy: how to get it, if it is not there."""

    state: str
    subject: str
    detail: str
    remedy: str = ""

    @property
    def lacking(self) -> bool:
        """Whether the experiment cannot run without it."""
        return self.state in (MISSING, PARTIAL)


def findings_of(configs: Sequence[DictConfig]) -> list[Finding]:
    """Versions, devices, tools and disks, then the models and datasets of some rows."""
    return [*versions(), *devices(), *tools(configs), *disks(configs), *models(configs), *datasets(configs)]


def versions() -> list[Finding]:
    """What runs."""
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return [
        Finding(OK, "rsdbench", f"{__version__}, Python {platform.python_version()}"),
        Finding(OK, "torch", f"{torch.__version__}, {cuda}"),
        Finding(OK, "libraries", ", ".join(f"{name} {version(name)}" for name in LIBRARIES)),
    ]


def devices() -> list[Finding]:
    """GPUs with their memory, and the host."""
    import psutil
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        found.append(Finding(OK, f"cuda:{index}", f"{name}, {total / GIB:.1f} GiB, {free / GIB:.1f} free"))
    if not found:
        found.append(Finding(ABSENT, "GPU", "torch sees none: device=auto takes the CPU"))
    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    detail = f"{cores} cores, {memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} free"
    return [*found, Finding(OK, "CPU", detail)]


def tools(configs: Sequence[DictConfig]) -> list[Finding]:
    """Compiler, Slurm, and the libraries of optional features."""
    if compiler_at_hand():
        compiler = Finding(OK, "C++ compiler", "forwards on a CPU are compiled")
    else:
        needed = any(config.compile is True for config in configs)
        remedy = "install g++, or take compile=auto" if needed else ""
        compiler = Finding(MISSING if needed else ABSENT, "C++ compiler", "forwards on a CPU run as they are", remedy)
    sbatch, job = shutil.which("sbatch"), f", this is job {slurm_job()}" if slurm_job() else ""
    slurm = Finding(OK, "Slurm", f"{sbatch}{job}") if sbatch else Finding(ABSENT, "Slurm", "there is no sbatch")
    return [
        compiler,
        slurm,
        quantization_finding({OmegaConf.select(config, "target.quantization") for config in configs} - {None}),
    ]


def quantization_finding(kinds: set[str]) -> Finding:
    """Whether targets can be quantised, as some rows ask for."""
    if find_spec("torchao") is not None:
        return Finding(OK, "quantization", f"torchao {version('torchao')}")
    if kinds:
        return Finding(MISSING, "quantization", f"{' and '.join(sorted(kinds))} of targets needs torchao", EXTRA)
    return Finding(ABSENT, "quantization", f"int8 and int4 of targets need torchao: {EXTRA}")


def disks(configs: Sequence[DictConfig]) -> list[Finding]:
    """Room for results, and where the hub's files are kept."""
    from huggingface_hub import constants

    found = [results_finding(Path(path)) for path in dict.fromkeys(config.results for config in configs)]
    cache = Path(constants.HF_HUB_CACHE)
    mode = "offline mode is set" if constants.HF_HUB_OFFLINE else "offline mode is not set"
    return [*found, Finding(OK, "hub cache", f"{cache}, {free_gib(cache):.1f} GiB free; {mode}")]


def results_finding(folder: Path) -> Finding:
    """Whether results can be written."""
    detail = f"{folder}, {free_gib(folder):.1f} GiB free"
    if os.access(existing(folder), os.W_OK):
        return Finding(OK, "results", detail)
    return Finding(MISSING, "results", f"{detail}, but it cannot be written", "give another one with results=DIR")


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def free_gib(folder: Path) -> float:
    """Room on the disk that a folder is on, or will be."""
    return shutil.disk_usage(existing(folder)).free / GIB


def models(configs: Sequence[DictConfig]) -> list[Finding]:
    """Each drafter and target."""
    asked = [
        (role, config[role].name, config[role].path, config[role].revision)
        for role in ("drafter", "target")
        for config in configs
        if not is_drafter(config[role].path)
    ]
    return [model_finding(f"{role} {name}", path, revision) for role, name, path, revision in dict.fromkeys(asked)]


def model_finding(subject: str, path: str, revision: str | None) -> Finding:
    """Whether a model is on disk with all its weights."""
    try:
        folder = local_checkpoint(path)
    except UsageError as error:
        return Finding(MISSING, subject, str(error))
    if folder is not None:
        problem = weights_problem(folder)
        return Finding(PARTIAL, subject, f"{folder}: {problem}") if problem else Finding(OK, subject, str(folder))
    if problem := hub_problem(path, revision):
        state = PARTIAL if cached_checkpoint(path, revision) else MISSING
        return Finding(state, subject, f"{path} {problem}".rstrip(","), model_command(path, revision))
    return Finding(OK, subject, str(cached_checkpoint(path, revision)))


def model_command(name: str, revision: str | None) -> str:
    """How to get a model from the hub, without weights for other frameworks."""
    version = f" --revision {revision}" if revision else ""
    return f"hf download {name}{version}" + "".join(f" --exclude '{pattern}'" for pattern in FOREIGN)


def datasets(configs: Sequence[DictConfig]) -> list[Finding]:
    """Each dataset."""
    return [dataset_finding(c.dataset) for c in {str(config.dataset): config for config in configs}.values()]


def dataset_finding(config: DictConfig) -> Finding:
    """Whether a dataset is on disk, with enough rows and all their columns."""
    subject = f"dataset {config.name}"
    try:
        local = local_data(config.path)
    except UsageError as error:
        return Finding(MISSING, subject, str(error))
    remedy = "" if local else download_command(config.path, config.config, config.split, config.revision)
    try:
        split = open_split(config, fetch=False)
    except UsageError as error:
        return Finding(MISSING, subject, str(error).partition(": get it with")[0], remedy)
    if split is None:
        return Finding(MISSING, subject, f"{config.path} is on the hub, and not on this disk", remedy)
    try:
        chosen_rows(config, split)
    except UsageError as error:
        return Finding(PARTIAL, subject, str(error))
    return Finding(OK, subject, f"{config.path}, {split.count:,} rows, of which {config.num_prompts:,} are used")
