"""What can be read off the paper's figure, beside a grid of results."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import pandas as pd

PAPER = Path(__file__).resolve().parents[1] / "assets" / "paper.yaml"


@lru_cache
def paper() -> dict[str, Any]:
    """The readings: `budgets`, and for each of `readings` row, stand_in, metric, and values by method."""
    return yaml.safe_load(PAPER.read_text())


def reading(metric: str) -> dict[str, tuple[float, float]]:
    """A metric's values by method, at the smallest and the largest budget of the figure."""
    own = next(own for own in paper()["readings"] if own["metric"] == metric)
    return {method: tuple(values) for method, values in own["values"].items()}


def beside(points: pd.DataFrame) -> list[tuple[str, str, dict[str, str]]]:
    """Of each reading that the figure's points have a row for: what it is, whose it is, and values by method.

    The paper's own row is compared, otherwise the row of the embedded models that stands for it.
    """
    values = points.set_index(["row", "metric", "method", "budget"]).value.to_dict()
    lines = []
    for own in paper()["readings"]:
        row = next((row for row in (own["row"], own["stand_in"]) if row in set(points.row)), None)
        if row is None:
            continue
        ours = {
            method: [values.get((row, own["metric"], method, budget), float("nan")) for budget in paper()["budgets"]]
            for method in own["values"]
        }
        theirs = {m: f"{least:.1f} / {most:.1f}" for m, (least, most) in own["values"].items()}
        lines.append((f"{own['metric']}, {own['row']}", "paper", theirs))
        here = {m: " / ".join("-" if v != v else f"{v:.2f}" for v in both) for m, both in ours.items()}
        lines.append((f"{own['metric']}, {row}", "here", here))
    return lines
