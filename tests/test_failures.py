"""A device that runs out of memory in the middle of a cell: what is said, what is kept, what is given back."""

import gc
import weakref

import pytest
import torch

import rsdbench
from rsdbench.backends.eager import CachedLM
from rsdbench.cli import run as face
from rsdbench.decoding.kv_cache import KVStorage
from rsdbench.pair import FoundPair
from rsdbench.runner import pairs, run
from rsdbench.runner.plan import planned_rows
from rsdbench.runner.status import status

from . import commands
from .commands import SMALL, cells
from .commands import rsdbench as command
from .conftest import make_pair

MESSAGE = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB is free."
    "\nSee documentation for Memory Management"
)


@pytest.fixture
def storages(monkeypatch):
    """Weak references to all keys and values that are allocated."""
    found, allocate = [], KVStorage.__init__

    def watched(self, *settings):
        allocate(self, *settings)
        found.extend(map(weakref.ref, self.runs))

    monkeypatch.setattr(KVStorage, "__init__", watched)
    return found


def alive(references):
    return sum(reference() is not None for reference in references)


def test_decoding_gives_its_memory_back_at_once(storages):
    """Two batches of a large model's keys and values have no room beside each other until the collector comes by."""
    pair = make_pair("opt")
    assert pair.engine
    gc.collect()
    gc.disable()
    try:
        rsdbench.generate(pair, [[1, 2, 3], [4, 5, 6, 7]], "rsd_s", "2x3", 8)
        assert len(storages) == 2
        assert not alive(storages)
    finally:
        gc.enable()


def test_a_cell_out_of_memory_is_noted_and_leaves_room_for_the_next(tmp_path, monkeypatch, storages):
    (planned,) = planned_rows([*SMALL, "methods=[sd,rsd_s]", f"results={tmp_path}"])
    bad = next(cell for cell in planned.cells if cell.method == "sd")
    decode, logits_of = run.RowRunner.decode, CachedLM.logits
    failing, left, big = [], [], []

    def watched(self, cell, *rest):
        failing[:] = [cell == bad]
        if getattr(cell, "method", "") == "rsd_s":  # and not a turn of AR's, which is the row's
            left.append(alive(big))
        return decode(self, cell, *rest)

    def out_of_memory(self, *arguments, **settings):
        if failing and failing[0]:
            logits = torch.zeros(1000)  # as a target's forward holds them when it fails
            big.extend([weakref.ref(logits), *storages[-2:]])
            raise torch.OutOfMemoryError(MESSAGE)
        return logits_of(self, *arguments, **settings)

    monkeypatch.setattr(run.RowRunner, "decode", watched)
    monkeypatch.setattr(CachedLM, "logits", out_of_memory)
    assert face.run_rows([planned]) == 1
    assert len(big) == 3
    assert set(left) == {0}, "while the next cell runs, nothing of the failed one is held"
    assert len(cells(tmp_path)) == len(planned.cells) - 1
    reason = f"OutOfMemoryError: {MESSAGE.splitlines()[0]}"
    assert status(tmp_path).reasons == {bad.id: reason}
    shown, _ = command("status", tmp_path)
    assert "0/1 1 failed" in shown
    assert reason in shown.replace("\n", "")

    monkeypatch.undo()
    assert face.run_rows([planned]) == 0
    assert status(tmp_path).count("done") == len(planned.cells)
    assert not commands.progress(tmp_path, ".failed")


def test_one_line_says_what_failed(tmp_path, monkeypatch, capsys):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError(MESSAGE)

    monkeypatch.setattr(run.RowRunner, "decode", out_of_memory)
    (planned,) = planned_rows([*SMALL, f"results={tmp_path}"])
    assert face.run_rows([planned]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"rsdbench: failed: {planned.cells[0].id} and 1 more (OutOfMemoryError: CUDA out of memory.")
    assert line.endswith("; the same command tries again")


def test_the_models_of_a_row_are_gone_before_the_next_ones_come(tmp_path, monkeypatch):
    """Two large targets have no room beside each other."""
    held, load = [], FoundPair.load

    def watched(found, *room):
        assert not alive(held), "the pair before is still there"
        pair = load(found, *room)
        held.append(weakref.ref(pair.target))
        return pair

    monkeypatch.setattr(FoundPair, "load", watched)
    pairs.release_pair()  # of an earlier test
    row = ["experiment=smoke", "drafter=opt-25k", "dataset=wmt", "methods=[sd]", "budgets=[6]", f"results={tmp_path}"]
    assert face.run_rows([p for t in ("2.6m", "6m") for p in planned_rows([*row, f"target=opt-{t}"])]) == 0
    assert len(held) == 2
