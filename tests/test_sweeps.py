"""Plans, manifests, preemption, failures, status: sweeps of many processes on one folder."""

import ctypes
import json
import os
import pty
import signal
import sys
import time

import pyarrow.parquet as pq
import pytest

from rsdbench.errors import UsageError
from rsdbench.results import records
from rsdbench.runner import preemption, progress
from rsdbench.runner.compose import sweep
from rsdbench.runner.plan import planned_rows, quoted
from rsdbench.runner.preemption import CODE, Preempted, preemptible, shielded
from rsdbench.runner.status import rate, status

from . import commands
from .commands import LONG, SMALL, Command, cells, in_the_second_cell, lines, rsdbench, tokens


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The tokens that LONG gives if nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    rsdbench("run", *LONG, f"results={folder}")
    return tokens(folder)


# plans


def test_a_sweep_is_what_hydra_makes_of_it():
    jobs = sweep(["experiment=smoke", "drafter=opt-25k,opt-70k", "seed=range(0,2)", "hydra/launcher=joblib"])
    assert jobs == [["experiment=smoke", f"drafter=opt-{d}", f"seed={s}"] for d in ("25k", "70k") for s in (0, 1)]
    with pytest.raises(UsageError, match="is a pattern: list the values, as in target=A,B"):
        sweep(["target=glob(*)"])


def test_quoted_values_come_back_from_hydras_grammar():
    from rsdbench.runner.compose import compose

    for text in ("/a/b-c_d.e", "a b", "it's", "a,b", "x=y", "{z}", "[1]", "back\\slash", "quote\\'s"):
        assert compose(["experiment=smoke", f"results={quoted(text)}"])[0].results == text


def test_a_manifest_has_a_line_a_row_job_and_its_tasks_are_the_sweep(tmp_path):
    manifest = tmp_path / "sweep.jsonl"
    axes = ["drafter=opt-25k,opt-70k", "target=opt-2.6m", "dataset=wmt", "methods=[sd]", "budgets=[6]"]
    out, _ = rsdbench("plan", "experiment=smoke", *axes, "results=r", "--manifest", manifest, cwd=tmp_path)
    assert "2 row jobs, 4 cells, 4 of them to run" in out
    assert f"sbatch --array=0-1 scripts/slurm_array.sbatch {manifest}" in out
    found = lines(manifest)
    assert [line["task"] for line in found] == [0, 1]
    assert [line["label"] for line in found] == ["OPT-25K-2.6M, De-En", "OPT-70K-2.6M, De-En"]
    assert all(line["results"] == str(tmp_path / "r") for line in found), "results mean the same from any folder"
    assert "4 missing" in rsdbench("status", tmp_path / "r")[0]

    rsdbench("run", "--manifest", manifest, "--task", "1", cwd="/")
    assert [file.stem for file in cells(tmp_path / "r")] == sorted(c["id"] for c in found[1]["cells"])
    rsdbench("run", f"--manifest={manifest}", cwd="/", SLURM_ARRAY_TASK_ID="0")
    assert len(cells(tmp_path / "r")) == 4
    out, _ = rsdbench("run", "--manifest", manifest, "--task", "0")
    assert "all 2 cells are done already" in out
    out, _ = rsdbench("plan", "experiment=smoke", *axes, "results=r", cwd=tmp_path)
    assert "4 cells, 0 of them to run" in out

    rsdbench("run", "-m", "experiment=smoke", *axes, "results=direct", cwd=tmp_path)
    assert [f.name for f in cells(tmp_path / "direct")] == [f.name for f in cells(tmp_path / "r")]
    assert tokens(tmp_path / "direct") == tokens(tmp_path / "r"), "cells do not depend on how they were launched"


