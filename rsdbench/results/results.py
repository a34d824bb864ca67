"""What figures, tables and claims are made from: all records of a folder or merged file, and what was asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rsdbench.errors import UsageError
from rsdbench.methods import BASELINE
from rsdbench.results.collect import Asked, Collection, collect
from rsdbench.results.consistency import configurations, values
from rsdbench.results.metrics import ACCURACY, TOKEN_RATE, Metric, Sample, Values
from rsdbench.results.schema import AXES
from rsdbench.results.stalls import without_stalls
from rsdbench.sources import code_hash
from rsdbench.tasks.scores import of_resamples

COLUMNS = [
    *("cell_id", "experiment", "row", *AXES, "method", "structure", "budget", "depth", "prompt_id", "phase"),
    *("new_tokens", "blocks", "decode_s", "draft_s", "target_s", "verify_s", "commit_s", "ar_new_tokens"),
    *("ar_decode_s", "turn", "steady", "metric", "drafter_params", "target_params", "seed"),
]
STATISTICS = "score_statistics"
BLOCKS = {"block_us": "steady_s", "ar_block_us": "ar_steady_s"}  # times of blocks, and the seconds without stalls
READ = [*COLUMNS, STATISTICS, *BLOCKS]
CELL = ["row", "method", "budget", "structure"]  # what tells a folder's cells apart, beside their ids
ORDER = ("sd", "spectr", "rsd_c", "rsd_s")  # the paper's, from the lowest curve to the highest
FEW = 8  # timed prompts below which an interval says little
# models of the paper's grid and of its stand-ins, as configurations name them
PAPERS = re.compile(r"opt-(125m|350m|13b|30b|66b|25k|70k|2\.6m|6m|13\.2m)")


@dataclass
class Results:
    """The records of a results folder or a merged file."""

    records: pd.DataFrame
    statistics: pa.Array  # of the records' answers, in the same order
    labels: dict[str, str]  # of the methods that have records, in the registry's order; AR is not among them
    asked: Asked = field(default_factory=list)
    stamps: dict[str, tuple[int, int]] = field(default_factory=dict)  # cell id -> size and time of its file, ns
    codes: Counter[str] = field(default_factory=Counter)  # cells by the code that decoded them
    fallen: dict[str, str] = field(default_factory=dict)  # methods that fell back to eager, and for which steps
    drawn: dict[tuple[str, str], Values | None] = field(default_factory=dict)  # what `values` has computed
    samples: dict[tuple[str, str], Sample] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read all records.

        Raises:
            UsageError: there are none, one is damaged, or they are of different settings.
        """
        found = collect(folder, READ)
        frame = with_steady_times(found.table)
        named = {method: label for row in found.rows for method, _, budget, label in row["asked"] if budget}
        present = sorted(set(frame.method) - {BASELINE}, key=place)
        labels = {method: named.get(method, method) for method in present}
        statistics = found.table[STATISTICS].combine_chunks()
        made = cls(frame, statistics, labels, found.asked, found.stamps, values(found, "code"), fallen(found))
        if mixed := configurations(found):
            raise UsageError(
                f"'{folder}' mixes cells that differ in {'; '.join(mixed)}: give each run its own results=DIR"
            )
        twice = made.cells[made.cells.duplicated(CELL)]
        if len(twice):
            one = twice.iloc[0]
            raise UsageError(
                f"'{folder}' holds two cells of {one.method} {one.structure} in row '{one.row}', made with different "
                "settings or models: give each run its own results=DIR"
            )
        return made

    @cached_property
    def cells(self) -> pd.DataFrame:
        """The first record of each cell, for what all its records share."""
        return self.records.drop_duplicates("cell_id")

    @cached_property
    def by_cell(self) -> dict[tuple[str, str], pd.DataFrame]:
        """A cell's records of a phase, by both."""
        return dict(iter(self.records.groupby(["cell_id", "phase"], sort=False)))

    def cell(self, cell_id: str, phase: str) -> pd.DataFrame:
        """One cell's records of a phase."""
        return self.by_cell[cell_id, phase]

    @cached_property
    def base(self) -> dict[str, str]:
        """The cell of AR in each row that has one."""
        own = self.cells[self.cells.budget == 0]
        return dict(zip(own.row, own.cell_id, strict=True))

    def values(self, metric: Metric, cell_id: str) -> Values | None:
        """A metric of a cell; None if the cell has no records of the metric's phase, or accuracy has no AR.

        Raises:
            UsageError: AR has other prompts.
        """
        key = metric.name, cell_id
        if key not in self.drawn:
            sample = self.scored(cell_id) if metric is ACCURACY else self.sample(cell_id, metric.phase)
            self.drawn[key] = None if sample is None else metric.values(sample)
        return self.drawn[key]

    def sample(self, cell_id: str, phase: str) -> Sample | None:
        """A cell's records of a phase, without its answers' statistics."""
        if (cell_id, phase) not in self.by_cell:
            return None
        if (cell_id, phase) not in self.samples:
            self.samples[cell_id, phase] = Sample(self.cell(cell_id, phase))
        return self.samples[cell_id, phase]

    def scored(self, cell_id: str) -> Sample | None:
        """A cell's answers beside AR's on the same prompts.

        Raises:
            UsageError: AR has other prompts.
        """
        if (cell_id, "quality") not in self.by_cell:
            return None
        own = self.cell(cell_id, "quality")
        first = own.iloc[0]
        if first.row not in self.base or (self.base[first.row], "quality") not in self.by_cell:
            return None
        theirs = self.cell(self.base[first.row], "quality")
        if set(theirs.prompt_id) != set(own.prompt_id):
            raise UsageError(
                f"row '{first.row}' has other prompts in AR than in {first.method} {first.structure}: decode it anew"
            )
        return Sample(own, self.statistics_of(own), Sample(theirs, self.statistics_of(theirs)))

    @property
    def rows(self) -> list[str]:
        """Labels of the rows that have records: by drafter, target and dataset, as in the paper's figure."""
        columns = ["drafter_params", "target_params", "dataset", "row"]
        return self.cells[columns].drop_duplicates().sort_values(columns).row.tolist()

    @property
    def drafters(self) -> dict[str, str]:
        """Labels of the rows, as `rows`, and their drafters."""
        found = self.cells.drop_duplicates("row").set_index("row").drafter
        return {row: found[row] for row in self.rows}

    @property
    def methods(self) -> list[str]:
        """Methods that have records, in the registry's order; AR is not among them."""
        return list(self.labels)

    @property
    def is_papers(self) -> bool:
        """Whether all models are of the paper's grid or of its stand-ins."""
        models = set(self.cells.drafter) | set(self.cells.target)
        return all(PAPERS.fullmatch(name) for name in models)

    def statistics_of(self, cell: pd.DataFrame) -> np.ndarray:
        """Statistics of some of the records, [records, k]."""
        return np.array(self.statistics.take(pa.array(cell.index)).to_pylist())

    def require_one_code(self, folder: Path) -> None:
        """See that one version of the code has decoded all cells.

        Raises:
            UsageError: several have.
        """
        if len(self.codes) > 1:
            raise UsageError(
                f"'{folder}' mixes cells of several versions of the code, {self._counted()}: decode the older ones "
                "again (the same run with redo=[code]), or take them as they are with --allow-mixed"
            )

    def require_one_backend(self, folder: Path, methods: Sequence[str]) -> None:
        """See that none of these methods, whose token rates are to be compared, fell back to the eager backend.

        Raises:
            UsageError: one did.
        """
        if found := [method for method in methods if method in self.fallen]:
            raise UsageError(
                f"'{folder}': {self._fallen(found)} beside others that did not: token rates do not compare; decode all "
                "with compile=false, leave these out with --methods or the token rate with --columns, or draw them "
                "with a mark by --allow-mixed"
            )

    def _fallen(self, methods: Iterable[str]) -> str:
        steps = (f"{self.labels.get(m, m)} (for its {self.fallen[m].replace(',', ', ')} step)" for m in methods)
        return f"{', '.join(steps)} fell back to the eager backend"

    def notes(self) -> list[str]:
        """What a reader has to know beside the numbers, a line each."""
        fell_back = f"fallback: {self._fallen(self.fallen)}" if self.fallen else ""
        lines = fell_back, self.other_code(), self.noise_floor(), self.few_prompts(), self.no_accuracy(), self.missing()
        return [line for line in lines if line]

    def other_code(self) -> str:
        """A line on cells of another version of the code than this one; "" if there are none."""
        other = sum(count for code, count in self.codes.items() if code != code_hash())
        if not other:
            return ""
        return f"code: {other} of {self.codes.total()} cells are of another version than this, {self._counted()}"

    def _counted(self) -> str:
        return ", ".join(f"{code or 'unknown'} ({count} cells)" for code, count in self.codes.most_common())

    def noise_floor(self) -> str:
        """A line on AR against its own paired turns, which would be 1 on a machine without noise; "" without times."""
        ratios = ar_against_ar(self.records)
        if not ratios:
            return ""
        low, high = min(ratios.values()), max(ratios.values())
        return (
            f"noise floor: AR against AR in paired turns gives {low:.3f} to {high:.3f} by row, where 1 would be right"
        )

    def few_prompts(self) -> str:
        """A line where token rates rest on few prompts; "" elsewhere."""
        speed = self.records[self.records.phase == "speed"]
        least = speed.groupby("cell_id").prompt_id.nunique().min() if len(speed) else FEW
        if least >= FEW:
            return ""
        return f"few prompts: some token rates are of {least} prompts; an interval over fewer than {FEW} says little"

    def no_accuracy(self) -> str:
        """A line on the rows in which AR's score is 0, so that nothing can be compared with it; "" elsewhere."""
        rows = [row for row, cell in self.base.items() if self.scores_nothing(cell)]
        named = "; ".join(rows[:3]) + ("; ..." if len(rows) > 3 else "")
        return f"no accuracy: AR's answers score 0 in {named}" if rows else ""

    def scores_nothing(self, cell: str) -> bool:
        """Whether a cell's answers have a score, and it is 0."""
        own = self.by_cell.get((cell, "quality"))
        if own is None:
            return False
        return of_resamples(own.metric.iloc[0], self.statistics_of(own), np.ones((1, len(own))))[0] == 0

    def missing(self) -> str:
        """A line on the cells that were asked for and are not there; "" if none."""
        have = set(self.cells[["row", "method", "structure"]].itertuples(index=False, name=None))
        wanted = dict.fromkeys(map(tuple, self.asked))
        absent = [cell for cell in wanted if cell not in have]
        if not absent:
            return ""
        rows = list(dict.fromkeys(row for row, *_ in absent))
        whole = len(set(rows) - {row for row, *_ in have})
        named = "; ".join(rows[:3]) + ("; ..." if len(rows) > 3 else "")
        return f"missing: {len(absent)} of {len(wanted)} cells, in {len(rows)} rows ({whole} of them whole): {named}"


