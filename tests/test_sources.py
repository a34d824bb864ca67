"""What a hash of the code depends on, and what not."""

import pytest

from rsdbench import sources
from rsdbench.sources import digest, syntax

TEXT = '''"""A module."""

from __future__ import annotations


class Thing:
    """A thing."""

    size: int = 3

    def double(self, x: int) -> int:
        """Twice as much."""
        return 2 * x  # of it
'''
SAME = {
    "another docstring": TEXT.replace("Twice as much.", "Two times x."),
    "no docstrings": TEXT.replace('    """A thing."""\n\n', "").replace('        """Twice as much."""\n', ""),
    "another comment": TEXT.replace("# of it", "# a better comment"),
    "another layout": TEXT.replace("2 * x", "(\n            2 * x\n        )"),
    "other quotes": TEXT.replace('"""A module."""', "'A module.'"),
}
OTHER = {
    "another number": TEXT.replace("2 * x", "3 * x"),
    "another name": TEXT.replace("size", "width"),
    "another order": TEXT.replace("2 * x", "x * 2"),
    "a text that is used": TEXT.replace("return 2 * x", 'return "2" * x'),
    "a default": TEXT.replace("size: int = 3", "size: int"),
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_comments_docstrings_and_layout_change_nothing(text):
    assert text != TEXT
    assert syntax(text) == syntax(TEXT)


@pytest.mark.parametrize("text", OTHER.values(), ids=OTHER)
def test_all_that_is_run_counts(text):
    assert text != TEXT
    assert syntax(text) != syntax(TEXT)


def test_files_in_folders_below_count_and_so_do_their_names(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)
    (tmp_path / "a" / "below").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "one.py").write_text(TEXT)
    digests = [digest(["a"])]
    (tmp_path / "a" / "below" / "two.py").write_text(TEXT)
    digests.append(digest(["a"]))
    (tmp_path / "a" / "below" / "two.py").rename(tmp_path / "a" / "below" / "three.py")
    digests.append(digest(["a"]))
    (tmp_path / "b" / "elsewhere.py").write_text(TEXT)
    assert len(set(digests)) == 3
    assert digest(["a"]) == digests[-1]


def test_it_is_the_same_in_every_version_of_python():
    """A value of one version: others must give it too."""
    arguments = """('args', ('arguments', ('args', (('arg', ('arg', "'x'")),))))"""
    value = (
        """('BinOp', ('left', ('Name', ('id', "'x'"))), ('op', ('Add',)), ('right', ('Constant', ('value', '1'))))"""
    )
    function = f"""('FunctionDef', ('name', "'f'"), {arguments}, ('body', (('Return', ('value', {value})),)))"""
    assert syntax("def f(x):\n    'doc'\n    return x + 1\n") == f"('Module', ('body', ({function},)))"
