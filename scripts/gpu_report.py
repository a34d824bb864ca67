"""What `gpu_check.py` has measured: kept as JSON after each part, set against targets, and printed as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rsdbench.files import whole_file
from rsdbench.methods import METHODS
from rsdbench.results.readings import paper, reading

LEAST, MOST = paper()["budgets"]
BLOCK_EFFICIENCY, TOKEN_RATE = reading("block efficiency"), reading("token rate")
GIVEN = "the paper's OPT-125M-13B, WMT, read at 6 and 30 tokens; a straight line between them"
PAPER = "the paper's OPT-125M-66B, WMT, read at 6 and 30 tokens"

DRAFTER_STEP_MS, SHARE_OF_COPY, ROWS_OVER_ONE, OUTSIDE = 0.6, 0.85, 1.10, 0.05  # targets


class Report:
    """Everything that is known so far, in `data`, which is written to a file again after each part."""

    def __init__(self, path: Path, origin: dict[str, Any]) -> None:
        self.path = path
        lists = {key: [] for key in ("cases", "ratios", "skipped", "failed")}
        given = {"block_efficiency": GIVEN, "paper_token_rate": PAPER}
        self.data = {"state": "running", "part": "", **origin, **given, "drafters": {}, "targets": {}, **lists}
        self.write()

    def write(self) -> None:
        """The whole file anew."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as stream:
            stream.write((json.dumps(self.data, indent=1) + "\n").encode())

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part that may fail without the others: its error is kept and printed."""
        self.data["part"] = name
        self.write()
        print(name, flush=True)
        try:
            yield
        except Exception as error:
            self.fail(name, (str(error).strip().splitlines() or [type(error).__name__])[0])
        self.write()

    def fail(self, name: str, error: str) -> None:
        """Keep and print that a part has failed."""
        self.data["failed"].append({"part": name, "error": error})
        print(f"{name}: failed: {error}", flush=True)

    def skip(self, name: str, reason: str) -> None:
        """Keep and print that a part is left out."""
        self.data["skipped"].append({"part": name, "reason": reason})
        print(f"{name}: skipped: {reason}", flush=True)

    def case(self, where: dict[str, Any], times: dict[str, float]) -> None:
        """Keep a method's times at a budget, and the token rate that they would give."""
        efficiency = given_block_efficiency(where["method"], where["budget"])
        rates = {"token_rate": efficiency * times["ar_over_block"], "paper_token_rate": paper_token_rate(where)}
        self.data["cases"].append({**where, **times, "block_efficiency": efficiency, **rates})

    def finish(self) -> int:
        """Compare with the targets, write, print; returns the exit code."""
        self.data["ratios"] = ratios(self.data)
        self.data["state"] = "finished"
        self.write()
        print("\n" + text(self.data) + f"\n\nwritten to {self.path}", flush=True)
        return 1 if self.data["failed"] else 0


def given_block_efficiency(method: str, budget: int) -> float:
    """The block efficiency that is given, not measured: random weights accept next to nothing."""
    least, most = BLOCK_EFFICIENCY[method]
    return round(least + (most - least) * (budget - LEAST) / (MOST - LEAST), 4)


def paper_token_rate(where: dict[str, Any]) -> float | None:
    """The paper's reading for a method and a budget, if it was read there."""
    readings = dict(zip((LEAST, MOST), TOKEN_RATE[where["method"]], strict=True))
    return readings.get(where["budget"])


