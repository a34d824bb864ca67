"""Where a model or tokenizer name leads: embedded in the package, a folder, or the hub. No model code is imported."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from rsdbench.errors import UsageError

MODELS = Path(__file__).resolve().parents[1] / "assets" / "models"
REACH_TIMEOUT = 2.5  # seconds to hear from the hub before a model counts as unreachable
SAMPLE = 1 << 20  # bytes read at each end of a weight file for a fingerprint
# what a checkpoint's weights begin with, in the order in which transformers looks
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def embedded_models() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(p.parent.name for p in MODELS.glob("*/config.json"))


def resolve_checkpoint(name: str, revision: str | None = None) -> str:
    """An embedded name or a folder -> the folder; a hub id that is cached or reachable -> itself.

    Raises:
        UsageError: it is none of them, or lacks a part of its weights; within seconds, without retries.
    """
    folder = local_checkpoint(name)
    if folder is None:
        require_hub(name, revision)
        return name
    if problem := weights_problem(folder):
        raise UsageError(f"model '{name}' cannot be loaded: {problem}; copy or download it again")
    return str(folder)


def load_source(name: str, revision: str | None = None) -> tuple[str, str]:
    """What transformers takes: an embedded, local or cached folder, else a hub id; and a revision.

    Raises:
        UsageError: as in `resolve_checkpoint`.
    """
    path = resolve_checkpoint(name, revision)
    if local_checkpoint(name) is None:
        folder = cached_checkpoint(name, revision)
        if folder is None or weights_problem(folder):
            return name, revision or "main"
        path = str(folder)
    return path, "main"


def local_checkpoint(name: str) -> Path | None:
    """The folder of an embedded or local model, or None if `name` can only be a hub id. The hub is not asked.

    Raises:
        UsageError: it is neither a model's folder nor of a hub id's form.
    """
    if (MODELS / name / "config.json").is_file():
        return MODELS / name
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(f"model folder '{name}' has no config.json: give a folder in Hugging Face layout")
        return folder
    if folder.is_file():
        raise UsageError(f"model '{name}' is a file: give the folder in Hugging Face layout that it is in, or a hub id")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UsageError(
            f"no model '{name}': give an embedded one ({', '.join(embedded_models())}), a folder, or a hub id"
        )
    return None


def cached_checkpoint(name: str, revision: str | None = None) -> Path | None:
    """The folder of a hub id's revision in the local cache, named by its commit, if there is one with a model."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name

    file = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(file, str):
        return Path(file).parent
    home = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    ref = home / "refs" / (revision or "main")
    commit = ref.read_text().strip() if ref.is_file() else ""  # an editor may have ended it with a new line
    folder = home / "snapshots" / commit
    return folder if commit and (folder / "config.json").is_file() else None


def hub_commit(name: str, revision: str | None = None) -> str | None:
    """The commit that a hub id's revision stands for in the local cache; None for any other model."""
    folder = cached_checkpoint(name, revision) if local_checkpoint(name) is None else None
    return folder.name if folder else None


@lru_cache
def require_hub(name: str, revision: str | None = None) -> None:
    """Check that a hub id's revision is whole in the local cache, or can be reached now.

    Raises:
        UsageError: it is neither.
    """
    lack = hub_problem(name, revision)
    if lack is None:
        return
    why = "HF_HUB_OFFLINE is set" if offline() else unreachable(name, revision)
    if why:
        raise UsageError(f"model '{name}' {lack} and {why}: download it first or give a local path")


def hub_problem(name: str, revision: str | None) -> str | None:
    """What the local cache lacks of a hub id's revision; None if it has all of it."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = cached_checkpoint(name, revision)
    if folder is not None:
        problem = weights_problem(folder)
        return problem and f"is not whole on disk ({problem})"
    home = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    there = ", ".join(sorted(file.name for file in (*home.glob("refs/*"), *home.glob("snapshots/*"))))
    if not there:
        return "is not on disk"
    where = f"(there: {there}; choose one with target.revision= or drafter.revision=),"
    return f"is on disk, but not in revision '{revision or 'main'}' {where}"


def offline() -> bool:
    """Whether the user has told the hub's library to stay off the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def unreachable(name: str, revision: str | None) -> str | None:
    """Why the hub does not give a repository; None if it does."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    pool = ThreadPoolExecutor(1)
    try:
        pool.submit(HfApi().repo_info, name, revision=revision).result(REACH_TIMEOUT)
    except RepositoryNotFoundError:
        return "the hub has no such repository"
    except RevisionNotFoundError:
        return f"the hub has no revision '{revision}' of it"
    except Exception:  # whichever way the network fails, the answer is the same
        return "the hub cannot be reached"
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return None


def weights_problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint's weights, from names, headers and sizes alone; None if nothing is."""
    first = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        return f"it has no weights ({', '.join(WEIGHTS)})"
    try:
        files = shards(first) if first.suffix == ".json" else [first]
        for file in files:
            if not file.is_file():
                return f"shard '{file.name}' is missing, which '{first.name}' names"
            if is_truncated(file):
                return f"'{file.name}' is truncated or damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"'{first.name}' is damaged"
    return None


def shards(index: Path) -> list[Path]:
    """The files that an index names."""
    return [index.with_name(name) for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def is_truncated(file: Path) -> bool:
    """Whether a weight file is shorter than it says, or is none. Old `.bin` files, which are no zip, do not say."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if file.suffix == ".bin":
            return not (zipfile.is_zipfile(file) if start[:2] == b"PK" else start[:1] == b"\x80")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or 8 + length > size:
            return True
        header = json.loads(stream.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size != 8 + length + max(ends, default=0)


def fingerprint(path: str) -> str:
    """A short hash of a local checkpoint's contents (names, sizes, both ends of each file); "" for a hub id."""
    folder = Path(path)
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin", ".json"):
            digest.update(f"{file.name} {file.stat().st_size} ".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(SAMPLE))
                stream.seek(max(0, file.stat().st_size - SAMPLE))
                digest.update(stream.read())
    return digest.hexdigest()[:16]
