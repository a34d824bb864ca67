"""Kills at any moment, many writers, full and read-only disks, clocks that jump, damaged files: nothing is lost, and
nothing half written is used."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rsdbench.files import left_over, now, whole_file
from rsdbench.results import plans
from rsdbench.runner import leases, progress
from rsdbench.runner.status import status

from . import commands
from .commands import SMALL, Command, cells, in_the_second_cell, rsdbench, tokens

AXES = ["experiment=smoke", "target=opt-2.6m", "dataset=wmt", "budgets=[6,30]"]  # 2 rows, 18 cells
KILLS = 50
root = pytest.mark.skipif(
    os.geteuid() != 0, reason="mounts a file system: run the tests as root (sudo bash scripts/test.sh)"
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    rsdbench("run", *AXES, f"results={folder}")
    assert len(cells(folder)) == 18
    return tokens(folder)


def kill(command):
    command.process.kill()  # SIGKILL; nothing if it has just ended
    command.process.join()


def test_killed_at_50_moments_the_cells_are_complete_and_equal(tmp_path, undisturbed):
    """Half of the kills come at random moments, half in the middle of a write, which is seen by its unfinished file."""
    moments = random.Random(0)
    written = []
    for i in range(KILLS):
        if len(cells(tmp_path)) > 12:  # keep it busy to the last kill
            for file in moments.sample(cells(tmp_path), 8):
                file.unlink()
        run = Command("run", *AXES, f"results={tmp_path}")
        if i % 2:
            time.sleep(moments.uniform(0, 1.5))
        else:
            before = set(Path(tmp_path).rglob(".*.partial")) if i else set()
            skip = moments.randrange(4)
            while run.process.is_alive():
                unfinished = set((tmp_path / "cells").glob(".*.parquet.*.partial")) - before
                if unfinished and not skip:
                    break
                skip -= bool(unfinished)
                before |= unfinished
            written.append(run.process.is_alive())
        kill(run)
        for file in cells(tmp_path):
            assert pq.read_table(file, page_checksum_verification=True).num_rows == 4, "complete or absent"
    assert sum(written) > KILLS / 4, "too few kills hit a write"
    assert list((tmp_path / "cells").glob(".*.partial")), "no write was cut in two"
    rsdbench("run", *AXES, f"results={tmp_path}")
    assert tokens(tmp_path) == undisturbed
    assert status(tmp_path).count("done") == 18
    assert not commands.progress(tmp_path, ".running")


def test_what_crashes_left_is_recognised_and_swept(tmp_path):
    rsdbench("run", *SMALL, f"results={tmp_path}")
    old, young, future = (tmp_path / "cells" / f".{name}.parquet.0123.partial" for name in ("old", "young", "future"))
    for file, age in ((old, 4000), (young, 10), (future, -4000)):
        file.write_bytes(b"PAR1")
        os.utime(file, (time.time() - age,) * 2)
    assert set(left_over(tmp_path / "cells")) == {old, future}
    assert len(tokens(tmp_path)) == 8, "they are not read"
    rsdbench("run", *SMALL, f"results={tmp_path}")
    assert not old.exists()
    assert not future.exists()
    assert young.exists(), "somebody may be writing it"


def test_32_processes_share_one_folder(tmp_path, undisturbed):
    for row in ("a", "b"):
        drafters = {"a": "opt-25k,opt-70k", "b": "opt-70k,opt-25k"}[row]
        rsdbench("plan", *AXES, f"drafter={drafters}", f"results={tmp_path}", "--manifest", tmp_path / row)
    started = [Command("run", "--manifest", tmp_path / "ab"[i % 2], "--task", str(i // 2 % 2)) for i in range(32)]
    for command in started:
        command.wait()
    assert tokens(tmp_path) == undisturbed
    assert not list(tmp_path.rglob("*.partial"))
    assert not commands.progress(tmp_path, ".running")
    assert status(tmp_path).count("done") == 18
    done = [re.search(r"^(\d+) cells done,", command.out, re.MULTILINE) for command in started]
    computed = sum(int(line[1]) for line in done if line)
    assert computed < 18 + 8, "claims keep processes from repeating one another's work"


@contextmanager
def tmpfs(folder, options):
    """A small file system of its own."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@root
def test_a_full_disk_is_one_line_and_no_finished_cell_is_lost(tmp_path, undisturbed):
    with tmpfs(tmp_path / "disk", "size=200k") as disk:
        _, err = rsdbench("run", *AXES, f"results={disk}", code=2)
        message = [line for line in err.splitlines() if line.startswith("rsdbench: ")]
        assert len(message) == 1
        assert "cannot be written (No space left on device): mend that and run the same command again" in message[0]
        done = cells(disk)
        assert 0 < len(done) < 18
        assert not list(disk.rglob(".*.partial"))
        assert all(undisturbed[key] == value for key, value in tokens(disk).items())
        assert f"{len(done)} of 18 cells done" in rsdbench("status", disk)[0]
        _, err = rsdbench("figure", disk, "--out", disk / "figure.png", code=2)
        assert "cannot be written (No space left on device)" in err
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        out, _ = rsdbench("run", *AXES, f"results={disk}")
        assert f"{18 - len(done)} cells done, {len(done)} were there already" in out
        assert tokens(disk) == undisturbed


@root
def test_a_read_only_folder_can_be_read_and_says_that_it_cannot_be_written(tmp_path):
    with tmpfs(tmp_path / "disk", "size=5m") as disk:
        rsdbench("run", *SMALL, f"results={disk}/r")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        _, err = rsdbench("run", *SMALL, f"results={disk}/r", code=2)
        assert "cannot be written (Read-only file system)" in err
        assert err.count("\n") == 1
        assert "2 of 2 cells done" in rsdbench("status", disk / "r")[0]
        rsdbench("merge", disk / "r", "--out", tmp_path / "all.parquet")
        rsdbench("figure", disk / "r", "--out", tmp_path / "figure.png")
        assert now(disk / "r" / "cells") == pytest.approx(time.time(), abs=5), "then this host's clock must do"


