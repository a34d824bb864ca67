"""A real Slurm on loopback: arrays, submitit, requeue, time limit, scancel, a node that goes down and returns."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from rsdbench.runner.status import status

from .commands import LONG, ROOT, SMALL, cells, in_the_second_cell, progress, rsdbench, tokens, wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun")
absent = [name for name in PROGRAMS if shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin") is None]
pytestmark = [
    pytest.mark.skipif(bool(absent), reason=f"no {', '.join(absent)}: apt-get install slurm-wlm munge"),
    pytest.mark.skipif(os.geteuid() != 0, reason="starts Slurm's daemons, as root only: sudo bash scripts/test.sh"),
]
SCRIPT = ROOT / "scripts" / "slurm_array.sbatch"
# seconds: a node refuses a task that starts in the second of its requeue ("Job credential revoked"), which is what
# Slurm's delay of two minutes is for
REVOKED = 3
SMALL_TASK = ["--gres=none", "--cpus-per-task=1", "--mem=1G"]


class Cluster:
    """Controller, node and authentication, with all their files in one folder."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
            "HF_HUB_OFFLINE": "1",
        }
        self.processes = []

    def start(self):
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            ports = {"controller_port": one.getsockname()[1], "node_port": two.getsockname()[1]}
        text = (ROOT / "tests" / "slurm" / "slurm.conf").read_text()
        for key, value in {**ports, "folder": self.folder, "cpus": max(2, os.cpu_count() or 2)}.items():
            text = text.replace(f"{{{key}}}", str(value))
        (self.folder / "slurm.conf").write_text(text)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self.run_daemon("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files)
        wait_for((self.folder / "munge.socket").exists, "munged")
        self.run_daemon("slurmctld", "-D", "-c")
        self.start_node()

    def start_node(self):
        self.run_daemon("slurmd", "-D", "-N", "localhost")
        wait_for(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"), "idle node")

    def run_daemon(self, *command):
        with (self.folder / f"{command[0]}.out").open("ab") as out:
            self.processes.append(
                subprocess.Popen(command, env=self.environment, stdout=out, stderr=out, start_new_session=True)
            )

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:  # slurmd waits for the last task's end
                process.kill()
                process.wait()

    def ask(self, *command, check=False, cwd=None):
        ran = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, cwd=cwd, timeout=300
        )
        assert not check or ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    def submit(self, folder, *options, tasks="0"):
        """Submit the array script for FOLDER/sweep.jsonl; returns the job's number."""
        command = ["sbatch", "--parsable", f"--array={tasks}", *SMALL_TASK, *options, str(SCRIPT), "sweep.jsonl"]
        return self.ask(*command, check=True, cwd=folder)

    def job(self, job):
        """What scontrol says of a task."""
        text = self.ask("scontrol", "show", "job", job)
        return dict(re.findall(r"(\w+)=(\S*)", text.split("\n\n")[0]))

    def wait_until(self, job, *states):
        wait_for(lambda: self.job(job).get("JobState") in states, f"{states} of job {job}")

    def hasten(self, job, *changes):
        """Let a task that waits for its two minutes of delay start now."""
        time.sleep(REVOKED)
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now", *changes)

    def release(self, job):
        """Let a requeued task start without its two minutes of delay."""
        wait_for(lambda: self.job(job).get("JobState") == "PENDING", "requeued task")
        self.hasten(job)
        wait_for(lambda: self.job(job).get("JobState") != "PENDING", "start of the requeued task")

    def finish(self, job):
        """See a requeued task to its end, however often it is requeued."""

        def completed():
            if self.job(job).get("JobState") == "PENDING":
                self.hasten(job)
            return self.job(job).get("JobState") == "COMPLETED"

        wait_for(completed, f"end of job {job}")


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: the path of a socket has a limit
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.ask("scancel", "--user=root")
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    rsdbench("run", *LONG, f"results={folder}")
    return tokens(folder)


def plan(folder, *overrides):
    rsdbench("plan", *overrides, "results=r", "--manifest", "sweep.jsonl", cwd=folder)
    return folder / "r"


def log(folder):
    return "\n".join(file.read_text() for file in sorted(folder.glob("slurm-*.log")))


def test_an_array_runs_a_manifest(cluster, tmp_path):
    axes = ["drafter=opt-25k,opt-70k", "target=opt-2.6m", "dataset=wmt", "methods=[sd]", "budgets=[6]"]
    results = plan(tmp_path, "experiment=smoke", *axes)
    job = cluster.submit(tmp_path, tasks="0-1%2")
    for task in (0, 1):
        cluster.wait_until(f"{job}_{task}", "COMPLETED", "FAILED")
        assert cluster.job(f"{job}_{task}")["ExitCode"] == "0:0", log(tmp_path)
    assert "4 of 4 cells done" in rsdbench("status", results)[0]
    assert (tmp_path / f"slurm-{job}_0.log").read_text().count("2 cells done") == 1
    import pyarrow.parquet as pq

    jobs = {pq.read_schema(file).metadata[b"rsdbench.job"].decode() for file in cells(results)}
    assert jobs == {f"{job}_0", f"{job}_1"}


def test_a_task_that_the_manifest_lacks_fails_with_one_line(cluster, tmp_path):
    plan(tmp_path, *SMALL)
    job = cluster.submit(tmp_path, tasks="5")
    cluster.wait_until(f"{job}_5", "FAILED")
    assert cluster.job(f"{job}_5")["ExitCode"] == "2:0"
    assert log(tmp_path).strip() == "rsdbench: manifest 'sweep.jsonl' has no task 5: its tasks are 0 to 0"


def test_hydras_submitit_launcher_runs_the_same_sweep(cluster, tmp_path):
    axes = ["drafter=opt-25k,opt-70k", "target=opt-2.6m", "dataset=wmt", "methods=[sd]", "budgets=[6]"]
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1"]
    command = ["rsdbench", "run", "-m", *launcher, "hydra.launcher.timeout_min=10", "experiment=smoke", *axes]
    cluster.ask(*command, "results=r", check=True, cwd=tmp_path)
    results = tmp_path / "r"
    assert status(results).count("done") == 4
    assert len(list((results / ".hydra" / ".submitit").glob("*_[01]/*_result.pkl"))) == 2, "both ran under Slurm"
    again = cluster.ask(*command, "results=r", check=True, cwd=tmp_path)
    assert status(results).count("done") == 4
    assert "rsdbench: " not in again


def test_a_requeued_task_goes_on_where_it_stopped(cluster, tmp_path, undisturbed):
    results = plan(tmp_path, *LONG)
    job = f"{cluster.submit(tmp_path)}_0"
    in_the_second_cell(results)
    first = cells(results)[0].stat().st_mtime_ns
    cluster.ask("scontrol", "requeue", job, check=True)
    asked = time.monotonic()
    wait_for(lambda: not progress(results, ".running"), "end of the process")
    assert time.monotonic() - asked < 10
    assert "stopped by SIGTERM" in log(tmp_path)
    (kept,) = progress(results, ".kept")
    cluster.release(job)
    cluster.wait_until(job, "COMPLETED")
    assert cluster.job(job)["Restarts"] == "1"
    assert tokens(results) == undisturbed
    assert cells(results)[0].stat().st_mtime_ns == first, "what is done is not done again"
    import pyarrow.parquet as pq

    history = json.loads(pq.read_schema(results / "cells" / f"{kept.stem}.parquet").metadata[b"rsdbench.kept_from"])
    assert [origin["job"] for origin in history] == [job]


def test_out_of_time_a_task_queues_itself_again(cluster, tmp_path):
    results = plan(tmp_path, *LONG, "dataset.num_prompts=600", "budgets=[6,10,14]")  # 4 cells, a minute and a half
    # Slurm looks every 30 seconds and signals half a minute early rather than late: 25 to 55 seconds after the start
    job = f"{cluster.submit(tmp_path, '--time=2', '--signal=B:USR1@65')}_0"

    def prompts():
        import pyarrow.parquet as pq

        try:
            return sum(pq.read_table(file).num_rows for file in (*cells(results), *progress(results, ".kept")))
        except FileNotFoundError:  # a cell was finished meanwhile, and its kept prompts are in its record now
            return prompts()

    wait_for(lambda: cluster.job(job).get("Restarts") == "1", "requeue")
    cluster.wait_until(job, "PENDING")
    assert "stopped by SIGUSR1" in log(tmp_path)
    assert not progress(results, ".running")
    finished = prompts()
    assert 0 < finished < 2400

    def further():
        if cluster.job(job).get("JobState") == "PENDING":  # with its two minutes of delay, and too little time
            cluster.hasten(job, "TimeLimit=10")
        return prompts() > finished

    wait_for(further, "the next start to go on from the one before")
    cluster.ask("scancel", job, check=True)
    wait_for(lambda: not progress(results, ".running"), "end of the process")


def test_a_cancelled_task_keeps_its_prompts_and_stays_cancelled(cluster, tmp_path, undisturbed):
    results = plan(tmp_path, *LONG)
    job = f"{cluster.submit(tmp_path)}_0"
    in_the_second_cell(results)
    cluster.ask("scancel", job, check=True)
    cluster.wait_until(job, "CANCELLED")
    wait_for(lambda: not progress(results, ".running"), "end of the process")
    assert len(progress(results, ".kept")) == 1
    time.sleep(3)
    assert cluster.job(job)["JobState"] == "CANCELLED", "nobody requeues what the user has cancelled"
    rsdbench("run", "--manifest", tmp_path / "sweep.jsonl", "--task", "0")
    assert tokens(results) == undisturbed


def test_a_node_that_goes_down_and_returns_loses_no_cell(cluster, tmp_path, undisturbed):
    """As after a power cut: daemon, steps and tasks are gone at once, and the controller learns of it."""
    results = plan(tmp_path, *LONG)
    job = f"{cluster.submit(tmp_path)}_0"
    in_the_second_cell(results)
    (claim,) = progress(results, ".running")
    node = cluster.processes.pop()
    victims = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "slurmstepd"]
    victims += [psutil.Process(json.loads(claim.read_text())["pid"])]
    for pid in [node.pid, *(p.pid for p in victims)]:
        os.kill(pid, signal.SIGKILL)
    node.wait()
    cluster.ask("scontrol", "update", "NodeName=localhost", "State=DOWN", "Reason=power", check=True)
    cluster.wait_until(job, "PENDING")
    assert len(cells(results)) == 1
    wait_for(lambda: not status(results).count("running"), "end of the claim: it is not taken for life", 30)
    cluster.start_node()
    cluster.finish(job)  # the controller may end the new task once more, for the old one's sake
    assert tokens(results) == undisturbed
