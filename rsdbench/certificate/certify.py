"""Gather the evidence for a list of methods, weigh it, and write the certificate down."""

from __future__ import annotations

import gc
import math
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from statistics import NormalDist
from typing import Any

import pandas as pd
import torch
from scipy.optimize import brentq
from scipy.stats import chi2, ncx2

from rsdbench.backends.aot.library import compiler_at_hand
from rsdbench.certificate.enumeration import rules_alone
from rsdbench.certificate.evidence import Done, Evidence
from rsdbench.certificate.joint import SAMPLINGS, Greedy, JointLaw, Reproducible, SameTokens, structures
from rsdbench.certificate.mutants import T1, mutants
from rsdbench.certificate.on_backends import OTHERS, TRACED, is_alone
from rsdbench.certificate.shipped import shipped_rows
from rsdbench.certificate.whole_trees import trees_alone
from rsdbench.errors import UsageError
from rsdbench.methods import METHODS, get_method
from rsdbench.pair import quiet_libraries

ALPHA = 1e-3  # chance that a certificate of lossless methods fails; shared by all p-values (Bonferroni)
LEVELS = (1, 2, 3)
SAMPLES, LEAST_SAMPLES = 200_000, 20_000
POWER = 0.95
ALONE_SAMPLES = 4_000  # of a backend that decodes one sequence at a time
MUTANT_P = 1e-9  # a mutant must be less likely than this to be lossless
MUTANT_SAMPLES = 12_000  # fewer than the methods have: what is rejected with these is rejected with more


