"""The built wheel works outside the repository: configs, weights and data travel in it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_wheel_runs_a_cell_and_draws_it(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    quiet = {"check": True, "capture_output": True, "text": True}
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT], **quiet)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel], **quiet)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1"}

    def python(*arguments):
        return subprocess.run([sys.executable, *arguments], env=environment, cwd=tmp_path, **quiet).stdout

    where = python("-c", "import rsdbench, rsdbench.runner.compose as c; print(rsdbench.__file__, c.CONFIGS)")
    assert where.split() == [
        str(tmp_path / "site" / "rsdbench" / "__init__.py"),
        str(tmp_path / "site" / "rsdbench" / "configs"),
    ]
    axes = ["drafter=opt-70k", "target=opt-6m", "dataset=xsum", "methods=[rsd_s]", "budgets=[6]"]
    assert "2 cells done" in python("-m", "rsdbench", "run", "experiment=smoke", *axes)
    assert "1 rows, 4 charts" in python("-m", "rsdbench", "figure", "results/smoke", "--out", "figure.pdf")
