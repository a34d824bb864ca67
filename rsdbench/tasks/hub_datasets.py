"""Datasets of the Hugging Face hub: from its cache, from the hub, or from what `datasets` has prepared before."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from rsdbench.errors import UsageError
from rsdbench.models.checkpoints import REACH_TIMEOUT, offline
from rsdbench.tasks.splits import parquet_paths, split_files
from rsdbench.tasks.tables import Split, parquet_split, table_split

COMMIT = re.compile(r"[0-9a-f]{40}")


class OutOfReachError(Exception):
    """The hub cannot be asked; says why."""


def hub_split(name: str, config: str | None, split: str | None, revision: str | None, fetch: bool) -> Split | None:
    """The rows of a hub dataset's split; None if they are on the hub, not on disk, and are not to be fetched.

    What `hf download` or an earlier run left in the hub cache is taken first, at the revision asked for; then the hub
    is asked, and gives the files of this one split; where it is out of reach, what `datasets` has prepared earlier
    serves.

    Raises:
        UsageError: there is no such dataset, revision, config or split; or it is neither on disk nor within reach.
    """
    problem = None
    if folder := snapshot(name, revision):
        try:
            return parquet_split(cached_files(folder, name, config, split))
        except MissingFilesError as error:  # it may hold another part of the dataset
            problem = str(error)
    try:
        paths = remote_files(name, revision)
    except OutOfReachError as reason:
        if prepared := prepared_split(name, config, split, revision):
            return prepared
        problem = problem or f"dataset '{name}'{at(revision)} is not on disk{other_revisions(name)}"
        how = f"get it with: {download_command(name, config, split, revision)}"
        raise UsageError(f"{problem}, and {reason}: {how}, or give a local path") from None
    paths = [path for path in paths if path.endswith(".parquet")]  # beside which a repository has files about it
    if not paths:
        return table_split(load(name, config, split, revision)) if fetch else None
    files = split_files(paths, config, split, f"dataset '{name}'{at(revision)}")
    return parquet_split(download(name, revision, files)) if fetch else None


def at(revision: str | None) -> str:
    """A revision, for messages."""
    return f" at revision {revision}" if revision else ""


def download_command(name: str, config: str | None, split: str | None, revision: str | None) -> str:
    """What puts a split's files, and not those of others, into the hub cache."""
    files = "".join(f"*{part}" for part in (config, split) if part) + "*"
    return f"hf download {name} --repo-type dataset{f' --revision {revision}' if revision else ''} --include '{files}'"


class MissingFilesError(Exception):
    """The hub cache has not the files of a split; says what it has."""


def snapshot(name: str, revision: str | None) -> Path | None:
    """The folder of the hub cache that holds a dataset's files at a revision (a commit, branch, tag or other ref)."""
    repository = cached_repository(name)
    commit = revision or "main"
    if not COMMIT.fullmatch(commit):
        ref = repository / "refs" / commit
        if not ref.is_file():
            return None
        commit = ref.read_text().strip()
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() else None


def cached_repository(name: str) -> Path:
    """Where the hub cache keeps a dataset, if it has it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"datasets--{name.replace('/', '--')}"


def other_revisions(name: str) -> str:
    """The commits at which the hub cache has a dataset, for messages."""
    commits = sorted(folder.name for folder in cached_repository(name).glob("snapshots/*"))
    return f" (the hub cache has it at dataset.revision={' or '.join(commits)})" if commits else ""


def cached_files(folder: Path, name: str, config: str | None, split: str | None) -> list[Path]:
    """A split's files in a snapshot of the hub cache, which may hold only some of the dataset's files.

    Raises:
        MissingFilesError: it has not those.
    """
    where = f"dataset '{name}' in the hub cache"
    try:
        return [folder / path for path in split_files(parquet_paths(folder), config, split, where)]
    except UsageError as error:
        raise MissingFilesError(str(error)) from None


@lru_cache
def remote_files(name: str, revision: str | None) -> tuple[str, ...]:
    """Names of the files that the hub has of a dataset.

    Raises:
        OutOfReachError: the hub does not answer in time.
        UsageError: it has no such dataset or revision, or does not give it to everyone.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if offline():
        raise OutOfReachError("HF_HUB_OFFLINE is set")
    pool = ThreadPoolExecutor(1)
    try:
        answer = pool.submit(HfApi().repo_info, name, revision=revision, repo_type="dataset").result(REACH_TIMEOUT)
    except GatedRepoError:
        raise UsageError(f"dataset '{name}' is gated: accept its terms on the hub, then log in with hf auth") from None
    except RepositoryNotFoundError:
        raise UsageError(f"the hub has no dataset '{name}' that you may read: give another id or a path") from None
    except RevisionNotFoundError:
        raise UsageError(f"dataset '{name}' has no revision '{revision}': dataset.revision=null takes main") from None
    except Exception:  # whichever way the network fails, the answer is the same
        raise OutOfReachError("the hub cannot be reached") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return tuple(sibling.rfilename for sibling in answer.siblings or ())


def download(name: str, revision: str | None, files: list[str]) -> list[Path]:
    """Put files of a dataset into the hub cache; returns where they lie.

    Raises:
        UsageError: the download fails.
    """
    from huggingface_hub import hf_hub_download

    try:
        return [Path(hf_hub_download(name, file, repo_type="dataset", revision=revision)) for file in files]
    except Exception as error:  # of the network, of the disk, or of the hub
        raise UsageError(f"dataset '{name}' cannot be downloaded: {in_one_line(error)}") from error


def prepared_split(name: str, config: str | None, split: str | None, revision: str | None) -> Split | None:
    """The rows of a split that `datasets.load_dataset` has prepared in its own cache before; None if it has not.

    Raises:
        UsageError: it has prepared another config, split or commit of the dataset, and which.
    """
    from datasets.config import HF_DATASETS_CACHE
    from datasets.naming import camelcase_to_snakecase

    owner, base = name.split("/")
    folder = Path(HF_DATASETS_CACHE) / f"{owner}___{camelcase_to_snakecase(base)}"
    if not any(folder.glob("*/*/*/dataset_info.json")):
        return None
    data = load(name, config, split, None)
    commit = Path(data.cache_files[0]["filename"]).parent.name if data.cache_files else ""
    if revision and COMMIT.fullmatch(revision) and revision != commit:
        raise UsageError(
            f"`datasets` has prepared dataset '{name}' at revision {commit}, not {revision}, and the hub is out of "
            "reach: set dataset.revision=null to take it as it is"
        )
    return table_split(data)


def load(name: str, config: str | None, split: str | None, revision: str | None) -> Any:
    """A split as a `datasets.Dataset`.

    Raises:
        UsageError: `datasets` cannot load it.
    """
    import datasets

    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, config, split=split or "all", revision=revision)
    except Exception as error:  # of any of the file formats that `datasets` knows
        raise UsageError(f"dataset '{name}'{at(revision)} cannot be loaded: {in_one_line(error)}") from error


def in_one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