def test_relative_paths_are_frozen_as_absolute_ones(tmp_path):
    from rsdbench.tasks.splits import DATA

    (tmp_path / "set.parquet").write_bytes((DATA / "debian_de_en.parquet").read_bytes())
    rsdbench("plan", *SMALL, "dataset.path=set.parquet", "results=r", "--manifest", "m.jsonl", cwd=tmp_path)
    (line,) = lines(tmp_path / "m.jsonl")
    assert f"dataset.path={tmp_path / 'set.parquet'}" in line["overrides"]
    embedded = planned_rows([*SMALL, f"results={tmp_path / 'r'}"])[0].line["cells"]
    assert line["cells"] == embedded, "a local file counts by its contents"
    rsdbench("run", "--manifest", tmp_path / "m.jsonl", "--task", "0", cwd="/")

    table = pq.read_table(tmp_path / "set.parquet")
    pq.write_table(table.slice(1), tmp_path / "set.parquet")
    _, err = rsdbench("run", "--manifest", tmp_path / "m.jsonl", "--task", "0", cwd="/", code=2)
    assert "no longer gives the cells that were planned" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, ["--task", "7"], "has no task 7: its tasks are 0 to 0"),
        ({}, ["--task", "-1"], "which task of the manifest? Give --task N"),
        ({}, ["--task", "one"], "set SLURM_ARRAY_TASK_ID to a number, not 'one'"),
        ({}, [], "which task of the manifest? Give --task N"),
        ({}, ["--task", "0", "seed=3"], "a manifest is frozen, it takes no 'seed=3'"),
        ({"format": 0}, ["--task", "0"], "is of another format: plan it again"),
        ({"rsdbench": "0.0.1"}, ["--task", "0"], "was planned by rsdbench 0.0.1"),
        ({"code": "0123456789abcdef"}, ["--task", "0"], "was planned by code 0123456789abcdef"),
        ({"cells": []}, ["--task", "0"], "no longer gives the cells that were planned"),
        ({"overrides": ["experiment=smoke"]}, ["--task", "0"], "no longer gives the cells that were planned"),
        ({"overrides": ["experiment=gone"]}, ["--task", "0"], "unknown experiment 'gone'"),
        (None, ["--task", "0"], "cannot be read (it is not one JSON object a line)"),
    ],
)
def test_bad_manifests_and_tasks_are_one_line(tmp_path, change, arguments, message):
    manifest = tmp_path / "m.jsonl"
    rsdbench("plan", *SMALL, f"results={tmp_path / 'r'}", "--manifest", manifest)
    (line,) = lines(manifest)
    manifest.write_text(json.dumps(line | change) + "\n" if change is not None else manifest.read_text()[:-30])
    _, err = rsdbench("run", "--manifest", manifest, *arguments, code=2)
    assert message in err
    assert err.startswith("rsdbench: ")
    assert err.count("\n") == 1
    assert not cells(tmp_path / "r")


def test_bad_input_to_plan_status_and_merge_is_one_line(tmp_path):
    rsdbench("run", *SMALL, f"results={tmp_path / 'r'}")
    for arguments, message in (
        (["plan", *SMALL, "budgets=[7]"], "has no structures of budget 7"),
        (["plan", *SMALL, "experiment=other"], "unknown experiment 'other'"),
        (["plan", *SMALL, "seed=0,1"], "two configurations of opt-25k_opt-2.6m_debian-de-en_ar_0 would go to"),
        (["plan", *SMALL, f"results={tmp_path / 'r'}", "seed=1"], "of another configuration: seed (there 0, here 1)"),
        (["plan", *SMALL, f"results={tmp_path / 'n'}", "--manifest", "/proc/no/m"], "another one with --manifest"),
        (["status", tmp_path / "none"], "is no results folder"),
        (["merge", tmp_path / "none", "--out", tmp_path / "m.parquet"], "holds no results"),
        (["merge", tmp_path / "r", "--out", tmp_path / "m.csv"], "must end in .parquet"),
        (["merge", tmp_path / "r", "--out", "/proc/no/m.parquet"], "cannot be written"),
        (["figure", __file__, "--out", tmp_path / "f.png"], "is no parquet file, or damaged"),
        (["run", "--manifest", tmp_path / "none", "--task", "0"], "cannot be read (No such file or directory)"),
    ):
        _, err = rsdbench(*arguments, code=2)
        assert message in err
        assert err.count("\n") == 1
    assert not list(tmp_path.glob("*.parquet"))


# preemption


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_keeps_finished_prompts_and_the_next_run_goes_on(tmp_path, undisturbed, name):
    run = Command("run", *LONG, f"results={tmp_path}")
    in_the_second_cell(tmp_path)
    sent = time.monotonic()
    os.kill(run.pid, getattr(signal, name))
    _, err = run.wait(CODE)
    assert time.monotonic() - sent < 10
    assert f"stopped by {name}" in err
    assert not commands.progress(tmp_path, ".running"), "the claim is given back"
    (kept,) = commands.progress(tmp_path, ".kept")
    prompts = pq.read_table(kept).num_rows
    assert 0 < prompts < 60
    rsdbench("run", *LONG, f"results={tmp_path}")
    assert tokens(tmp_path) == undisturbed
    assert not commands.progress(tmp_path, ".kept")
    (resumed,) = [f for f in cells(tmp_path) if f.stem == kept.stem]
    history = json.loads(pq.read_schema(resumed).metadata[b"rsdbench.kept_from"])
    assert len(history) == 1
    assert set(history[0]) == {"started", "host", "job", "device"}


def test_prompts_kept_by_other_code_are_not_used(tmp_path):
    (planned,) = planned_rows([*SMALL, f"results={tmp_path}"])
    rsdbench("run", *SMALL, f"results={tmp_path}")
    cell = planned.cells[0]
    done = records.read_file(cell.path(tmp_path))
    progress.keep(cell, tmp_path, done.table.to_pylist(), done.metadata)
    code = done.metadata["code"]
    rows, origin = progress.kept(cell, tmp_path, code)
    assert rows == done.table.to_pylist()
    assert origin["code"] == code
    assert progress.kept(cell, tmp_path, "other") == ([], {})


