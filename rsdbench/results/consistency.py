"""Whether records belong together: one configuration, one version of the code."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from rsdbench.results.collect import Collection
from rsdbench.results.schema import AXES, SETTINGS

CODE = ("rsdbench", "code")  # of the metadata: what must not differ within a merged file
PLACE = ("torch", "transformers", "python", "device", "git_commit")  # what may, and is said
Fact = tuple[str, Any, int]  # a key, a value, and how many cells have it


def configurations(found: Collection) -> list[str]:
    """What keeps records from standing in one figure: "seed: 0 (480 cells), 1 (12 cells)"."""
    counts = Counter(row for row, _ in found.cells.values())
    facts = [(key, value, n) for row, n in counts.items() for key, value in keys_of(found.rows[row]["content"]).items()]
    for key in ("device", "dtype", "forward"):  # those that "auto" has led to
        facts += [(f"{key} in use", value.partition(" ")[0], n) for value, n in values(found, key).items()]
    return differing(facts)


def keys_of(content: dict[str, Any]) -> dict[str, Any]:
    """What must be equal in all rows: the settings, and what a model's or dataset's name stands for.

    A row may have more prompts than another, but has one number of them.
    """
    keys = flat({key: content[key] for key in ("schema", *SETTINGS)})
    for axis in AXES:
        keys |= {f"{axis} {content[axis]['name']}: {key}": value for key, value in flat(content[axis]).items()}
    names = {axis: content[axis]["name"] for axis in AXES}
    keys[f"{' '.join(names.values())}: num_prompts"] = keys.pop(f"dataset {names['dataset']}: num_prompts")
    return keys


def versions(found: Collection) -> list[str]:
    """Which versions of the code have decoded the records, if more than one."""
    return differing([(key, value, n) for key in CODE for value, n in values(found, key).items()])


def notes(found: Collection) -> list[str]:
    """What differs between records without keeping them apart: machines and versions of libraries."""
    return differing([(key, value, n) for key in PLACE for value, n in values(found, key).items()])


def values(found: Collection, key: str) -> Counter[str]:
    """How many cells have which value of a metadata key."""
    counts: Counter[str] = Counter()
    for _, origin in found.cells.values():
        counts[found.origins[origin].get(key, "")] += 1
    return counts


def differing(entries: Iterable[Fact]) -> list[str]:
    """A line for each key that has more than one value."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for key, value, cells in entries:
        seen[key][str(value)] += cells
    return [
        f"{key}: " + ", ".join(f"{value or 'unknown'} ({count} cells)" for value, count in own.most_common())
        for key, own in seen.items()
        if len(own) > 1
    ]


def differences(a: dict[str, Any], b: dict[str, Any], name_a: str = "", name_b: str = "") -> str:
    """Where two configurations differ: "decode.temperature (0.3, 0.7)", the first three."""
    flat_a, flat_b = flat(a), flat(b)
    keys = [k for k in {**flat_a, **flat_b} if flat_a.get(k) != flat_b.get(k)]
    texts = [f"{k} ({f'{name_a} {flat_a.get(k)}'.strip()}, {f'{name_b} {flat_b.get(k)}'.strip()})" for k in keys[:3]]
    return ", ".join(texts) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return found
