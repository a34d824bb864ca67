"""Imports run downward only: a folder of the package uses those above it in this list, never those below."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import rsdbench

PACKAGE = Path(rsdbench.__file__).parent
LAYERS = [
    "sampling", "verification", "decoding", "backends", "models", "tasks", "results", "runner", "plotting",
    "certificate", "cli",
]  # fmt: skip
TOOLS = {"errors", "files", "notes", "seeds", "sources"}  # modules that any folder may use, and that use none
# The block loop still chooses between the models' own forwards, compiled code and graphs, and therefore knows them.
# This shrinks to nothing once they are behind one protocol; nothing may be added.
UPWARD = {("decoding", "backends"), ("decoding", "models"), ("backends", "models")}


def imports(file):
    """The parts of our package that a file imports, at its top or within functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rsdbench."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("rsdbench."))


def used():
    """Folder -> the folders that it imports."""
    found = defaultdict(set)
    for file in PACKAGE.rglob("*.py"):
        folder = file.relative_to(PACKAGE).parts[0]
        if folder in LAYERS:
            found[folder] |= set(imports(file)) - {folder}
    return found


@pytest.mark.parametrize("folder", LAYERS)
def test_imports_run_downward(folder):
    above = set(LAYERS[: LAYERS.index(folder)]) | TOOLS
    upward = {(folder, other) for other in used()[folder] - above}
    assert upward <= UPWARD


def test_the_exceptions_are_all_in_use():
    assert {(a, b) for a, b in UPWARD if b in used()[a]} == UPWARD


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_tools_use_none_of_the_folders(tool):
    assert set(imports(PACKAGE / f"{tool}.py")) <= TOOLS


def test_every_folder_is_in_the_list():
    assert {f.parent.name for f in PACKAGE.glob("*/__init__.py")} == set(LAYERS)


def test_no_file_is_beyond_300_lines():
    """But for the block loop, which holds three ways to execute it (see `UPWARD`)."""
    long = {str(f.relative_to(PACKAGE)): len(f.read_text().splitlines()) for f in PACKAGE.rglob("*.py")}
    assert {name for name, lines in long.items() if lines > 300} <= {"decoding/loop.py"}
    assert long["decoding/loop.py"] <= 340