def test_shielded_work_is_not_cut_and_the_signal_comes_after_it():
    before = signal.getsignal(signal.SIGUSR1)
    steps = []

    def work():
        with preemptible(), shielded():
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.05)
            steps.append("whole")
        steps.append("never")

    pid = os.fork()
    if not pid:  # a process of its own: what a signal sets off ends with the process
        try:
            work()
        except Preempted as stopped:
            os._exit(10 if steps == ["whole"] and str(stopped) == "SIGUSR1" else 11)
        os._exit(12)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 10
    with preemptible():
        assert signal.getsignal(signal.SIGUSR1) != before
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_process_that_hangs_is_ended_in_time(monkeypatch):
    """The main thread is inside a library's call and never comes to run a handler; the watch ends the process."""
    monkeypatch.setattr(preemption, "GRACE", 0.5)
    ready, go = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with preemptible():
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # another thread will get it
                os.write(go, b"x")
                ctypes.CDLL(None).sleep(30)
        finally:
            os._exit(1)
    os.read(ready, 1)
    time.sleep(1)  # by then it is inside the call: a signal before it would find a handler to run
    started = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == CODE
    assert time.monotonic() - started < 10


# failures


def test_a_failed_cell_is_noted_the_others_go_on_and_a_rerun_retries(tmp_path, monkeypatch):
    """In process, with a fault switched in from outside: a device that runs out of memory in one method."""
    from rsdbench.cli import run as face
    from rsdbench.runner.run import RowRunner

    (planned,) = planned_rows([*SMALL, "methods=[sd,rsd_s]", f"results={tmp_path}"])
    bad = next(cell for cell in planned.cells if cell.method == "sd")
    decode = RowRunner.decode

    def faulty(self, cell, *rest):
        if cell == bad:
            raise RuntimeError("CUDA out of memory.\nTried to allocate 12 GiB")
        return decode(self, cell, *rest)

    monkeypatch.setattr(RowRunner, "decode", faulty)
    assert face.run_rows([planned]) == 1
    assert len(cells(tmp_path)) == len(planned.cells) - 1
    seen = status(tmp_path)
    assert seen.states[bad.id] == "failed"
    assert seen.reasons == {bad.id: "RuntimeError: CUDA out of memory."}
    shown, _ = rsdbench("status", tmp_path)
    assert "0/1 1 failed" in shown
    assert "RuntimeError: CUDA out of memory." in shown
    note = json.loads((tmp_path / "progress" / f"{bad.id}.failed").read_text())
    assert "Tried to allocate 12 GiB" in note["traceback"]

    monkeypatch.undo()
    assert face.run_rows([planned]) == 0
    assert status(tmp_path).count("done") == len(planned.cells)
    assert not commands.progress(tmp_path, ".failed")


def test_models_that_cannot_be_loaded_fail_their_row(tmp_path, monkeypatch):
    from rsdbench.cli import run as face
    from rsdbench.runner import run

    def broken(*_):
        raise MemoryError("no room for the weights")

    monkeypatch.setattr(run, "pair_of", broken)
    (planned,) = planned_rows([*SMALL, f"results={tmp_path}"])
    assert face.run_rows([planned]) == 1
    assert status(tmp_path).reasons == {c.id: "MemoryError: no room for the weights" for c in planned.cells}


def test_a_sweep_with_too_few_rows_is_refused_before_any_job(tmp_path):
    axes = [*SMALL[:1], "drafter=opt-25k,opt-70k", *SMALL[2:], "dataset.num_prompts=1000"]
    _, err = rsdbench("run", "-m", *axes, f"results={tmp_path / 'r'}", code=2)
    assert err == "rsdbench: dataset.num_prompts is 1000, but 'debian_de_en' has only 600 rows\n"
    assert not (tmp_path / "r").exists()


def test_a_sweep_whose_prompts_do_not_fit_goes_through_all_jobs_and_ends_with_code_2(tmp_path):
    """What only the tokenizer shows is seen when a job has loaded its models."""
    axes = [*SMALL[:1], "drafter=opt-25k,opt-70k", *SMALL[2:], "dataset.max_prompt_tokens=4"]
    _, err = rsdbench("run", "-m", *axes, f"results={tmp_path}", code=2)
    assert err.count("rsdbench: ") == 1
    assert "and 3 more (" in err
    assert "only 4 are free" in err
    assert status(tmp_path).count("failed") == 4


# status


