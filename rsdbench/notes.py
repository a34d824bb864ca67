"""What falls back or is left out is said, once."""

from __future__ import annotations

import sys
from functools import cache


@cache
def note(text: str) -> None:
    """Print a line to standard error, the first time that this process says it."""
    print(f"note: {text}", file=sys.stderr, flush=True)