def gather(methods: list[str], samples: int, seed: int, levels: Collection[int] = LEVELS) -> list[Evidence]:
    """All that is to be checked at some levels, long pieces first. The mutants belong to level 2.

    Raises:
        UsageError: an unknown method, a negative seed, or too few samples for the tests to have power.
    """
    for name in methods:
        get_method(name)
    if samples < LEAST_SAMPLES:
        raise UsageError(f"--samples must be at least {LEAST_SAMPLES:,}, not {samples:,}: fewer say little")
    if seed < 0:
        raise UsageError(f"--seed must be at least 0, not {seed}")
    methods = list(dict.fromkeys(methods)) or list(METHODS)
    joint = [
        JointLaw(method, structure, sampling, samples, seed)
        for sampling in SAMPLINGS
        for method in methods
        for structure in structures(method)
    ]
    others = [backend for backend in OTHERS if backend == TRACED or compiler_at_hand()]
    elsewhere = [
        evidence
        for backend in others
        for method in methods
        for evidence in on_backend(backend, method, structures(method)[-1], samples, seed)
    ]
    pairs = [(method, structure) for method in methods for structure in structures(method)]
    engine = [
        *joint,
        *elsewhere,
        *(JointLaw(m.method, m.structure, m.sampling, MUTANT_SAMPLES, seed, m) for m in mutants(methods)),
        *(Greedy(*pair) for pair in pairs),
        *(Reproducible(*pair, seed) for pair in pairs),
    ]
    copies, texts = max(20, samples // 2_000), max(4, samples // 16_000)
    return [
        *(shipped_rows(methods, copies=copies, texts=texts, seed=seed) if 3 in levels else []),
        *(engine if 2 in levels else []),
        *([*rules_alone(methods, seed), *trees_alone(methods, seed)] if 1 in levels else []),
    ]


def on_backend(backend: str, method: str, structure: str | None, samples: int, seed: int) -> list[Evidence]:
    """What is checked of a backend other than the eager one, for the largest structure of a method."""
    same = [SameTokens(method, structure, sampling, seed, backend) for sampling in SAMPLINGS]
    if backend == TRACED:  # too slow for many samples: token by token it is the eager one
        return same
    count = samples // (10 if is_alone(backend) else 1)
    return [*same, JointLaw(method, structure, T1, max(count, ALONE_SAMPLES), seed, backend=backend)]


def run(evidence: list[Evidence]) -> Iterator[Done]:
    """Run all parts in worker processes; they come as they are finished.

    As many workers with one thread each as torch would use threads in one process. They are told what the methods'
    names mean here, so that a method which was registered a moment ago is certified like any other.
    """
    # a forked worker starts at once, and may be forked because it keeps to one thread, as torch's data loaders do
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(
        torch.get_num_threads(), context, initializer=start_worker, initargs=(dict(METHODS),)
    ) as pool:
        try:
            waiting = [
                pool.submit(run_part, i, j, part)
                for i, own in enumerate(evidence)
                for j, part in enumerate(own.parts())
            ]
            for future in as_completed(waiting):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in active_children():  # what they are at may take a minute
                worker.terminate()
            raise


def run_part(evidence: int, place: int, part: Callable[[], Any]) -> Done:
    """One part, in a worker process."""
    started = time.perf_counter()
    result = part()
    return Done(evidence, place, result, time.perf_counter() - started)


def start_worker(methods: dict[str, Any]) -> None:
    """What each worker process does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to answer
    torch.set_num_threads(1)
    quiet_libraries()
    gc.freeze()  # the libraries' many objects need not be looked at whenever a batch makes its lists
    METHODS.clear()
    METHODS.update(methods)


def conclude(evidence: list[Evidence], done: list[Done]) -> pd.DataFrame:
    """One row a check, with its verdict: pass or fail; for a mutant, rejected or missed. seconds: of one core.

    finds: the deviation from which on the check would have failed with a probability of 95 %, as `found_from`.
    """
    rows = []
    by_place = {(x.evidence, x.part): x for x in done}
    for i, own in enumerate(evidence):
        parts = [by_place[i, j] for j in range(len(own.parts()))]
        findings = own.conclude([x.result for x in parts])
        seconds = sum(x.seconds for x in parts) / len(findings)
        rows += [{**vars(finding), "seconds": seconds} for finding in findings]
    checks = pd.DataFrame(rows)
    tested = checks.p_value.notna() & ~checks.mutant
    checks.loc[tested, "bound"] = ALPHA / max(1, tested.sum())
    checks.loc[checks.mutant, "bound"] = MUTANT_P
    likely = checks.p_value >= checks.bound
    good = likely.where(checks.p_value.notna(), checks.statistic <= checks.bound)
    checks["verdict"] = good.map({True: "pass", False: "fail"})
    checks["finds"] = [found_from(check) for check in checks.itertuples()]
    checks.loc[checks.mutant, "verdict"] = (checks.p_value < checks.bound).map({True: "rejected", False: "missed"})
    return checks.sort_values(["mutant", "level"], kind="stable", ignore_index=True)


def found_from(check: Any) -> float:
    """The smallest deviation that a check finds with a probability of `POWER`.

    Of a chi-square test: total variation between two laws whose probabilities differ by the same share, up or down. Of
    a difference of scores: points. Of an exact check: its bound. NaN for mutants.
    """
    if check.mutant:
        return float("nan")
    if pd.isna(check.p_value):
        return float(check.bound)
    if pd.isna(check.freedom):
        spread = (check.high - check.low) / 2 / NormalDist().inv_cdf(0.975)
        return spread * (NormalDist().inv_cdf(1 - check.bound / 2) + NormalDist().inv_cdf(POWER))
    if check.freedom < 1:
        return float("nan")
    critical = chi2.isf(check.bound, check.freedom)
    distance = brentq(lambda x: ncx2.sf(critical, check.freedom, x) - POWER, 1e-9, 20 * critical)
    samples = check.samples / (2 if check.level == 3 else 1)  # against a sample, not against a law
    return float(min(1.0, math.sqrt(distance / samples) / 2))


def failed(checks: pd.DataFrame) -> pd.DataFrame:
    """Checks that failed, and mutants that were missed."""
    return checks[checks.verdict.isin(["fail", "missed"])]
