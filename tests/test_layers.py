"""Imports run downward only: a folder of the package uses those above it in this list, never those below."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import rsdbench

pytestmark = pytest.mark.unit

PACKAGE = Path(rsdbench.__file__).parent
LAYERS = [
    "sampling", "verification", "decoding", "structures", "methods", "drafters", "selection", "models", "backends",
    "pair", "probe", "api", "tasks", "results", "runner", "plotting", "certificate", "cli",
]  # fmt: skip
TOOLS = {
    "errors",
    "files",
    "notes",
    "plugins",
    "seeds",
    "sources",
}  # modules that any folder may use, and that use none


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
        folder = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if folder in LAYERS:
            found[folder] |= set(imports(file)) - {folder}
    return found


@pytest.mark.parametrize("folder", LAYERS)
def test_imports_run_downward(folder):
    above = set(LAYERS[: LAYERS.index(folder)]) | TOOLS
    assert used()[folder] <= above


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_tools_use_none_of_the_folders(tool):
    assert set(imports(PACKAGE / f"{tool}.py")) <= TOOLS


def test_every_folder_is_in_the_list():
    folders = {f.parent.name for f in PACKAGE.glob("*/__init__.py")}
    modules = {f.stem for f in PACKAGE.glob("*.py")} - TOOLS - {"__init__", "__main__"}
    assert folders | modules == set(LAYERS)


def test_no_file_is_beyond_300_lines():
    long = {str(f.relative_to(PACKAGE)): len(f.read_text().splitlines()) for f in PACKAGE.rglob("*.py")}
    assert not {name: lines for name, lines in long.items() if lines > 300}


CORE = ("sampling", "verification", "decoding")
EXECUTION = re.compile(r"compil|export|graph|cuda|\bcpu\b|\bgpu\b|triton|device\.type", re.IGNORECASE)


def test_the_core_can_be_read_in_one_sitting():
    """Rules, of which there may be any number, are files of their own."""
    lines = {f: len(f.read_text().splitlines()) for folder in CORE for f in (PACKAGE / folder).rglob("*.py")}
    rules = {f for f in lines if f.parent.name == "verification" and f.stem not in ("__init__", "lift")}
    assert sum(lines[f] for f in lines if f not in rules) <= 1350
    assert max(lines[f] for f in rules) <= 150


@pytest.mark.parametrize("folder", CORE)
def test_the_core_says_nothing_of_how_it_is_executed(folder):
    files = {f.name: EXECUTION.findall(f.read_text()) for f in (PACKAGE / folder).rglob("*.py")}
    assert not {name: words for name, words in files.items() if words}


def test_the_catalogue_of_methods_needs_no_torch():
    code = "import sys, rsdbench.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
