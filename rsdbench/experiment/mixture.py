"""Whether records belong together: one configuration, one version of the code."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from rsdbench.experiment.cells import SETTINGS
from rsdbench.experiment.collect import Collection
from rsdbench.experiment.compose import AXES

CODE = ("rsdbench", "code", "dtype")  # of the metadata: what must not differ
PLACE = ("torch", "transformers", "python", "device", "git_commit")  # what may, and is said


def conflicts(found: Collection) -> list[str]:
    """What keeps records from standing in one file: "seed: 0 (480 cells), 1 (12 cells)"."""
    lines = differing((key, value, cell) for cell in found.cells for key, value in settings(found.config_of(cell)))
    for axis in AXES:
        made = ((own["name"], flat(own), cell) for cell in found.cells for own in [found.config_of(cell)[axis]])
        named: dict[str, list[tuple[str, Any, str]]] = defaultdict(list)
        for name, keys, cell in made:
            named[name] += [(f"{axis} {name}: {key}", value, cell) for key, value in keys.items()]
        for entries in named.values():
            lines += differing(entries)
    return lines + origins(found, CODE)


def notes(found: Collection) -> list[str]:
    """What differs between records without keeping them apart: machines and versions of libraries."""
    return origins(found, PLACE)


def settings(config: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """A row's settings beside its axes."""
    return flat({key: config[key] for key in ("schema", *SETTINGS)}).items()


def origins(found: Collection, keys: tuple[str, ...]) -> list[str]:
    """Which of some metadata differ."""
    return differing((key, found.origin_of(cell).get(key, ""), cell) for cell in found.cells for key in keys)


def differing(entries: Iterable[tuple[str, Any, str]]) -> list[str]:
    """A line for each key that has more than one value. entries: key, value, cell."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for key, value, _ in entries:
        values[key][str(value)] += 1
    return [
        f"{key}: " + ", ".join(f"{value or 'unknown'} ({count} cells)" for value, count in own.most_common())
        for key, own in values.items()
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
