"""One parquet file a cell, complete or absent: the only record of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rsdbench.errors import UsageError
from rsdbench.files import whole_file
from rsdbench.results.schema import SCHEMA, short_digest

PREFIX = "rsdbench."  # of the keys of a file's metadata
MAGIC = b"PAR1"

COLUMNS = pa.schema(
    [
        ("cell_id", pa.string()),
        ("experiment", pa.string()),
        ("row", pa.string()),  # the figure's row, such as "OPT-25K-2.6M, De-En"
        ("drafter", pa.string()),
        ("target", pa.string()),
        ("dataset", pa.string()),
        ("method", pa.string()),
        ("structure", pa.string()),
        ("budget", pa.int32()),
        ("depth", pa.int32()),  # drafter calls a block
        ("seed", pa.int64()),
        ("prompt_id", pa.string()),
        ("phase", pa.string()),  # quality: decoded in batches; speed: at batch 1, in turns with AR; profile: batch 1
        ("turn", pa.int32()),  # speed phase: each prompt is decoded in several turns, 0, 1, ..., a row each
        ("prompt_tokens", pa.int32()),
        ("source_cut", pa.int32()),  # characters of the source that did not fit
        ("new_tokens", pa.int32()),
        ("blocks", pa.int32()),
        ("accepted_by_depth", pa.list_(pa.int32())),
        ("tokens", pa.list_(pa.int32())),
        ("prefill_s", pa.float64()),  # all times are of single sequences: null in the quality phase
        ("decode_s", pa.float64()),
        ("block_us", pa.list_(pa.int32())),  # of each block, microseconds: they add up to decode_s
        ("draft_s", pa.float64()),
        ("target_s", pa.float64()),
        ("verify_s", pa.float64()),
        ("commit_s", pa.float64()),
        ("ar_new_tokens", pa.int32()),  # speed phase: AR on the same prompt, in the same turn
        ("ar_decode_s", pa.float64()),
        ("ar_block_us", pa.list_(pa.int32())),
        ("steady", pa.bool_()),  # speed phase: whether AR took the time that it takes in the row's other turns
        ("text", pa.string()),
        ("reference", pa.string()),
        ("metric", pa.string()),  # a name of `scores.SCORES`
        ("score_statistics", pa.list_(pa.float64())),  # of this answer; a cell's score follows from their sums
        ("drafter_params", pa.int64()),
        ("target_params", pa.int64()),
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("max_new_tokens", pa.int32()),
        ("batch_size", pa.int32()),
        ("device", pa.string()),
        ("dtype", pa.string()),
        ("quantization", pa.string()),  # of the target's weights; null: none
    ]
)


class BadRecord(Exception):
    """A record that must not be used; says in a few words what is wrong with it."""


@dataclass(frozen=True)
class Record:
    """What a file holds: one row a prompt, and where they come from."""

    table: pa.Table
    metadata: dict[str, str]

    @property
    def cell(self) -> dict[str, Any]:
        """All that the cell's content depends on, as `Cell.config` gives it."""
        return json.loads(self.metadata["cell"])


@contextmanager
def writing(results: Path) -> Iterator[None]:
    """What cannot be written is said in one line.

    Raises:
        UsageError: the results folder cannot be written, or its disk is full.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"results folder '{results}' cannot be written ({error.strerror or error}): mend that and run the same "
            "command again, which goes on from there, or give another one with results=DIR"
        ) from None


def write_record(table: pa.Table, path: Path) -> None:
    """A parquet file with checksums. Without dictionaries: for few rows they cost more time than they save."""
    for attempt in (1, 2):
        try:
            with whole_file(path) as stream:
                pq.write_table(table, stream, write_page_checksum=True, use_dictionary=False)
            return
        except FileNotFoundError:  # a clock that jumped made the unfinished file look left over, and it was swept
            if attempt == 2:
                raise


def read_file(path: Path, columns: list[str] | None = None) -> Record:
    """A record; the checksums of the pages that are read are verified.

    Raises:
        BadRecord: it is damaged or of another schema.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        schema = file.schema_arrow
        table = file.read(columns, use_threads=False)
    except (pa.ArrowException, OSError):
        raise BadRecord("damaged") from None
    found = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    metadata = {key.removeprefix(PREFIX): value for key, value in found.items() if key.startswith(PREFIX)}
    cell = metadata.get("cell", "{}")
    known = "config" in metadata and json.loads(cell).get("schema") == SCHEMA
    if not known or not schema.equals(COLUMNS, check_metadata=False):
        raise BadRecord("of another version's schema")
    if short_digest(cell) != path.stem.rpartition("_")[2]:
        raise BadRecord("of another cell than its name says")
    if not file.metadata.num_rows:
        raise BadRecord("empty")
    return Record(table.replace_schema_metadata(), metadata)


def looks_whole(path: Path) -> bool:
    """Whether a file begins and ends as a parquet file does: cheap, for counting."""
    try:
        with path.open("rb") as stream:
            start = stream.read(len(MAGIC))
            stream.seek(-len(MAGIC), 2)
            return start == MAGIC == stream.read()
    except OSError:
        return False
