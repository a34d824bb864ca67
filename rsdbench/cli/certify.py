"""`rsdbench certify`: the losslessness certificate of every registered method."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import track

from rsdbench.certificate.certify import LEAST_SAMPLES, LEVELS, SAMPLES, conclude, failed, gather, run
from rsdbench.certificate.report import markdown, table
from rsdbench.cli.output import check_folder, command_parser, output
from rsdbench.methods import METHODS
from rsdbench.runner.provenance import provenance


def main(arguments: list[str]) -> None:
    """Certify methods; exit code 1 if a check fails or a mutant is missed.

    Raises:
        UsageError: an unknown method, a seed or number of samples that cannot be used, or a folder that cannot be
            written.
    """
    parser = command_parser(
        "certify", "Gather evidence that methods are lossless, and that it would show if they were not.",
        "rsdbench certify rsd_s --levels 1",
    )  # fmt: skip
    parser.add_argument("methods", nargs="*", help=f"of {', '.join(METHODS)} (default: all that are registered)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--samples", type=int, default=SAMPLES,
        help=f"continuations a method, structure and setting (%(default)s; at least {LEAST_SAMPLES})",
    )  # fmt: skip
    parser.add_argument(
        "--levels", type=int, nargs="+", choices=LEVELS, default=LEVELS,
        help="1 the rules alone, in seconds; 2 the engine, and mutants; 3 the embedded models (all)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder for certificate.parquet and certificate.md")
    args = parser.parse_args(arguments)

    evidence = gather(args.methods, args.samples, args.seed, args.levels)
    origin = provenance(torch.device("cpu"), "float32")
    del origin["host"], origin["job"]
    command = shlex.join(["rsdbench", "certify", *arguments])
    origin |= {"seed": str(args.seed), "command": command}
    if args.out is not None:
        check_folder(args.out)
    started = time.perf_counter()
    console = Console(file=sys.stderr)
    total = sum(len(own.parts()) for own in evidence)
    parts = track(run(evidence), "certifying", total, console=console, disable=not console.is_terminal)
    checks = conclude(evidence, list(parts))
    page = markdown(checks, origin, time.perf_counter() - started, args.out is not None)
    if args.out is not None:
        with output(args.out / "certificate.parquet") as stream:
            pq.write_table(table(checks, origin), stream)
        with output(args.out / "certificate.md") as stream:
            stream.write(page.encode())
    print(page, end="")
    if len(failed(checks)):
        sys.exit(1)
