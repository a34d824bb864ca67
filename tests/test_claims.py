"""Claims: who runs which cell, and what becomes of the claims of processes that have died."""

import json
import os
import time

from rsdbench.runner import leases, progress
from rsdbench.runner.plan import planned_rows
from rsdbench.runner.status import status

from .commands import SMALL, Command, cells, rsdbench, wait_for


def test_a_claim_keeps_others_away_until_it_is_given_back_or_stale(tmp_path):
    path = tmp_path / "cell.running"
    with leases.take(path, time.time()):
        assert leases.is_live(path, time.time())
        assert leases.take(path, time.time()) is None
        assert not leases.is_live(path, time.time() + 61), "no beat for a minute"
        assert not leases.is_live(path, time.time() - 61), "a beat of a clock that has been set back since"
    assert not path.exists()


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path):
    path = tmp_path / "cell.running"
    pid = os.fork()
    if not pid:
        leases.take(path, time.time())
        os._exit(0)
    os.waitpid(pid, 0)
    assert path.exists()
    assert not leases.is_live(path, time.time())
    elsewhere = json.loads(path.read_text()) | {"machine": "another"}
    path.write_text(json.dumps(elsewhere))
    assert leases.is_live(path, time.time()), "of another machine's processes only the beat is known"
    path.write_text("")  # a host that lost power while it wrote
    assert leases.is_live(path, time.time())
    assert not leases.is_live(path, time.time() + 61)
    with leases.take(path, time.time() + 61):
        assert leases.read(path)["pid"] == os.getpid()


def test_a_claim_beats_and_does_not_give_back_what_others_took(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_EVERY", 0.02)
    path = tmp_path / "cell.running"
    with leases.take(path, time.time()):
        os.utime(path, (1, 1))
        wait_for(lambda: path.stat().st_mtime > 1, "beat")
        path.write_text(json.dumps({"token": "of somebody else", "machine": "another"}))
    assert path.exists()


def test_a_run_sweeps_the_claims_of_dead_processes_and_leaves_the_living_theirs(tmp_path):
    """Also of cells that are done: a kill may come between a record and the end of its claim."""
    progress.prepare(tmp_path)
    dead, alive = (tmp_path / "progress" / f"{name}.running" for name in ("dead", "alive"))
    pid = os.fork()
    if not pid:
        leases.take(dead, time.time())
        os._exit(0)
    os.waitpid(pid, 0)
    with leases.take(alive, time.time()):
        progress.prepare(tmp_path)
        assert not dead.exists()
        assert alive.exists()


def test_a_run_waits_for_cells_that_others_run_and_takes_over_stale_ones(tmp_path):
    (planned,) = planned_rows([*SMALL, f"results={tmp_path}"])
    progress.prepare(tmp_path)
    foreign = tmp_path / "progress" / f"{planned.cells[0].id}.running"
    foreign.write_text(json.dumps({"token": "x", "host": "far", "machine": "another", "pid": 1, "job": "12_3"}))
    run = Command("run", *SMALL, f"results={tmp_path}")
    wait_for(lambda: "waiting for 1 cells that other processes run" in run.err, "message")
    assert [f.stem for f in cells(tmp_path)] == [planned.cells[1].id], "what is free is done first"
    seen = status(tmp_path)
    assert list(seen.runners.values()) == ["far, process 1, job 12_3"]
    assert "far, process 1, job 12_3" in rsdbench("status", tmp_path)[0]
    old = time.time() - 120
    os.utime(foreign, (old, old))
    run.wait()
    assert len(cells(tmp_path)) == 2
    assert not foreign.exists()
