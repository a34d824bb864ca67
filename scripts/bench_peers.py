"""How fast decoding is beside transformers' own: AR against `generate`, SD against assisted generation.

    python scripts/bench_peers.py [--targets opt-6m opt-13.2m] [--out results/bench/peers.json]

The same pair, prompts, temperature, number of new tokens and number of drafts (6, constant, no confidence threshold) at
batch 1; whole calls are timed, prefill included, by turns in one process; medians of paired ratios. Tokens at
temperature 0 are compared, and target calls are counted in a pass of their own. Forwards here are compiled, as they are
in a run; theirs are as `generate` has them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from bench_engine import NEW_TOKENS, ROOT, TEMPERATURE, prompts_of, report

import rsdbench
from rsdbench.methods import BASELINE, METHODS
from rsdbench.pair import Pair, quiet_libraries

DRAFTS = 6
Decode = Callable[[list[int], float, int], list[int]]  # prompt, temperature, seed -> new tokens


def prepare(pair: Pair) -> None:
    """No end of sequence, so that all decode the same number of tokens; transformers' draft length held constant."""
    for model in (pair.target, pair.drafter):
        model.generation_config.eos_token_id = None
    own = pair.drafter.generation_config
    own.num_assistant_tokens, own.num_assistant_tokens_schedule = DRAFTS, "constant"
    own.assistant_confidence_threshold = 0.0


def ours(pair: Pair, method: str, structure: str) -> Decode:
    """This engine."""

    def decode(prompt: list[int], temperature: float, seed: int) -> list[int]:
        return rsdbench.generate(pair, [prompt], method, structure, NEW_TOKENS, temperature, seed=seed).tokens[0]

    return decode


def theirs(pair: Pair, assistant: Any) -> Decode:
    """transformers' `generate`, with the drafter as its assistant or without one."""

    @torch.inference_mode()
    def decode(prompt: list[int], temperature: float, seed: int) -> list[int]:
        torch.manual_seed(seed)
        ids = torch.tensor([prompt])
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        out = pair.target.generate(
            ids, attention_mask=torch.ones_like(ids), assistant_model=assistant, max_new_tokens=NEW_TOKENS,
            pad_token_id=1, **sampling,
        )  # fmt: skip
        return out[0, len(prompt) :].tolist()

    return decode


@contextmanager
def counted_calls(model: Any) -> Iterator[list[int]]:
    """Counts a model's forwards of the block it encloses."""
    calls = [0]

    def hook(*_: Any) -> None:
        calls[0] += 1

    handle = model.register_forward_pre_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


def tokens_per_call(pair: Pair, decode: Decode, prompts: list[list[int]]) -> float:
    """New tokens for each forward of the target, the prefill's included."""
    with counted_calls(pair.target) as calls:
        tokens = sum(len(decode(prompt, TEMPERATURE, i)) for i, prompt in enumerate(prompts))
    return tokens / calls[0]


def compare(pair: Pair, method: str, structure: str, peer: Decode, repeats: int) -> dict[str, Any]:
    """One row: rates, the median of their paired ratios, and whether greedy tokens agree."""
    prompts, own = prompts_of(pair), ours(pair, method, structure)
    plain = replace(pair, target_forward=None, drafter_forward=None)  # its calls can be counted
    equal = all(own(p, 0.0, 0) == peer(p, 0.0, 0) for p in prompts[:8])
    rates: tuple[list[float], list[float]] = [], []
    for i in range(repeats + 1):
        prompt = prompts[i % len(prompts)]
        for turn in (0, 1) if i % 2 else (1, 0):
            start = time.perf_counter()
            tokens = (own, peer)[turn](prompt, TEMPERATURE, i)
            seconds = time.perf_counter() - start
            if i:  # the first is the warm-up
                rates[turn].append(len(tokens) / seconds)
    return {
        "what": f"{METHODS[method].label} {structure}",
        "tokens_per_s": round(statistics.median(rates[0]), 1),
        "transformers_tokens_per_s": round(statistics.median(rates[1]), 1),
        "ratio": round(statistics.median(a / b for a, b in zip(*rates, strict=True)), 2),
        "equal_at_temperature_0": equal,
        "tokens_per_target_call": round(tokens_per_call(plain, ours(plain, method, structure), prompts), 3),
        "transformers_tokens_per_target_call": round(tokens_per_call(pair, peer, prompts), 3),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--targets", nargs="+", default=["opt-6m", "opt-13.2m"])
    parser.add_argument("--drafter", default="opt-25k")
    parser.add_argument("--repeats", type=int, default=32)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench" / "peers.json")
    args = parser.parse_args()
    quiet_libraries()
    rows = []
    for target in args.targets:
        pair = rsdbench.load_pair(target, args.drafter)
        pair.compile()
        prepare(pair)
        for method, structure, assistant in ((BASELINE, "0", None), ("sd", str(DRAFTS), pair.drafter)):
            row = compare(pair, method, structure, theirs(pair, assistant), args.repeats)
            rows.append({"target": target, "drafter": args.drafter, **row})
            print(rows[-1], flush=True)
    report(rows, args.out, transformers=transformers.__version__)


if __name__ == "__main__":
    main()
