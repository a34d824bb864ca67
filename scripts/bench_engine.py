"""How much the engine adds to its models' own forwards, and what batching gains.

    python scripts/bench_engine.py [--targets opt-6m opt-13.2m] [--out results/bench/engine.json]

Printed and written as JSON, for AR and for each method at budgets 6 and 30. Everything is compared in one process and
by turns, as medians of ratios, because machines are shared and noisy.

1. Batch 16 against batch 1, in tokens a second of decoding; and the bare forwards of 2. alone, in sequences a second,
   which is what the arithmetic of this machine leaves room for.
2. Decode time of a block against the sum of its bare forwards: L drafter forwards at their widths and one target
   forward at B + 1 rows, each a call of the compiled forward that takes tokens to laws, with arguments that lie ready.
3. Decode time of a block with the models' own forwards against compiled ones.
4. The bare forwards against the floor that memory sets: each forward reads its weights once, at the rate at which one
   row goes through a matrix of 150 MB.
5. One row through the drafter, in milliseconds, anew for each row of the table: the machine is not always as quiet.
6. The time of verification in a block, in milliseconds, the copy of its tokens included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import rsdbench
from rsdbench.backends.aot.engine import AOTBackend
from rsdbench.backends.aot.gemm import linear
from rsdbench.backends.aot.library import Library
from rsdbench.backends.aot.recipes import forward_recipe
from rsdbench.backends.eager import CachedLM
from rsdbench.decoding.backend import Job
from rsdbench.decoding.forward import Rows
from rsdbench.decoding.generation import Generation
from rsdbench.methods import BASELINE, METHODS, get_shape, load, tree_rule
from rsdbench.pair import Pair, parameters
from rsdbench.sampling.distributions import Sampling
from rsdbench.tasks.splits import DATA

ROOT = Path(__file__).resolve().parents[1]
TEMPERATURE, NEW_TOKENS, BATCH = 0.3, 32, 16
BUDGETS = (6, 30)


def prompts_of(pair: Pair) -> list[list[int]]:
    """BATCH prompts of the synopsis task, cut to 100 tokens."""
    sources = pd.read_parquet(DATA / "debian_synopsis.parquet").source[:BATCH]
    return [pair.tokenizer(s).input_ids[:100] for s in sources]


def cases(budgets: tuple[int, ...]) -> list[tuple[str, str]]:
    """AR, and the first structure of each method at each budget."""
    found = [(BASELINE, "0")]
    for name, method in METHODS.items():
        found += [(name, method.structures[b][0]) for b in budgets if b in method.structures]
    return found


def rate(out: Generation) -> float:
    """Tokens a second of decoding."""
    return sum(map(len, out.tokens)) / out.decode_s


def batch_gain(pair: Pair, method: str, structure: str, repeats: int) -> float:
    """Median ratio of tokens a second, batch 16 to batch 1, measured by turns."""
    prompts = prompts_of(pair)

    def run(batch: list[list[int]], seed: int) -> float:
        return rate(rsdbench.generate(pair, batch, method, structure, NEW_TOKENS, TEMPERATURE, seed=seed))

    run(prompts, 0)
    run(prompts[:1], 0)
    ratios = []
    for i in range(repeats):
        single = statistics.median(run([prompts[(4 * i + j) % BATCH]], i) for j in range(4))
        ratios.append(run(prompts, i) / single)
    return statistics.median(ratios)


def bare_forwards(pair: Pair, method: str, structure: str, length: int, batch: int = 1) -> Callable[[], None]:
    """A function that calls one block's compiled forwards and does nothing else, on sequences of `length` tokens."""
    backend = backend_of(pair, method, structure, [[5] * (length + 1)] * batch)
    tree, prefix, calls = backend.tree, backend.place[:length], []

    def prepare(library: Library, cached: CachedLM, slots: Tensor, depths: Tensor) -> None:
        rows = Rows(tree.tokens[:, slots], depths, tree.ancestors[:, slots], backend.length, prefix, slots)
        inputs = [*(x.contiguous() for x in rows), backend.temperature, *cached.cache.keys_values]
        calls.append((library.run, inputs))

    for slots, _, depth in backend.levels:
        prepare(drafter_forward(pair.drafter), backend.drafter, slots, depth.expand(len(slots)))
    target = pair.engine.library((forward_recipe, pair.target, True))
    prepare(target, backend.target, backend.rows + 1, backend.depths)

    @torch.inference_mode()
    def run() -> None:
        for call, inputs in calls:
            call(list(inputs))

    return run


def backend_of(pair: Pair, method: str, structure: str, prompts: list[list[int]]) -> AOTBackend:
    """What decodes a batch of prompts."""
    own, room = METHODS[method], [NEW_TOKENS] * len(prompts)
    sampling, shape = Sampling.at(TEMPERATURE), get_shape(method, structure)
    return pair.engine.backend(
        Job(load(own.strategy), tree_rule(own), shape, sampling, prompts, room, pair.positions, seed=0)
    )


@lru_cache(maxsize=1)
def drafter_forward(drafter: Any) -> Library:
    """The drafter's forward alone, which decoding calls with what it draws."""
    return forward_recipe(drafter, True, drafts=True).library()