def test_a_clock_that_jumps_changes_nothing(tmp_path, undisturbed, monkeypatch):
    """A day forward and back between any two looks at the clock, and files stamped by a server that does the same."""
    from rsdbench.cli.run import run_rows
    from rsdbench.runner.plan import planned_rows

    jumps = random.Random(0)
    real = time.time
    stamp = os.utime
    monkeypatch.setattr(time, "time", lambda: real() + jumps.choice([0, 86_400, -86_400]))
    monkeypatch.setattr(leases, "BEAT_EVERY", 0.01)
    monkeypatch.setattr(os, "utime", lambda path, *_: stamp(path, (time.time(),) * 2))
    rows = planned_rows([*AXES, "drafter=opt-25k", f"results={tmp_path}"])
    assert run_rows(rows) == 0
    other = Command("run", *AXES, f"results={tmp_path}")
    other.wait()
    monkeypatch.undo()
    for file in cells(tmp_path)[::3]:
        stamp(file, (real() + jumps.choice([1e6, -1e6]),) * 2)
    assert tokens(tmp_path) == undisturbed
    seen = status(tmp_path)
    assert seen.count("done") == 18
    assert seen.per_hour is None or seen.per_hour > 0
    rsdbench("figure", tmp_path, "--out", tmp_path / "figure.png")


def test_a_file_that_is_swept_while_it_is_written_is_written_again(tmp_path, monkeypatch):
    """As when the clock jumps by more than an hour in the middle of a write."""
    from rsdbench.results import records

    rsdbench("run", *SMALL, f"results={tmp_path}")
    first = cells(tmp_path)[0]
    table = pq.read_table(first)
    swept = []

    @contextmanager
    def sweeping(path):
        with whole_file(path) as stream:
            yield stream
            if not swept:
                (unfinished,) = path.parent.glob(".*.partial")
                unfinished.unlink()
                swept.append(unfinished)

    monkeypatch.setattr(records, "whole_file", sweeping)
    records.write_record(table, tmp_path / "cells" / "again.parquet")
    assert swept
    assert pq.read_table(tmp_path / "cells" / "again.parquet").equals(table)


def older_schema(content, file):
    """The same record as a version with one column less and another schema number would have written it."""
    table = pq.read_table(file).drop_columns(["commit_s"])
    cell = json.loads(table.schema.metadata[b"rsdbench.cell"]) | {"schema": 0}
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"rsdbench.cell": json.dumps(cell)}), file)


DAMAGES = {
    "cut in half": lambda content, file: file.write_bytes(content[: len(content) // 2]),
    "filled with zeros": lambda content, file: file.write_bytes(bytes(len(content))),
    "zeros inside": lambda content, file: file.write_bytes(content[:100] + bytes(900) + content[1000:]),
    "empty": lambda content, file: file.write_bytes(b""),
    "older schema": older_schema,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_record_is_recognised_named_recomputed_and_never_plotted(tmp_path, damage):
    rsdbench("run", *SMALL, f"results={tmp_path}")
    good = tokens(tmp_path)
    file = cells(tmp_path)[1]
    DAMAGES[damage](file.read_bytes(), file)
    what = "of another version's schema" if damage == "older schema" else "damaged"
    for command in ("figure", "table", "merge"):
        out = tmp_path / {"figure": "x.png", "table": "x.csv", "merge": "x.parquet"}[command]
        _, err = rsdbench(command, tmp_path, "--out", out, code=2)
        assert f"damaged record '{file}' ({what})" in err
        assert err.count("\n") == 1
        assert not out.exists()
    if damage in ("cut in half", "filled with zeros", "empty"):
        assert "1 of 2 cells done, 1 damaged" in rsdbench("status", tmp_path)[0]
    out, _ = rsdbench("run", *SMALL, f"results={tmp_path}")
    assert "1 cells done, 1 were there already" in out
    assert tokens(tmp_path) == good
    rsdbench("figure", tmp_path, "--out", tmp_path / "x.png")


def test_bad_progress_files_cost_no_more_than_the_prompts_in_them(tmp_path):
    rsdbench("run", *SMALL, f"results={tmp_path}")
    good = tokens(tmp_path)
    file = cells(tmp_path)[1]
    for kind in (progress.KEPT, progress.FAILED, progress.RUNNING):
        (tmp_path / "progress" / f"{file.stem}{kind}").write_bytes(b"PAR1 nonsense")
    os.utime(tmp_path / "progress" / f"{file.stem}{progress.RUNNING}", (1, 1))
    for plan in commands.progress(tmp_path, plans.PLAN):
        plan.write_text(plan.read_text()[:50])
    file.unlink()
    assert "1 of 1 cells done" in rsdbench("status", tmp_path)[0]
    rsdbench("run", *SMALL, f"results={tmp_path}")
    assert tokens(tmp_path) == good


def test_an_interrupt_from_the_keyboard_keeps_prompts_too(tmp_path):
    run = Command("run", *commands.LONG, "dataset.num_prompts=600", f"results={tmp_path}")
    in_the_second_cell(tmp_path)
    os.kill(run.pid, signal.SIGINT)
    _, err = run.wait(130)
    assert "rsdbench: interrupted" in err
    assert len(commands.progress(tmp_path, ".kept")) == 1
    shutil.rmtree(tmp_path)
