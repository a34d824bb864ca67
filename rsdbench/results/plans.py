"""The plans that runs leave in a results folder: what was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rsdbench.results.schema import SCHEMA

PLAN = ".plan"  # ending of a plan's file


def folder(results: Path) -> Path:
    """Where all lies that a results folder knows beside its records."""
    return results / "progress"


def registered(results: Path) -> list[dict[str, Any]]:
    """The plans that were left in a results folder, in their order."""
    plans = []
    for file in sorted(folder(results).glob(f"*{PLAN}")):
        try:
            plan = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if plan.get("schema") == SCHEMA:
            plans.append(plan)
    return sorted(plans, key=lambda plan: plan["place"])
