"""Seeds of their own for independent pieces of work."""

from __future__ import annotations

import hashlib


def seed_from(text: str) -> int:
    """A seed of 56 bits that depends on all of `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
