"""`rsdbench merge`: all records of a results folder as one file, checked."""

from __future__ import annotations

import sys
from pathlib import Path

from rsdbench.cli.output import command_parser, output
from rsdbench.errors import UsageError
from rsdbench.results.cell_metrics import try_to_refresh
from rsdbench.results.collect import collect, write_merged
from rsdbench.results.consistency import configurations, notes, versions


def main(arguments: list[str]) -> None:
    """Write one parquet file of a folder's records, and bring the folder's metrics up to date.

    Raises:
        UsageError: there are none, one is damaged, they are of different configurations or versions of the code, or the
            file cannot be written.
    """
    example = "rsdbench merge results/standin --out all.parquet"
    parser = command_parser("merge", "All records of a results folder as one file.", example)
    parser.add_argument("results", type=Path, help="a folder that `rsdbench run` filled")
    parser.add_argument("--out", type=Path, required=True, help="FILE.parquet")
    parser.add_argument(
        "--allow-mixed", action="store_true", help="also if cells differ in configuration or code; says what differs"
    )
    args = parser.parse_args(arguments)
    if args.out.suffix != ".parquet":
        raise UsageError(f"--out '{args.out}' must end in .parquet")
    found = collect(args.results)
    mixed = configurations(found) + versions(found)
    if mixed and not args.allow_mixed:
        raise UsageError(
            f"'{args.results}' mixes cells that differ in {'; '.join(mixed)}: run each in a folder of its own, or "
            "merge with --allow-mixed"
        )
    with output(args.out) as stream:
        write_merged(found, stream)
    if args.results.is_dir() and not mixed:
        try_to_refresh(args.results)
    for line in mixed:
        print(f"mixed: {line}", file=sys.stderr)
    for line in notes(found):
        print(f"note: cells differ in {line}", file=sys.stderr)
    print(
        f"{args.out}: {len(found.cells)} cells, {found.table.num_rows} rows, {args.out.stat().st_size / 2**20:.1f} MiB"
    )
