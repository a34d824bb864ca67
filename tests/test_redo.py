"""Cells that are done and are decoded again: which, what becomes of the old ones, and what readers say of a mixture."""

import json
import os
import shutil

import pyarrow.parquet as pq
import pytest

from rsdbench.results.records import PREFIX
from rsdbench.runner import provenance
from rsdbench.sources import code_hash

from .commands import cells, rsdbench, tokens

RUN = [
    "run", "experiment=smoke", "drafter=opt-25k", "target=opt-2.6m", "dataset=wmt", "methods=[sd,rsd_s]",
    "budgets=[6,10]",
]  # fmt: skip
CELLS = 5


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    rsdbench(*RUN, f"results={folder}")
    return folder


@pytest.fixture
def folder(done, tmp_path):
    return shutil.copytree(done, tmp_path / "r")


def of_other_code(folder, pattern):
    """Make records look as if an earlier version of the code had decoded them."""
    found = sorted((folder / "cells").glob(pattern))
    for file in found:
        table = pq.read_table(file)
        metadata = {**table.schema.metadata, f"{PREFIX}code".encode(): b"0123456789abcdef"}
        pq.write_table(table.replace_schema_metadata(metadata), file)
    return {file.stem for file in found}


def times(folder):
    return {file.stem: file.stat().st_mtime_ns for file in cells(folder)}


@pytest.mark.parametrize(
    ("words", "pattern", "count"),
    [("rsd_s", "*_rsd_s_*", 2), ("10", "*_[25]x5_*", 1), ("2x3", "*_2x3_*", 1), ("opt-25k", "*", 5), ("all", "*", 5)],
)
def test_what_is_named_is_decoded_again_and_the_rest_stays(folder, words, pattern, count):
    before, texts = times(folder), tokens(folder)
    named = {file.stem for file in (folder / "cells").glob(pattern)}
    if words == "10":
        named |= {file.stem for file in (folder / "cells").glob("*_sd_10_*")}
        count += 1
    out, err = rsdbench(*RUN, f"results={folder}", f"redo=[{words}]")
    assert f"redo: {count} cells are decoded again" in err
    assert f"{count} cells done, {CELLS - count} were there already" in out
    after = times(folder)
    assert {cell for cell in after if after[cell] != before[cell]} == named
    assert {file.stem for file in (folder / "progress" / "replaced").iterdir()} == named, "what they were is kept"
    assert tokens(folder) == texts, "the same seeds, the same tokens"


def test_the_next_time_it_begins_anew(folder):
    for _ in range(2):
        before = times(folder)
        rsdbench(*RUN, f"results={folder}", "redo=[sd]")
        assert not list((folder / "progress").glob("*.redo")), "a row job that is whole forgets its stamp"
        after = times(folder)
        assert {cell for cell in after if after[cell] != before[cell]} == {c for c in after if "_sd_" in c}


def test_a_second_process_does_not_undo_what_the_first_has_done(folder):
    from rsdbench.runner.plan import planned_rows
    from rsdbench.runner.redo import set_aside, stamp_of

    (planned,) = planned_rows([*RUN[1:], f"results={folder}", "redo=[sd]"])
    assert set_aside([planned]) == 2
    file = planned.cells[1].path(folder)
    shutil.copy(folder / "progress" / "replaced" / file.name, file)  # as the first process writes it anew
    os.utime(file)
    assert set_aside([planned]) == 0
    assert file.exists()
    assert stamp_of(planned).exists()


def test_other_code_is_said_by_all_readers_and_is_decoded_again_by_one_word(folder, tmp_path):
    older = of_other_code(folder, "*_rsd_s_*")
    said = f"code: 2 of {CELLS} cells are of another version than this"
    for command in (("table",), ("claims",), ("best",)):
        assert said in rsdbench(command[0], folder)[0]
    _, err = rsdbench("figure", folder, "--out", tmp_path / "f.png", code=2)
    assert "mixes cells of several versions of the code" in err
    assert "redo=[code]" in err
    assert not (tmp_path / "f.png").exists()
    assert said in rsdbench("figure", folder, "--out", tmp_path / "f.png", "--allow-mixed")[0]
    _, err = rsdbench(*RUN, f"results={folder}")
    assert "note: 2 cells were decoded by another version of the code, and stay; redo=[code] decodes them" in err
    before = times(folder)
    rsdbench(*RUN, f"results={folder}", "redo=[code]")
    assert {cell for cell, at in times(folder).items() if at != before[cell]} == older
    assert "code:" not in rsdbench("table", folder)[0]
    codes = {pq.read_schema(file).metadata[f"{PREFIX}code".encode()].decode() for file in cells(folder)}
    assert codes == {code_hash()}


def test_unsteady_cells_alone(folder):
    (file,) = (folder / "cells").glob("*_sd_6_*")
    table = pq.read_table(file)
    steady = table["steady"].to_pylist()
    column = table.column_names.index("steady")
    unsteady = [None if x is None else False for x in steady]
    pq.write_table(table.set_column(column, table.schema.field(column), [unsteady]), file)
    _, err = rsdbench(*RUN, f"results={folder}", "redo=[unsteady]")
    assert "redo: 1 cells are decoded again" in err


@pytest.mark.parametrize(("changes", "expected"), [("", "abc"), (" M rsdbench/x.py", "abc dirty")])
def test_a_changed_checkout_is_said_beside_its_commit(monkeypatch, changes, expected):
    answers = {"rev-parse": "abc", "status": changes}
    monkeypatch.setattr(provenance, "git", lambda command, *rest: answers[command])
    assert provenance.git_commit() == expected


def test_redo_goes_through_a_manifest(folder, tmp_path):
    before = times(folder)
    rsdbench("plan", *RUN[1:], f"results={folder}", "redo=[sd]", "--manifest", tmp_path / "m")
    (line,) = map(json.loads, (tmp_path / "m").read_text().splitlines())
    assert "redo=[sd]" in line["overrides"]
    rsdbench("run", "--manifest", tmp_path / "m", "--task", "0")
    assert {cell for cell, at in times(folder).items() if at != before[cell]} == {c for c in before if "_sd_" in c}


def test_a_word_must_name_something_in_the_sweep_and_not_in_each_of_its_jobs(done, tmp_path):
    folder = shutil.copytree(done, tmp_path / "r")
    sweep = ["drafter=opt-25k,opt-70k", "redo=[opt-70k]", f"results={folder}"]
    own = [o for o in RUN[1:] if not o.startswith("drafter=")]
    before = times(folder)
    rsdbench("run", "-m", *own, *sweep)
    after = times(folder)
    assert all(after[cell] == at for cell, at in before.items())
    assert len(after) == 2 * CELLS
    for command in (("run", "-m"), ("plan",)):
        _, err = rsdbench(*command, *own, *sweep[::2], "redo=[nowhere]", code=2)
        assert "redo names 'nowhere'" in err
