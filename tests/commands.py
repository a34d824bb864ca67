"""The command line in processes of their own, forked from one that has imported everything, which takes seconds."""

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp

ROOT = Path(__file__).resolve().parents[1]
# seconds in all: enough batches to be interrupted in
SMALL = ["experiment=smoke", "drafter=opt-25k", "target=opt-2.6m", "dataset=wmt", "methods=[sd]", "budgets=[6]"]
LONG = [*SMALL, "dataset.num_prompts=60", "quality.batch_size=1", "speed.num_prompts=0", "decode.max_new_tokens=16"]

LONG_ENOUGH = 300  # seconds: what has not happened by then, on a machine that is busy with other work, will not happen

context = get_context("forkserver")
context.set_forkserver_preload(["tests.preload"])


def work(arguments, out, err, cwd, environment):
    """In the forked process: what the shell and the entry point do."""
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644), number)
    os.environ.update(environment)
    os.chdir(cwd)
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored

    from rsdbench.cli.main import main

    sys.argv = ["rsdbench", *arguments]
    main(arguments)


class Command:
    """A running `rsdbench`."""

    def __init__(self, *arguments, cwd=ROOT, **environment):
        self.folder = Path(mkdtemp(prefix="rsdbench-command-"))
        self.arguments = [str(a) for a in arguments]
        files = (str(self.folder / "out"), str(self.folder / "err"))
        for file in files:
            Path(file).touch()
        self.process = context.Process(target=work, args=(self.arguments, *files, str(cwd), environment))
        self.process.start()

    @property
    def pid(self):
        return self.process.pid

    @property
    def out(self):
        return (self.folder / "out").read_text()

    @property
    def err(self):
        return (self.folder / "err").read_text()

    def wait(self, code=0, seconds=LONG_ENOUGH):
        self.process.join(seconds)
        assert self.process.exitcode == code, f"{self.arguments}: {self.process.exitcode}\n{self.err}"
        assert "Traceback" not in self.err
        return self.out, self.err


def rsdbench(*arguments, code=0, cwd=ROOT, **environment):
    """Run a command to its end."""
    return Command(*arguments, cwd=cwd, **environment).wait(code)


def shell(*arguments, code=0, cwd=ROOT):
    """The same in a process of its own from the start."""
    command = [sys.executable, "-m", "rsdbench", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False)
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stdout, ran.stderr


def wait_for(condition, what, seconds=LONG_ENOUGH):
    """Look until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} in {seconds} s"
        time.sleep(0.02)


def in_the_second_cell(results):
    """Wait until LONG has done one cell and a part of the next one."""
    wait_for(lambda: cells(results) and progress(results, ".running"), "claim of the second cell")
    time.sleep(1.5)


def cells(results):
    """Cell files of a folder."""
    return sorted((Path(results) / "cells").glob("[!.]*.parquet"))


def progress(results, kind):
    """Files of a kind in RESULTS/progress."""
    return sorted((Path(results) / "progress").glob(f"*{kind}"))


def tokens(results):
    """(cell, phase, prompt, turn) -> tokens, of all records."""
    import pandas as pd

    frame = pd.concat([pd.read_parquet(file) for file in cells(results)])
    keys = zip(frame.cell_id, frame.phase, frame.prompt_id, frame.turn, strict=True)
    found = {key: list(value) for key, value in zip(keys, frame.tokens, strict=True)}
    assert len(found) == len(frame), "a prompt came twice"
    return found


def lines(manifest):
    """A manifest's lines."""
    return [json.loads(line) for line in Path(manifest).read_text().splitlines()]
