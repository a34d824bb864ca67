"""Which points of a results folder are drawn, and how they are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from rsdbench.errors import UsageError
from rsdbench.plotting.chart import WIDTH, Wishes, draw
from rsdbench.results.metrics import CATALOGUE, TOKEN_RATE, metric_labels
from rsdbench.results.points import all_points, figure_points
from rsdbench.results.results import ORDER, Results

OURS = {"rsd_c": "RSD-C (ours)", "rsd_s": "RSD-S (ours)"}  # the paper's legend, where only its own is drawn
BEST = "best"
LEGENDS = ("bottom", "top", "none")
LEAST_WIDTH = 2.5  # inches
UNITS = {"cm": 1 / 2.54, "mm": 1 / 25.4, "in": 1.0}


@dataclass(frozen=True)
class Choice:
    """What is drawn of a results folder; () is all there is.

    rows: parts of rows' labels; methods, budgets: themselves; structures: "best", or names of structures; labels: of
    methods, in place of their own.
    """

    rows: Sequence[str] = ()
    methods: Sequence[str] = ()
    budgets: Sequence[int] = ()
    structures: Sequence[str] = (BEST,)
    labels: Mapping[str, str] = field(default_factory=dict)


def plot_grid(
    results: str | Path, *, rows: Sequence[str] = (), columns: Sequence[str] = (), methods: Sequence[str] = (),
    budgets: Sequence[int] = (), structures: str | Sequence[str] = BEST, width: float | str = WIDTH,
    style: str | Path | None = None, colors: Mapping[str, str] | None = None, legend: str = "bottom", title: str = "",
    labels: Mapping[str, str] | None = None, band: bool = True, share_y: bool = False, allow_mixed: bool = False,
) -> Any:  # fmt: skip
    """The grid of charts of a results folder, or of a merged file, as a `matplotlib.figure.Figure`.

    rows: parts of rows' labels, such as "De-En"; columns: metrics, all by default;
    structures: "best", or names of structures; width: inches, or a text such as "8.5cm"; style: a matplotlib style
    sheet; colors, labels: by method; legend: bottom, top or none; band: whether 95 % intervals are drawn; share_y: one
    y axis for a column's charts of one drafter; allow_mixed: also if several versions of the code
    decoded the cells, or a method fell back to the eager backend.

    Raises:
        UsageError: the results cannot be used, or have nothing of what is asked for.
    """
    structures = (structures,) if isinstance(structures, str) else structures
    choice = Choice(rows, methods, budgets, structures, labels or {})
    names = tuple(map(metric_named, columns or metric_labels()))
    wishes = Wishes(
        band, share_y, names, inches(width), None if style is None else str(style), colors or {}, legend, title,
    )  # fmt: skip
    return grid_of(Results.load(Path(results)), Path(results), choice, wishes, allow_mixed)[0]


def grid_of(
    results: Results, folder: Path, choice: Choice, wishes: Wishes, allow_mixed: bool
) -> tuple[Any, pd.DataFrame]:  # fmt: skip
    """The figure, and the points that are in it.

    Raises:
        UsageError: as in `plot_grid`.
    """
    if not allow_mixed:
        results.require_one_code(folder)
    own = {label.casefold(): method for method, label in results.labels.items()}
    choice = replace(
        choice, methods=[own.get(m.casefold(), m) for m in choice.methods],
        labels={own.get(m.casefold(), m): text for m, text in choice.labels.items()},
    )  # fmt: skip
    wishes = replace(wishes, colors={own.get(m.casefold(), m): color for m, color in wishes.colors.items()})
    check_wishes(results, choice, wishes)
    rows = {row: drafter for row, drafter in results.drafters.items() if is_asked(row, choice.rows)}
    points = chosen(results, choice, list(rows), wishes.columns)
    if points.empty:
        asked = any([choice.rows, choice.methods, choice.budgets, tuple(choice.structures) != (BEST,)])
        lack = "nothing of what is asked for" if asked else "only autoregressive decoding: run at least one method"
        raise UsageError(f"'{folder}' holds {lack}")
    present = [method for method in results.methods if method in set(points.method)]
    names = results.labels | (OURS if results.is_papers and set(present) <= set(ORDER) else {}) | dict(choice.labels)
    if TOKEN_RATE.label in wishes.columns:
        if not allow_mixed:
            results.require_one_backend(folder, present)
        names |= {method: f"{names[method]} (eager)" for method in present if method in results.fallen}
    note = note_of(results, rows, present, wishes)
    return draw(points, rows, {method: names[method] for method in present}, note, wishes), points


def chosen(results: Results, choice: Choice, rows: list[str], columns: Sequence[str]) -> pd.DataFrame:
    """The points that are asked for."""
    best = tuple(choice.structures) == (BEST,)
    points = figure_points(results) if best else all_points(results)
    wanted = points.row.isin(rows) & points.metric.isin(columns)
    for column, own in (("method", choice.methods), ("budget", choice.budgets)):
        wanted &= points[column].isin(own) if own else True
    return points[wanted if best else wanted & points.structure.isin(choice.structures)].reset_index(drop=True)


def check_wishes(results: Results, choice: Choice, wishes: Wishes) -> None:
    """See that all that is named is there.

    Raises:
        UsageError: something is not, with what there is.
    """
    from matplotlib.colors import is_color_like

    cells = results.cells[results.cells.budget > 0]
    for option, asked, there in (
        ("--methods", choice.methods, results.methods),
        ("--budgets", choice.budgets, sorted(set(cells.budget))),
        ("--structures", [s for s in choice.structures if s != BEST], sorted(set(cells.structure))),
        ("--labels", choice.labels, results.methods),
        ("--colors", wishes.colors, results.methods),
        ("--legend", [wishes.legend], LEGENDS),
    ):
        for name in asked:
            if name not in there:
                known = ", ".join(map(str, there))
                raise UsageError(f"{option} names '{name}', which is not there: choose from {known}")
    for part in choice.rows:
        if not any(is_asked(row, [part]) for row in results.rows):
            known = "; ".join(results.rows)
            raise UsageError(f"--rows names '{part}', which is in no row's label: choose from {known}")
    for method, color in wishes.colors.items():
        if not is_color_like(color):
            raise UsageError(f"--colors gives {method} '{color}', which is no color: red, #1f77b4, tab:blue, ...")
    if wishes.width < LEAST_WIDTH:
        raise UsageError(f"--width must be at least {LEAST_WIDTH}in, not {wishes.width:.2f}in")


def is_asked(row: str, parts: Iterable[str]) -> bool:
    """Whether a row's label has one of these parts, whatever their case; it has if there are none."""
    parts = list(parts)
    return not parts or any(part.casefold() in row.casefold() for part in parts)


