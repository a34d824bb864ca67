"""What of a source file decides what it does: its syntax, without comments and docstrings."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
# what decides which tokens come out
CERTIFIED = ("sampling", "verification", "decoding", "backends", "models/lookup.py")
COMPILED = ("sampling", "verification/__init__.py", "verification/lift.py", "decoding", "backends/aot")
IGNORED = ("ctx", "kind", "type_comment", "type_ignores", "type_params")  # follow from the rest, or say nothing
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@lru_cache
def code_hash() -> str:
    """A hash of the source that decides which tokens come out; a certificate names the code that it is about by it.

    It is taken over syntax trees: a better comment orphans no result.
    """
    return digest(CERTIFIED)


@lru_cache
def folders_syntax(folders: tuple[str, ...] = COMPILED) -> str:
    """A hash of all that compiled code is made from, beside models, rules and strategies."""
    return digest(folders)


def digest(folders: Iterable[str]) -> str:
    """A hash of all that is in some of the package's folders, and in theirs, and of single files."""
    found = hashlib.sha256()
    for name in folders:
        place = PACKAGE / name
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            found.update(f"{file.relative_to(PACKAGE).as_posix()}\n{syntax_of(file)}\n".encode())
    return found.hexdigest()[:16]


@lru_cache
def syntax_of(file: Path) -> str:
    """`syntax` of a file."""
    return syntax(file.read_text())


def syntax(text: str) -> str:
    """A source as text that comments, docstrings, line breaks and the version of Python leave as it is."""
    return repr(plain(ast.parse(text)))


def plain(node: object) -> object:
    """A syntax tree as nested tuples, without docstrings and empty fields, which versions of Python add."""
    if isinstance(node, list):
        return tuple(map(plain, node))
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = fields["body"][1:]
    return (
        type(node).__name__,
        *((k, plain(v)) for k, v in fields.items() if k not in IGNORED and v not in (None, [])),
    )
