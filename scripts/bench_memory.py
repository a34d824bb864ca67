"""What decoding takes of memory beside weights and cache, and whether it grows.

    python scripts/bench_memory.py [--out results/bench/memory.json]

1. Peak: a pair of random OPT models with a 125M target, batch 4, prompts of 128 tokens and 16 new ones: the largest
   resident memory while decoding, above what was there before the models, against weights and both caches; with the
   models' own forwards, and compiled, as `rsdbench run` has them, by a process that finds the libraries on disk. It
   depends on where the allocator finds room: the same again may give 0.03 more or less.
2. Growth: resident memory after 100 blocks and after 1,100 of the embedded 2.6M pair at batch 1.

Resident memory is sampled every 2 ms. Each method runs in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
from bench_engine import ROOT, cases, report
from transformers import OPTConfig, OPTForCausalLM

import rsdbench
from rsdbench.decoding.kv_cache import KVStorage
from rsdbench.pair import Pair, parameters, quiet_libraries

MIB = 2**20
BUDGETS = (6, 30)
BATCH, PROMPT, NEW_TOKENS = 4, 128, 16
BLOCKS_BEFORE, BLOCKS = 100, 1000


def random_pair() -> Pair:
    """A target of OPT-125M's shape and a drafter of 2 narrow layers, with random weights."""
    common = {"vocab_size": 50272, "max_position_embeddings": 512, "word_embed_proj_dim": None}
    sizes = [(768, 12, 12, 3072), (128, 2, 2, 512)]
    models = []
    for width, layers, heads, ffn in sizes:
        own = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "ffn_dim": ffn}
        models.append(OPTForCausalLM(OPTConfig(**{**common, **own, "word_embed_proj_dim": width})).eval())
    return Pair(*models)


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The largest resident memory of this process while the block runs, in bytes."""
    process, peak, done = psutil.Process(), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


@contextmanager
def counted_caches() -> Iterator[list[int]]:
    """Bytes of the caches that are allocated in the block."""
    allocated, real = [0], KVStorage.__init__

    def allocate(storage: KVStorage, *settings: Any) -> None:
        real(storage, *settings)
        allocated[0] += sum(run.nbytes for run in storage.runs)

    KVStorage.__init__ = allocate
    try:
        yield allocated
    finally:
        KVStorage.__init__ = real


def peak_of(method: str, structure: str, compiled: bool) -> dict[str, Any]:
    """Peak above the start against weights and caches."""
    quiet_libraries()
    prompts = [[2, *range(10 + i, PROMPT + 9 + i)] for i in range(BATCH)]
    pair = rsdbench.load_pair("opt-2.6m", "opt-25k", device="cpu")
    if compiled:
        pair.compile()
    rsdbench.generate(pair, [[2, 5, 6]], method, structure, 2, 0.3)
    del pair
    gc.collect()
    before = psutil.Process().memory_info().rss  # libraries have their workspaces by now
    pair = random_pair()
    if compiled:
        pair.compile()
    weights = 4 * (parameters(pair.target) + parameters(pair.drafter))
    with counted_caches() as caches, peak_memory() as peak:
        rsdbench.generate(pair, prompts, method, structure, NEW_TOKENS, 0.3)
    above = peak[0] - before
    if compiled:
        return {"compiled_peak_over_weights_and_caches": round(above / (weights + caches[0]), 3)}
    return {
        "weights_mib": round(weights / MIB, 1), "caches_mib": round(caches[0] / MIB, 1),
        "peak_mib": round(above / MIB, 1), "peak_over_weights_and_caches": round(above / (weights + caches[0]), 3),
    }  # fmt: skip


def growth_of(method: str, structure: str) -> dict[str, Any]:
    """Resident memory after BLOCKS more blocks."""
    quiet_libraries()
    pair, process = rsdbench.load_pair("opt-2.6m", "opt-25k", device="cpu"), psutil.Process()

    def decode(blocks: int) -> int:
        seed = 0
        while blocks > 0:
            seed += 1
            blocks -= sum(rsdbench.generate(pair, [[2, 5, 6, 7]], method, structure, 64, 0.3, seed=seed).blocks)
        gc.collect()
        return process.memory_info().rss

    before = decode(BLOCKS_BEFORE)
    return {"growth_mib_in_1000_blocks": round((decode(BLOCKS) - before) / MIB, 2)}


def in_a_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call a function in a new process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench" / "memory.json")
    args = parser.parse_args()
    rows = []
    for method, structure in cases(BUDGETS):
        in_a_process(peak_of, method, structure, True)  # compiles what is not on disk yet
        own = in_a_process(peak_of, method, structure, False) | in_a_process(peak_of, method, structure, True)
        rows.append({"method": method, "structure": structure, **own, **in_a_process(growth_of, method, structure)})
        print(rows[-1], flush=True)
    report(rows, args.out)


if __name__ == "__main__":
    main()