def bare_gain(pair: Pair, method: str, structure: str, repeats: int) -> float:
    """Median ratio of sequences a second through the bare forwards, batch 16 to batch 1, measured by turns."""
    many, single = (bare_forwards(pair, method, structure, 100 + NEW_TOKENS // 2, b) for b in (BATCH, 1))

    def seconds(run: Callable[[], None]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    seconds(many), seconds(single)  # they allocate their caches
    ratios = []
    for _ in range(5 * repeats):
        ratios.append(BATCH * statistics.median(seconds(single) for _ in range(4)) / seconds(many))
    return statistics.median(ratios)


def read_rate(repeats: int) -> float:
    """Bytes a second that one row through a large matrix reads, by oneDNN where it is at hand: the best of some."""
    weight = torch.randn(50272, 768).t().contiguous().t()  # lies by input, as `lay_out` has it
    row, times = torch.randn(1, 768), []
    with torch.inference_mode():
        for _ in range(10 * repeats):
            start = time.perf_counter()
            linear(row, weight)
            times.append(time.perf_counter() - start)
    return weight.nbytes / min(times)


def floor_ms(pair: Pair, method: str, structure: str, rate: float) -> float:
    """Milliseconds in which a block's forwards could read their weights."""
    read = parameters(pair.target) + get_shape(method, structure).depth * parameters(pair.drafter)
    return 1e3 * 4 * read / rate


def overhead(pair: Pair, method: str, structure: str, repeats: int) -> dict[str, float]:
    """Medians, taken by turns: a block's decode time over its bare forwards, and of itself uncompiled over compiled.

    And the times of these bare forwards and of verification in a block, in ms.
    """
    prompt = prompts_of(pair)[0]
    plain = replace(pair, compiled=None)
    bare = bare_forwards(pair, method, structure, len(prompt) + NEW_TOKENS // 2)

    def block(which: Pair, seed: int) -> tuple[float, float, int]:
        out = rsdbench.generate(which, [prompt], method, structure, NEW_TOKENS, TEMPERATURE, seed=seed)
        blocks = sum(out.blocks)
        return out.decode_s / blocks, out.phase_s["verify"] / blocks, blocks

    over_bare, over_compiled, times, verify = [], [], [], []
    for i in range(repeats + 1):
        own, verification, blocks = block(pair, i)
        start = time.perf_counter()
        for _ in range(blocks):
            bare()
        seconds = (time.perf_counter() - start) / blocks
        if i:  # the first is the warm-up
            over_bare.append(own / seconds)
            times.append(1e3 * seconds)
            verify.append(1e3 * verification)
    for i in range(repeats + 1):  # apart, because what is uncompiled leaves nothing of the compiled forwards in caches
        own, uncompiled = block(pair, i)[0], block(plain, i)[0]
        if i:
            over_compiled.append(uncompiled / own)
    return {
        "decode_over_bare_forwards": round(statistics.median(over_bare), 3),
        "uncompiled_over_compiled": round(statistics.median(over_compiled), 2),
        "bare_forwards_ms": round(statistics.median(times), 2),
        "verify_ms": round(statistics.median(verify), 3),
    }


def drafter_step(pair: Pair, repeats: int) -> float:
    """Median time of one row through the drafter behind 100 tokens, in ms."""
    backend = backend_of(pair, "sd", "6", [[5] * 101])
    slots, _, depth = backend.levels[1]
    tree, call = backend.tree, drafter_forward(pair.drafter).run
    rows = Rows(
        tree.tokens[:, slots], depth.view(1), tree.ancestors[:, slots], backend.length, backend.place[:100], slots
    )
    inputs, times = [*(x.contiguous() for x in rows), backend.temperature, *backend.drafter.cache.keys_values], []
    with torch.inference_mode():
        for _ in range(100 * repeats):
            start = time.perf_counter()
            call(list(inputs))
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def report(rows: list[dict[str, Any]], out: Path, **versions: str) -> None:
    """Print rows as a table and write them as JSON, with the threads and versions they were measured with."""
    origin = {"threads": torch.get_num_threads(), "torch": torch.__version__, **versions}
    table = Table(title=", ".join(f"{key} {value}" for key, value in origin.items()))
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=150).print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**origin, "rows": rows}, indent=1) + "\n")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--targets", nargs="+", default=["opt-6m", "opt-13.2m"])
    parser.add_argument("--drafter", default="opt-25k")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench" / "engine.json")
    args = parser.parse_args()
    rows = []
    for target in args.targets:
        pair = rsdbench.load_pair(target, args.drafter)
        pair.compile()
        reads = read_rate(args.repeats)
        for method, structure in cases(BUDGETS):
            gain = batch_gain(pair, method, structure, args.repeats)
            own = overhead(pair, method, structure, 10 * args.repeats)
            floor = floor_ms(pair, method, structure, reads)
            rows.append(
                {"target": target, "drafter": args.drafter, "method": method, "structure": structure,
                 "batch_16_over_1": round(gain, 2),
                 "bare_16_over_1": round(bare_gain(pair, method, structure, args.repeats), 2), **own,
                 "bare_forwards_over_floor": round(own["bare_forwards_ms"] / floor, 2),
                 "read_gb_per_s": round(reads / 1e9, 1), "drafter_step_ms": round(drafter_step(pair, args.repeats), 3)}
            )  # fmt: skip
            print(rows[-1], flush=True)
    report(rows, args.out)


if __name__ == "__main__":
    main()
