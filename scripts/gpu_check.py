"""The engine on a GPU, at the paper's sizes, with random weights: what its models and blocks take.

    bash scripts/gpu_check.sh [OUT_DIR [SECONDS]]  # OUT_DIR/gpu_<device>.json; results/gpu and 460 if not named

For OPT-13B, 30B and 66B in bfloat16, as far as they fit, and drafters of OPT-125M's and OPT-350M's shape:

1. The same tokens with CUDA graphs, without them, and from AR: T=0, float32, a small model.
2. One step of a drafter; one forward of a target at 1 row and at each budget + 1, from tokens to laws.
3. AR against the rate of a large copy on the device: bytes of weights a second over bytes read and written a second.
4. A block of each method at each budget against AR's, and against its own bare forwards: the rest is time outside the
   two models. Random weights accept next to nothing, so the token rate is that of a given block efficiency.

Steps, forwards and AR are measured with CUDA graphs and without, blocks with them.

Times are medians, with the device synchronised at both ends; what is compared is measured by turns. A part that fails
is recorded, and the others go on: then the exit code is 1. Nothing is begun when the time is used up.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from gpu_measure import (
    GIB,
    SAMPLING,
    Settings,
    ar_against_copy,
    block_times,
    cases,
    ends,
    forward_times,
    free_memory,
    pairs_of,
    random_model,
    ratio,
    release,
    same_tokens,
    step_ms,
    weight_bytes,
)
from gpu_report import Report

from rsdbench.files import check_writable
from rsdbench.methods import METHODS
from rsdbench.pair import Pair, parameters, quiet_libraries
from rsdbench.runner.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
RESERVE = 8 * GIB  # beside a target's weights: caches, recordings, the buffers of the copy


def check_target(report: Report, settings: Settings, name: str, drafters: dict[str, Any], until: float) -> None:
    """All measurements of one target."""
    on_gpu = settings.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(settings.device)
    target = random_model(settings.targets[name], settings.device, settings.dtype)
    own = {"parameters": parameters(target), "weights_gib": weight_bytes(target) / GIB, "peak_gib": None}
    own |= {"forward_ms": {}, "forward_over_one_row": {}, "ar": {}}
    report.data["targets"][name] = own
    for drafter in drafters:
        check_pair(report, settings, name, drafter, target, drafters[drafter], until)
        release(settings.device)
    if on_gpu:
        own["peak_gib"] = torch.cuda.max_memory_allocated(settings.device) / GIB


def check_pair(
    report: Report, settings: Settings, name: str, drafter_name: str, target: Any, drafter: Any, until: float
) -> None:
    """A target with one drafter; with the first, the target alone too."""
    pairs = pairs_of(target, drafter, settings.forwards)
    first = drafter_name == next(iter(report.data["drafters"]))
    if first:
        for kind, pair in pairs.items():
            check_forwards(report, settings, name, kind, pair)
    plan, kind = planned(settings, first), settings.forwards[0]
    for place, (method, structure, budget) in enumerate(plan):
        part = f"{name}, {drafter_name}, {METHODS[method].label} {structure}"
        if time.monotonic() > until:
            report.skip(part, f"no time left for it and {len(plan) - place - 1} more of this pair")
            return
        with report.part(part):
            times = block_times(pairs[kind], method, structure, settings)
            where = {"target": name, "drafter": drafter_name, "forwards": kind}
            report.case({**where, "method": method, "structure": structure, "budget": budget}, times)


def check_forwards(report: Report, settings: Settings, name: str, kind: str, pair: Pair) -> None:
    """A target's forwards by rows, and AR against the copy."""
    own = report.data["targets"][name]
    with report.part(f"{name}, forwards, {kind}"):
        taken = forward_times(pair, settings)
        own["forward_ms"][kind] = {rows: statistics.median(times) for rows, times in taken.items()}
        own["forward_over_one_row"][kind] = ratio(taken[str(settings.rows[-1])], taken["1"])
    with report.part(f"{name}, AR, {kind}"):
        own["ar"][kind] = ar_against_copy(pair, settings)


