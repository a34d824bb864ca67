"""The first look as a newcomer gets it: decode the embedded grid, draw it, tabulate it; cold and warm.

Cold: an empty cache of compiled code. Warm: the same again into a new folder. Installation is no part of it. Memory is
that of all processes together, what they share counted once.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from bench_engine import ROOT, report

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
SPAN = r"([0-9.]+) (s|min|h)"


def seconds(text: str, before: str) -> float:
    """The time that a line names behind some words, such as "decoding 5.1 min"; 0 if it does not."""
    found = re.search(f"{before} {SPAN}", text)
    return float(found[1]) * UNITS[found[2]] if found else 0.0


def watch(process: psutil.Process, peak: list[float]) -> None:
    """Note the largest memory, GiB, of a process and all that it starts."""
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        total = 0
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.memory_full_info().pss
            except psutil.Error:
                continue
        peak[0] = max(peak[0], total / 2**30)
        time.sleep(3.0)


def command(environment: dict[str, str], *arguments: str | Path) -> tuple[float, list[tuple[float, str]], float]:
    """Run a command; its seconds, its lines with the time at which each came, and its peak memory in GiB."""
    started, lines, peak = time.monotonic(), [], [0.0]
    with subprocess.Popen(
        [sys.executable, "-m", "rsdbench", *map(str, arguments)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT,
    ) as process:  # fmt: skip
        watcher = threading.Thread(target=watch, args=(psutil.Process(process.pid), peak))
        watcher.start()
        for line in process.stdout:
            lines.append((time.monotonic() - started, line.strip()))
            print(f"{lines[-1][0]:7.1f}  {lines[-1][1]}", flush=True)
        if process.wait():
            raise SystemExit(f"{arguments[0]} failed")
        watcher.join()
    return time.monotonic() - started, lines, peak[0]


def first_look(name: str, results: Path, environment: dict[str, str]) -> dict[str, Any]:
    """The three commands of `reproduce.sh`, and the parts of the first."""
    run, lines, peak = command(environment, "run", "experiment=standin", f"results={results}")
    last = lines[-1][1]
    figure, *_ = command(environment, "figure", results, "--out", results / "figure.png")
    table, *_ = command(environment, "table", results, "--out", results / "points.csv")
    said = [(at, left) for at, text in lines if (left := seconds(text, "about")) and at < 0.9 * run]
    ratios = [left / (run - at) for at, left in said]
    compiling, decoding = seconds(last, "compiling"), seconds(last, "decoding")
    return {
        "run": name, "minutes": round((run + figure + table) / 60, 2), "compiling_s": compiling, "decoding_s": decoding,
        "rest_of_run_s": round(run - compiling - decoding, 1), "figure_s": round(figure, 1), "table_s": round(table, 1),
        "peak_gib": round(peak, 2), "said_over_actual_time_left": [round(ratio, 2) for ratio in ratios],
    }  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=Path, help="copy the results of the cold run here")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench" / "first_run.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        caches = {"XDG_CACHE_HOME": f"{folder}/cache", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
        environment = {**os.environ, **caches}
        rows = []
        for name in ("cold", "warm"):
            results = Path(folder) / name / "standin"
            rows.append(first_look(name, results, environment))
            if args.keep and name == "cold":
                shutil.copytree(results, args.keep, dirs_exist_ok=True)
            report(rows, args.out)


if __name__ == "__main__":
    main()