def metric_named(name: str) -> str:
    """The metric that a user means: "token_rate", "Token rate" and "token-rate" are one.

    Raises:
        UsageError: there is none.
    """
    known = {metric.name: metric.label for metric in CATALOGUE.values()}
    plain = name.replace(" ", "_").replace("-", "_").casefold()
    if plain not in known:
        raise UsageError(f"there is no metric '{name}': choose from {', '.join(known)}")
    return known[plain]


def inches(width: float | str) -> float:
    """ "8.5cm" -> 3.35; a number is in inches.

    Raises:
        UsageError: it is no width.
    """
    text = str(width).strip()
    unit = next((unit for unit in UNITS if text.endswith(unit)), "")
    try:
        return float(text.removesuffix(unit)) * UNITS.get(unit, 1.0)
    except ValueError:
        raise UsageError(f"'{width}' is no width: give one such as 8.5cm, 85mm or 3.3in") from None


def note_of(results: Results, rows: Iterable[str], methods: list[str], wishes: Wishes) -> str:
    """What the points are of."""
    records = results.records[results.records.row.isin(list(rows)) & results.records.method.isin(methods)]
    counts = {
        phase: records[records.phase == phase].groupby("cell_id").prompt_id.nunique() for phase in ("quality", "speed")
    }
    parts = []
    if len(counts["quality"]) and set(wishes.columns) - {"token rate"}:
        parts.append(f"{span(counts['quality'])} prompts")
    if len(counts["speed"]) and "token rate" in wishes.columns:
        turns = records[records.phase == "speed"].groupby("cell_id").turn.max() + 1
        each = "" if turns.max() == 1 else f" in {span(turns)} turns each"
        parts.append(f"token rate: {span(counts['speed'])} prompts{each}")
    return "; ".join([*parts, "bands: 95 % intervals over prompts"] if wishes.band else parts)


def span(counts: pd.Series) -> str:
    """ "32", or "128 to 600"."""
    least, most = int(counts.min()), int(counts.max())
    return str(least) if least == most else f"{least} to {most}"