def fallen(found: Collection) -> dict[str, str]:
    """Methods that fell back, and the steps for which they did."""
    origins = {cell: found.origins[origin] for cell, (_, origin) in found.cells.items()}
    own = {cell: origin["fallbacks"] for cell, origin in origins.items() if origin.get("fallbacks")}
    methods = found.table.select(["cell_id", "method"]).to_pandas().drop_duplicates().set_index("cell_id").method
    return {methods[cell]: steps for cell, steps in own.items() if cell in methods.index}


def place(method: str) -> int:
    """Where a method stands in figures: the paper's in its order, then the others as they were asked for."""
    return ORDER.index(method) if method in ORDER else len(ORDER)


def ar_against_ar(records: pd.DataFrame) -> dict[str, float]:
    """By row, the token rate of AR's own cell: AR relative to AR on the same prompts, in alternating turns."""
    speed = records[(records.phase == "speed") & (records.budget == 0)]
    return {row: float(TOKEN_RATE.values(Sample(own))[0]) for row, own in speed.groupby("row")}


def with_steady_times(table: pa.Table) -> pd.DataFrame:
    """Records' `COLUMNS`, and the seconds of their blocks, the method's and AR's, without stalls.

    Records of before there were times of blocks count with all their decoding seconds.
    """
    frame = table.select(COLUMNS).to_pandas()
    prompts = frame.groupby(["cell_id", "prompt_id"], sort=False).ngroup().to_numpy()
    for column, name in BLOCKS.items():
        lists = table[column].combine_chunks()
        counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
        rows = np.repeat(np.arange(len(frame)), counts)
        blocks = without_stalls(lists.flatten().to_numpy().astype(float), prompts[rows])
        whole = frame[column.replace("block_us", "decode_s")]
        frame[name] = np.where(counts > 0, np.bincount(rows, blocks, len(frame)) / 1e6, whole)
    return frame
