"""Where a model or tokenizer name leads: embedded in the package, a folder, or the hub. No model code is imported."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from rsdbench.errors import UsageError

MODELS = Path(__file__).resolve().parents[1] / "assets" / "models"
REACH_TIMEOUT = 2.5  # seconds to hear from the hub before a model counts as unreachable
SAMPLE = 1 << 20  # bytes read at each end of a weight file for a fingerprint


def embedded_models() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(p.parent.name for p in MODELS.glob("*/config.json"))


def resolve_checkpoint(name: str, revision: str | None = None) -> str:
    """An embedded name or a folder -> the folder; a hub id that is cached or reachable -> itself.

    Raises:
        UsageError: it is none of them; within seconds, without retries.
    """
    if (MODELS / name / "config.json").is_file():
        return str(MODELS / name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(f"model folder '{name}' has no config.json: give a folder in Hugging Face layout")
        return str(folder)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UsageError(
            f"no model '{name}': give an embedded one ({', '.join(embedded_models())}), a folder, or a hub id"
        )
    require_hub(name, revision, "model")
    return name


@lru_cache
def require_hub(name: str, revision: str | None, kind: str) -> None:
    """Check that a hub repository ("model" or "dataset") is in the local cache or can be reached now.

    Raises:
        UsageError: it is neither.
    """
    from huggingface_hub import HfApi, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound, RepositoryNotFoundError

    try:
        if any(repo.repo_id == name and repo.repo_type == kind for repo in scan_cache_dir().repos):
            return
    except CacheNotFound:
        pass
    why = "the hub cannot be reached"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        why = "HF_HUB_OFFLINE is set"
    else:
        pool = ThreadPoolExecutor(1)
        try:
            pool.submit(HfApi().repo_info, name, revision=revision, repo_type=kind).result(REACH_TIMEOUT)
            return
        except RepositoryNotFoundError:
            why = "the hub has no such repository"
        except Exception:  # whichever way the network fails, the answer is the same
            pass
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    raise UsageError(f"{kind} '{name}' is not on disk and {why}: download it first or give a local path")


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
