"""How long `rsdbench status`, `figure` and `merge` take on a folder of many cells.

    python scripts/bench_results.py [--cells 10000] [--prompts 8] [--repeats 3] [--out results/bench/results.json]

The records are made up: 12 rows, four methods at five budgets with as many structures as it takes, of 8 prompts in both
phases. Whole commands are timed, imports included: the first figure reads every record, the later ones what it cached.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_engine import ROOT, report

from rsdbench.methods import BASELINE
from rsdbench.runner import progress, store
from rsdbench.runner.cells import Cell
from rsdbench.runner.plan import PlannedRow, planned_rows, register
from rsdbench.runner.provenance import provenance
from rsdbench.tasks.scores import SCORES

WORDS = (
    *("a", "the", "library", "tool", "of", "for", "and", "package", "files", "network", "program", "that", "contains"),
    *("this", "is", "server", "client"),
)


def made_up(planned: list[PlannedRow], count: int) -> list[Cell]:
    """So many cells over all rows: AR, and each method and budget with numbered structures."""
    points = [(m, b) for m in ("sd", "spectr", "rsd_c", "rsd_s") for b in (6, 10, 14, 21, 30)]
    names = ((method, str(i), budget) for i in itertools.count() for method, budget in points)
    cells: list[Cell] = [Cell(p.row, BASELINE, "0", 0) for p in planned]
    for method, structure, budget in names:
        cells += [Cell(p.row, method, structure, budget) for p in planned]
        if len(cells) >= count:
            return cells[:count]
    raise AssertionError("names never end")


def rows_of(cell: Cell, prompts: int, source: random.Random) -> list[dict[str, Any]]:
    """Records of a cell with numbers and texts of the usual sizes."""
    made = []
    for phase, i in itertools.product(("quality", "speed"), range(prompts)):
        tokens = [source.randrange(1024) for _ in range(32)]
        text, reference = (" ".join(source.choices(WORDS, k=12)) for _ in range(2))
        config = cell.row.config
        made.append(
            {
                "cell_id": cell.id, "experiment": config.name, "row": cell.row.label, "drafter": config.drafter.name,
                "target": config.target.name, "dataset": config.dataset.name, "method": cell.method,
                "structure": cell.structure, "budget": cell.budget, "depth": 3, "seed": 0, "prompt_id": f"p{i:04d}",
                "phase": phase, "turn": 0, "prompt_tokens": 60, "source_cut": 0, "new_tokens": 32,
                "blocks": source.randrange(10, 33), "accepted_by_depth": [5, 3, 1], "tokens": tokens,
                **(times(source) if phase == "speed" else {}), "text": text, "reference": reference,
                "metric": config.dataset.metric,
                "score_statistics": list(SCORES[config.dataset.metric].statistics(text, reference)),
                "drafter_params": 25_000 + 45_000 * ("70k" in config.drafter.name),
                "target_params": {"opt-2.6m": 2_600_000, "opt-6m": 6_000_000}.get(config.target.name, 13_200_000),
                "temperature": 0.3, "top_p": 1.0, "max_new_tokens": 32, "batch_size": 8, "device": "cpu",
                "dtype": "float32",
            }
        )  # fmt: skip
    return made


def times(source: random.Random) -> dict[str, Any]:
    """What records hold of a turn's times."""
    own, ar = ([source.randrange(5000, 9000) for _ in range(blocks)] for blocks in (20, 32))
    return {
        "prefill_s": 0.1, "decode_s": sum(own) / 1e6, "block_us": own, "draft_s": 0.01, "target_s": 0.1,
        "verify_s": 0.01, "commit_s": 0.01, "ar_new_tokens": 32, "ar_decode_s": sum(ar) / 1e6, "ar_block_us": ar,
        "steady": True,
    }  # fmt: skip


def fill(results: Path, cells: int, prompts: int) -> None:
    """Write the folder."""
    planned = planned_rows(["experiment=standin", f"results={results}"])
    progress.prepare(results)
    register(planned)
    metadata, source = provenance(torch.device("cpu"), "float32"), random.Random(0)
    for cell in made_up(planned, cells):
        store.write(cell, cell.path(results), rows_of(cell, prompts, source), metadata)


def seconds(*arguments: str | Path) -> float:
    """Wall time of a command."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "rsdbench", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench" / "results.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results, merged, figure = Path(folder) / "r", Path(folder) / "m.parquet", Path(folder) / "f.png"
        fill(results, args.cells, args.prompts)
        first = seconds("figure", results, "--out", figure)
        commands = {
            "status": ["status", results],
            "figure, from its cache": ["figure", results, "--out", figure],
            "merge": ["merge", results, "--out", merged],
            "figure, from a merged file": ["figure", merged, "--out", figure],
        }
        rows = [{"command": "figure, the first one", "seconds": round(first, 2)}]
        for name, command in commands.items():
            times = [seconds(*command) for _ in range(args.repeats)]
            rows.append({"command": name, "seconds": round(statistics.median(times), 2)})
    report([{"cells": args.cells, **row} for row in rows], args.out)


if __name__ == "__main__":
    main()