def ratios(data: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured against its target, with the first way of running the models, which is the quickest.

    What was not measured is left out.
    """
    kind, found = data["forwards"][0], []

    def compare(what: str, value: float | None, target: str, met: bool) -> None:
        if value is not None:
            found.append({"what": what, "value": round(value, 4), "target": target, "met": met})

    for name, drafter in list(data["drafters"].items())[:1]:
        step = drafter["step_ms"].get(kind)
        compare(f"{name}, ms per drafter step", step, f"< {DRAFTER_STEP_MS}", (step or 0) < DRAFTER_STEP_MS)
    for name, target in data["targets"].items():
        share = target["ar"].get(kind, {}).get("share_of_copy")
        compare(f"{name}, AR over copy bandwidth", share, f">= {SHARE_OF_COPY}", (share or 0) >= SHARE_OF_COPY)
        over = target["forward_over_one_row"].get(kind)
        rows = data["rows"][-1]
        compare(f"{name}, {rows}-row forward over 1-row", over, f"<= {ROWS_OVER_ONE}", (over or 0) <= ROWS_OVER_ONE)
        for method, known in METHODS.items():
            own = [c for c in data["cases"] if (c["target"], c["method"], c["forwards"]) == (name, method, kind)]
            most = max((c["outside"] for c in own), default=None)
            what = f"{name}, {known.label}, most time outside the two models"
            compare(what, most, f"< {OUTSIDE}", (most or 0) < OUTSIDE)
    return found


def text(data: dict[str, Any]) -> str:
    """All of it, to be read."""
    head = ", ".join(f"{key} {data[key]}" for key in ("device", "dtype", "torch", "transformers"))
    parts = [head, same_tokens(data), drafters(data), targets(data), cases(data), compared(data)]
    parts += [f"skipped: {x['part']}: {x['reason']}" for x in data["skipped"]]
    parts += [f"failed: {x['part']}: {x['error']}" for x in data["failed"]]
    return "\n\n".join(part for part in parts if part)


def same_tokens(data: dict[str, Any]) -> str:
    """Whether tokens are the same however the models run."""
    found = data.get("same_tokens")
    if found is None:
        return ""
    ways = " and ".join(data["forwards"])
    differing = ", ".join(found["differing"]) or "none"
    return f"tokens at T=0 in float32, {ways} against AR, {found['decoded']} decodings: differing: {differing}"


def drafters(data: dict[str, Any]) -> str:
    """The drafters' steps."""
    rows = [
        (name, drafter["parameters"], *(number(drafter["step_ms"].get(kind)) for kind in data["forwards"]))
        for name, drafter in data["drafters"].items()
    ]
    return table(("drafter", "parameters", *(f"ms per step, {kind}" for kind in data["forwards"])), rows)


def targets(data: dict[str, Any]) -> str:
    """The targets' forwards by number of rows, and AR against the copy bandwidth."""
    numbers = [str(rows) for rows in data["rows"]]
    columns = ("target", "forwards", "AR ms/token", "AR GB/s", "copy GB/s", "of copy")
    rows = []
    for name, target in data["targets"].items():
        for kind in data["forwards"]:
            ar, ms = target["ar"].get(kind, {}), target["forward_ms"].get(kind, {})
            own = [number(ar.get(key)) for key in ("ms_per_token", "gb_per_s", "copy_gb_per_s", "share_of_copy")]
            over = number(target["forward_over_one_row"].get(kind))
            rows.append((name, kind, *own, *(number(ms.get(n)) for n in numbers), over, number(target["peak_gib"])))
    return table((*columns, *(f"{n} rows ms" for n in numbers), f"{numbers[-1]}/1", "peak GiB"), rows)


def cases(data: dict[str, Any]) -> str:
    """The methods' blocks, and the token rates that they would give."""
    keys = ("block_ms", "bare_ms", "outside", "block_efficiency", "token_rate", "paper_token_rate")
    rows = [
        (c["target"], c["drafter"], c["forwards"], METHODS[c["method"]].label, c["budget"], c["structure"],
         *(number(c[key]) for key in keys))
        for c in data["cases"]
    ]  # fmt: skip
    columns = ("target", "drafter", "forwards", "method", "tokens", "structure", "block ms", "models ms")
    drawn = table((*columns, "outside", "BE given", "token rate", "paper"), rows)
    notes = f"token rate: relative to AR of the same forwards, with BE given: {GIVEN}\npaper: {PAPER}"
    return f"{drawn}\n{notes}" if drawn else ""


def compared(data: dict[str, Any]) -> str:
    """The ratios and their targets."""
    rows = [(r["what"], number(r["value"]), r["target"], "met" if r["met"] else "not met") for r in data["ratios"]]
    return table(("against its target", "measured", "target", ""), rows)


def number(value: float | None) -> str:
    """Three digits or more; "-" for what was not measured."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns under their names, or nothing if there are no rows."""
    if not rows:
        return ""
    lines = [columns, *([str(x) for x in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip() for line in lines)
