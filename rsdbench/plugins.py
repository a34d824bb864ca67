"""Modules of a user's own, which register methods, drafters, scores, metrics and backends. Imports no torch.

A plugin is the name of a module that can be imported from here, or a `.py` file. When it is imported it calls
`rsdbench.register_method(...)` and the like, the functions that the package's own entries go through. Installed
packages name theirs as entry points of the group "rsdbench.plugins".
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Collection, Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from rsdbench.errors import UsageError
from rsdbench.sources import syntax_of

GROUP = "rsdbench.plugins"
T = TypeVar("T")
under_way: list[str] = []  # the plugin that is imported now
origins: dict[tuple[str, str], str] = {}  # (kind, name) of what a plugin registered -> the plugin


def register(kind: str, catalogue: dict[str, T], name: str, entry: T) -> None:
    """Put an entry into a catalogue; kind: of what it is, for people.

    Raises:
        UsageError: the name is no identifier, or is taken.
    """
    if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
        raise UsageError(f"a {kind} needs a name such as my_{kind}, not {name!r}")
    if name in catalogue:
        taken = origins.get((kind, name))
        raise UsageError(f"the {kind} '{name}' is registered already" + (f" by plugin '{taken}'" if taken else ""))
    catalogue[name] = entry
    if under_way:
        origins[kind, name] = under_way[-1]


def of_plugin(kind: str, name: str) -> str:
    """How messages begin that concern what a plugin registered."""
    origin = origins.get((kind, name))
    return f"plugin '{origin}': " if origin else ""


def load_plugins(names: Any) -> None:
    """Import plugins, each once, and before them those of installed packages.

    Raises:
        UsageError: one cannot be imported, or registers what it must not.
    """
    for entry in installed():
        imported(entry.name, entry.load)
    if names is None:
        return
    if isinstance(names, str) or not isinstance(names, Collection) or not all(isinstance(n, str) for n in names):
        raise UsageError(f"plugins must be a list of modules or .py files such as [my_module], not '{names}'")
    for name in names:
        module_of(name)


@cache
def installed() -> tuple[Any, ...]:
    """Entry points of installed packages."""
    return tuple(entry_points(group=GROUP))


@cache
def module_of(name: str) -> ModuleType:
    """The module of a plugin, imported the first time."""
    file = file_of(name)
    if file is None:
        return imported(name, lambda: importlib.import_module(name))
    return imported(name, lambda: from_file(file))


def file_of(name: str) -> Path | None:
    """The file of a plugin that lies in this folder, or that is named by its path; None of an installed module."""
    for path in (Path(name), Path(f"{name.replace('.', '/')}.py"), Path(name.replace(".", "/")) / "__init__.py"):
        if path.suffix == ".py" and path.is_file():
            return path.absolute()
    return None


def from_file(file: Path) -> ModuleType:
    """Import a file, or a folder by its `__init__.py`, under its own name, so that other processes can name it."""
    name = file.parent.name if file.name == "__init__.py" else file.stem
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) == str(file):
            return known
        raise UsageError(f"a module '{name}' is imported already: give '{file}' another name")
    folder = str(file.parent.parent if file.name == "__init__.py" else file.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # for what else lies there
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def imported(name: str, load: Any) -> ModuleType:
    """What `load` imports, as the plugin `name`.

    Raises:
        UsageError: it raises anything.
    """
    under_way.append(name)
    try:
        return load()
    except UsageError as error:
        raise UsageError(f"plugin '{name}': {error}") from None
    except Exception as error:  # of any kind: it is the user's own code
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UsageError(
            f"plugin '{name}' cannot be imported ({type(error).__name__}: {reason}): give a module that is installed, "
            "one that lies in this folder, or a .py file"
        ) from error
    finally:
        under_way.pop()


def anchored_plugins(names: Iterable[str]) -> list[str]:
    """The same plugins, whatever the folder is that they are loaded from."""
    return [str(file_of(name) or name) for name in names]


def plugin_hashes(names: Iterable[str]) -> dict[str, str]:
    """A hash of each plugin's source, by its module's name; comments and docstrings do not count."""
    return {module.__name__: source_hash(module) for module in map(module_of, names)}


def source_hash(module: ModuleType) -> str:
    """Of a module, or of all files of a package."""
    file = Path(module.__file__)
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    return hashlib.sha256("\n".join(map(syntax_of, files)).encode()).hexdigest()[:16]