def test_status_counts_by_row_and_method_and_watches_until_all_is_done(tmp_path):
    rsdbench("plan", *SMALL, f"results={tmp_path}", "--manifest", tmp_path / "m")
    watch = Command("status", tmp_path, "--watch")
    rsdbench("run", *SMALL, f"results={tmp_path}")
    out, _ = watch.wait()
    assert "2 of 2 cells done" in out
    shown, _ = rsdbench("status", tmp_path)
    assert "OPT-25K-2.6M, De-En" in shown
    assert shown.count("1/1") == 2
    damaged = cells(tmp_path)[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    shown, _ = rsdbench("status", tmp_path)
    assert f"damaged  {damaged.stem}" in shown
    assert "1 of 2 cells done, 1 damaged" in shown
    damaged.unlink()
    for file in commands.progress(tmp_path, ".plan"):
        file.unlink()
    assert "1 of 1 cells done" in rsdbench("status", tmp_path)[0], "without a plan it shows what there is"


def test_cells_an_hour_come_from_the_last_hour_and_survive_clocks_that_jump():
    assert rate([], 0) is None
    assert rate([100.0], 100) is None
    assert rate([0.0, 10, 20, 30], 40) == pytest.approx(360)
    assert rate([0.0, 10, 7200, 7210, 7220], 7225) == pytest.approx(360), "what was done long before does not count"
    assert rate([0.0, 10.0], 1e6) is None, "nothing of late"
    assert rate([0.0, 10.0], -1e6) is None, "all of it in the future"


def test_status_is_live_on_a_terminal(tmp_path):
    """A real pseudo-terminal: what the table says is drawn over until all is done."""
    rsdbench("plan", *SMALL, f"results={tmp_path}", "--manifest", tmp_path / "m")
    shown, run = bytearray(), []

    def read(descriptor):
        data = os.read(descriptor, 4096)
        shown.extend(data)
        if b"0 of 2 cells done" in shown and not run:
            run.append(Command("run", *SMALL, f"results={tmp_path}"))
        return data

    assert pty.spawn([sys.executable, "-m", "rsdbench", "status", str(tmp_path), "--watch"], read) == 0
    assert b"2 of 2 cells done" in shown
    assert b"\x1b[" in shown, "drawn over"
    run[0].wait()


def test_own_configs_lie_in_a_folder_for_run_sweep_plan_and_manifest(tmp_path):
    from .commands import SMALL, rsdbench

    (tmp_path / "conf" / "target").mkdir(parents=True)
    (tmp_path / "conf" / "target" / "mine.yaml").write_text(
        "name: mine\npath: opt-2.6m\nrevision: null\nquantization: null\n"
    )
    own = [*(o for o in SMALL if not o.startswith("target")), "target=mine", "speed.num_prompts=0"]
    folder = ["--config-dir", "conf"]
    rsdbench("run", *folder, *own, "results=a", cwd=tmp_path)
    rsdbench("run", "-m", *folder, *own, "results=b", cwd=tmp_path)
    rsdbench("run", f"hydra.searchpath=['file://{tmp_path}/conf']", *own, "results=c", cwd=tmp_path)
    out, _ = rsdbench("plan", *folder, *own, "results=d", "--manifest", "m.jsonl", cwd=tmp_path)
    assert "OPT-25K-MINE" in out
    rsdbench("run", "--manifest", "m.jsonl", "--task", "0", cwd=tmp_path)
    assert all((tmp_path / name / "cells").is_dir() for name in "abcd")
    _, err = rsdbench("run", "--config-dir", "nowhere", *own, cwd=tmp_path, code=2)
    assert "--config-dir needs a folder that is there" in err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("results=", "results is empty: give a folder"),
        (
            "target.name=org/model",
            "target.name is a part of files' names: it must have 1 to 60 characters and no slash",
        ),
        (f"target.name={'x' * 230}", "target.name is a part of files' names"),
        ("seed=99999999999999999999", "seed must be a number of at most 18 digits"),
    ],
)
def test_what_cannot_be_a_file_or_a_seed_is_refused_at_composition(tmp_path, override, message):
    from .commands import SMALL, rsdbench

    results = [] if override.startswith("results") else [f"results={tmp_path}/r"]
    _, err = rsdbench("run", *SMALL, *results, override, cwd=tmp_path, code=2)
    assert message in err
    assert not list(tmp_path.iterdir())


def test_a_copy_beside_the_records_is_left_out(tmp_path):
    from .commands import SMALL, cells, rsdbench

    rsdbench("run", *SMALL, "speed.num_prompts=0", "target.name=7", f"results={tmp_path}/r")
    first = cells(tmp_path / "r")[0]
    (first.parent / f"{first.stem} (conflicted copy).parquet").write_bytes(first.read_bytes()[:50])
    _, err = rsdbench("table", tmp_path / "r")
    assert "has no cell's name, such as a copy, and is left out" in err
