"""Compile all that a run will call before it decodes, on all cores, in processes of their own.

Each graph takes one core 6 to 20 seconds, most of it in Python, so processes and not threads share them. They read the
models anew; pairs too large to be in memory several times are compiled one graph after another where they first run.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Protocol

import torch
from omegaconf import DictConfig, OmegaConf

from rsdbench.backends.aot.library import Recipe, cache_folder
from rsdbench.backends.aot.recipes import needed
from rsdbench.errors import UsageError
from rsdbench.methods import get_method, get_shape, load, tree_rule
from rsdbench.pair import Pair, parameters, quiet_libraries
from rsdbench.plugins import load_plugins
from rsdbench.runner.cells import RowJob
from rsdbench.runner.pairs import found_pair, free_memory
from rsdbench.sampling.distributions import Sampling

LARGE = 2**28  # parameters of a pair from which on only one process holds it
SHORT = ("finish", "commit")  # graphs that take a few seconds: they fill the gaps at the end
LOADED: dict[str, dict[str, Recipe]] = {}  # in a worker process: a row's recipes, by its configuration


class Watcher(Protocol):
    """Is told how compiling goes on."""

    def compiling(self, done: int, total: int, workers: int, what: str, folder: str) -> None:
        """So many graphs of all are compiled, `what` just now; they are kept in a folder for later runs."""


def precompile(rows: Sequence[RowJob], watcher: Watcher) -> list[str]:
    """Compile what the rows' cells will call and is not on disk. Returns a line for each graph that cannot be.

    What cannot be compiled here runs uncompiled, or ends in an error of its own, when a cell comes to it.
    """
    missing: dict[str, tuple[str, str]] = {}  # file -> title, configuration
    for row in rows:
        with suppress(UsageError):  # a row that cannot run says so when its turn comes
            text = OmegaConf.to_yaml(row.config)
            found = recipes_of(row.config)
            missing |= {name: (recipe.title, text) for name, recipe in found.items() if not recipe.path.exists()}
    free_memory()
    if not missing:
        return []
    names = sorted(missing, key=lambda name: name.startswith(SHORT))
    workers = min(len(names), cores())
    folder, problems = str(cache_folder()), []
    watcher.compiling(0, len(names), workers, "", folder)
    with processes(workers) as pool:
        builds = {pool.submit(build, missing[name][1], name): name for name in names}
        for done, future in enumerate(as_completed(builds), 1):
            title = missing[builds[future]][0]
            try:
                problem = future.result()
            except BrokenProcessPool:  # killed, most likely for memory: its cells compile one graph after another
                problem = "the process that compiled it was killed"
            if problem:
                problems.append(f"{title}: {problem}")
            watcher.compiling(done, len(names), workers, title, folder)
    return problems


def recipes_of(config: DictConfig) -> dict[str, Recipe]:
    """All that is compiled for a row, by file; nothing for pairs that are large, on a GPU or not to be compiled.

    Raises:
        UsageError: the pair or a structure cannot be used.
    """
    load_plugins(config.plugins)  # in a worker process
    if config.compile is False or config.backend:
        return {}
    found = found_pair(config)
    if sum(parameters(getattr(source, "shell", source)) for source in (found.target, found.drafter)) > LARGE:
        return {}
    pair: Pair = found.load(check=False)
    if not pair.can_compile or pair.device.type != "cpu":
        return {}
    decode = config.decode
    methods = [(get_method(cell.method), get_shape(cell.method, cell.structure)) for cell in RowJob(config).cells]
    cases = [(load(method.strategy), tree_rule(method), shape) for method, shape in methods]
    return needed(pair.target, pair.drafter, cases, Sampling.at(decode.temperature, decode.top_p))


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes, which do not outlive an exception in here: a signal leaves no time for what they are at."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, initializer=begin, initargs=(torch.get_num_threads(),))
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def begin(threads: int) -> None:
    """In a worker process: the threads that graphs are compiled for, and no bars of libraries."""
    torch.set_num_threads(threads)
    quiet_libraries()


def build(config: str, name: str) -> str:
    """In a worker process: compile one graph of a row; returns why it cannot be, or ""."""
    if config not in LOADED:
        LOADED.clear()
        LOADED[config] = recipes_of(OmegaConf.create(config))
    if name not in LOADED[config]:
        return "this process finds other graphs than the one that decodes"
    try:
        LOADED[config][name].build()
    except UsageError as error:
        return str(error)
    return ""