def planned(settings: Settings, first: bool) -> list[tuple[str, str, int]]:
    """Method, structure and budget of each block to measure, with the quickest forwards, what matters most first.

    The first drafter: at all budgets. Other drafters: at the largest and the smallest.
    """
    outer = ends(settings)
    return cases(outer + [budget for budget in settings.budgets if first and budget not in outer])


def lacking(settings: Settings, name: str) -> str:
    """Why a target does not fit into the memory that is free; "" if it does."""
    on_paper = random_model(settings.targets[name], torch.device("meta"), settings.dtype)
    need, free = weight_bytes(on_paper) + RESERVE, free_memory(settings.device)
    return "" if need <= free else f"needs {need / GIB:.1f} GiB, and {free / GIB:.1f} are free"


def check(report: Report, settings: Settings) -> None:
    """Everything, each target freed before the next; the time is shared out evenly among those that are left."""
    end = time.monotonic() + settings.seconds
    with report.part("same tokens"):
        report.data["same_tokens"] = same_tokens(settings)
        if report.data["same_tokens"]["differing"]:
            report.fail("same tokens", "they differ: " + "; ".join(report.data["same_tokens"]["differing"]))
    drafters = {}
    for name, config in settings.drafters.items():
        with report.part(f"{name}, steps"):
            drafters[name] = random_model(config, settings.device, settings.dtype)
            own = report.data["drafters"][name] = {"parameters": parameters(drafters[name]), "step_ms": {}}
            for kind, pair in pairs_of(drafters[name], drafters[name], settings.forwards).items():
                own["step_ms"][kind] = step_ms(pair, settings)
    left = []
    for name in settings.targets:
        if why := lacking(settings, name):
            report.skip(name, why)
        else:
            left.append(name)
    while left:
        release(settings.device)
        now, name = time.monotonic(), left.pop(0)
        if now > end:
            report.skip(name, "no time left")
            continue
        with report.part(name):
            check_target(report, settings, name, drafters, now + (end - now) / (1 + len(left)))


def origin(settings: Settings, argv: list[str]) -> dict[str, Any]:
    """Where the numbers come from, and how they were measured."""
    known = provenance(settings.device, str(settings.dtype).removeprefix("torch."))
    found = {key: value for key, value in known.items() if key not in ("host", "job")}
    if settings.device.type == "cuda":
        found["memory_gib"] = torch.cuda.get_device_properties(settings.device).total_memory / GIB
        found["cuda"] = torch.version.cuda
    how = {key: getattr(settings, key) for key in ("forwards", "rows", "prompt", "new_tokens", "rounds", "calls")}
    return {**found, "argv": argv, "temperature": SAMPLING.temperature, **how}


def file_name(device: torch.device) -> str:
    """The name of a device's file."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"gpu_{re.sub('[^A-Za-z0-9.]+', '-', name)}.json"


def main() -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out_dir", type=Path, nargs="?", default=ROOT / "results" / "gpu")
    parser.add_argument("seconds", type=float, nargs="?", default=Settings.seconds, help="nothing is begun after them")
    args = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own word on a driver that is missing
        if not torch.cuda.is_available():
            print("gpu_check: no CUDA device here: run it on a machine that has one", file=sys.stderr)
            return 2
    try:
        check_writable(args.out_dir)
    except OSError as error:
        print(f"gpu_check: '{args.out_dir}' cannot be written ({error.strerror}): name another folder", file=sys.stderr)
        return 2
    quiet_libraries()
    settings = Settings(torch.device("cuda", torch.cuda.current_device()), seconds=args.seconds)
    argv = [Path(sys.argv[0]).name, *sys.argv[1:]]
    report = Report(args.out_dir / file_name(settings.device), origin(settings, argv))
    check(report, settings)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
