"""What records are named and told apart by."""

from __future__ import annotations

import hashlib

SCHEMA = 3  # of the records; part of every cell's name
AXES = {
    "drafter": "drafters",
    "target": "targets",
    "dataset": "datasets",
}  # of the grid, and what a list of each is called
# the settings that a cell's tokens and times depend on, beside its models, dataset, method and structure
SETTINGS = ("seed", "device", "dtype", "compile", "decode", "quality", "speed")


def short_digest(text: str) -> str:
    """What a cell's name ends in, from its configuration as text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
