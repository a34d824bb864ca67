"""Merging: one file of many records, checked; the cache that spares `figure` the reading."""

import json
import os
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from rsdbench.results import records
from rsdbench.results.collect import CACHE, collect
from rsdbench.results.schema import short_digest

from .commands import SMALL, cells, rsdbench


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    rsdbench("run", *SMALL, "drafter=opt-25k", "methods=[sd,rsd_s]", f"results={folder}")
    return folder


def test_a_merged_file_gives_the_same_table_and_figure(folder, tmp_path):
    out, err = rsdbench("merge", folder, "--out", tmp_path / "all.parquet")
    assert "3 cells, 12 rows" in out
    assert not err
    merged = pd.read_parquet(tmp_path / "all.parquet")
    apart = pd.concat([pd.read_parquet(file) for file in cells(folder)], ignore_index=True)
    pd.testing.assert_frame_equal(merged, apart)
    for source, name in ((folder, "a"), (tmp_path / "all.parquet", "b")):
        rsdbench("table", source, "--out", tmp_path / f"{name}.csv")
        rsdbench("figure", source, "--out", tmp_path / f"{name}.svg")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    found = collect(tmp_path / "all.parquet")
    (row,) = found.rows
    assert row["content"]["decode"]["temperature"] == 0.3
    assert [point[:2] for point in row["asked"]] == [["ar", "0"], ["sd", "6"], ["rsd_s", "2x3"]]
    assert {found.origin_of(cell)["host"] for cell in found.cells} == {os.uname().nodename}


def altered(file, **changes):
    """The same record with other metadata, under the name that belongs to it."""
    table = pq.read_table(file)
    metadata = {k.decode().removeprefix("rsdbench."): v.decode() for k, v in table.schema.metadata.items()}
    metadata |= changes
    name = f"{file.stem.rpartition('_')[0]}_{short_digest(metadata['cell'])}.parquet"
    table = table.replace_schema_metadata({f"rsdbench.{k}": v for k, v in metadata.items()})
    file.unlink()
    pq.write_table(table, file.with_name(name))
    return file.with_name(name)


@pytest.fixture
def copy(folder, tmp_path):
    (tmp_path / "copy" / "cells").mkdir(parents=True)
    for file in cells(folder):
        (tmp_path / "copy" / "cells" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "copy"


def test_merge_refuses_cells_of_other_code_and_says_which(copy, tmp_path):
    altered(cells(copy)[0], code="0123456789abcdef")
    _, err = rsdbench("merge", copy, "--out", tmp_path / "m.parquet", code=2)
    assert err.count("\n") == 1
    assert "mixes cells that differ in code: " in err
    assert "0123456789abcdef (1 cells)" in err
    assert not (tmp_path / "m.parquet").exists()
    out, err = rsdbench("merge", copy, "--out", tmp_path / "m.parquet", "--allow-mixed")
    assert "mixed: code: " in err
    assert "3 cells" in out
    _, err = rsdbench("run", *SMALL, "methods=[sd,rsd_s]", f"results={copy}")
    assert "note: 1 cells were decoded by another version of the code" in err


def test_merge_refuses_cells_of_another_configuration(copy, tmp_path):
    file = cells(copy)[0]
    cell = json.loads(pq.read_schema(file).metadata[b"rsdbench.cell"])
    cell["decode"]["temperature"] = 0.7
    cell["target"]["contents"] = "other weights"
    altered(file, cell=json.dumps(cell, sort_keys=True))
    _, err = rsdbench("merge", copy, "--out", tmp_path / "m.parquet", code=2)
    assert "decode.temperature: 0.3 (2 cells), 0.7 (1 cells)" in err
    assert "target opt-2.6m: contents: " in err


def test_rows_may_have_different_numbers_of_prompts_but_a_row_has_one(tmp_path):
    axes = [o for o in SMALL if not o.startswith("dataset=")]
    for dataset, prompts in (("wmt", 3), ("xsum", 5)):
        settings = [f"dataset={dataset}", f"dataset.num_prompts={prompts}", "drafter=opt-25k", "methods=[sd]"]
        rsdbench("run", *axes, *settings, f"results={tmp_path / 'folder'}")
    out, _ = rsdbench("merge", tmp_path / "folder", "--out", tmp_path / "m.parquet")
    assert "4 cells" in out
    rsdbench("table", tmp_path / "m.parquet", "--out", tmp_path / "points.csv")
    file = next(f for f in cells(tmp_path / "folder") if "synopsis_sd" in f.name)
    cell = json.loads(pq.read_schema(file).metadata[b"rsdbench.cell"])
    cell["dataset"]["num_prompts"] = 4
    altered(file, cell=json.dumps(cell, sort_keys=True))
    _, err = rsdbench("merge", tmp_path / "folder", "--out", tmp_path / "m.parquet", code=2)
    differs = err.partition("differ in ")[2]
    assert differs.startswith("opt-25k opt-2.6m debian-synopsis: num_prompts: ")
    assert "4 (1 cells)" in differs
    assert "5 (1 cells)" in differs


def test_compiled_and_uncompiled_cells_do_not_stand_in_one_figure(copy, tmp_path):
    altered(cells(copy)[0], forward="compiled")
    for command in ("merge", "figure"):
        _, err = rsdbench(command, copy, "--out", tmp_path / ("m.parquet" if command == "merge" else "m.png"), code=2)
        assert "forward in use: eager (2 cells), compiled (1 cells)" in err


def test_merge_says_which_machines_differ_and_goes_on(copy, tmp_path):
    altered(cells(copy)[0], device="cpu (another one)")
    _, err = rsdbench("merge", copy, "--out", tmp_path / "m.parquet")
    assert "note: cells differ in device: " in err


def test_a_record_under_another_cells_name_is_refused(copy, tmp_path):
    first = cells(copy)[0]
    first.with_name(first.name.replace("_ar_0_", "_ar_1_").replace(first.stem[-12:], "0" * 12)).write_bytes(
        first.read_bytes()
    )
    _, err = rsdbench("merge", copy, "--out", tmp_path / "m.parquet", code=2)
    assert "of another cell than its name says" in err


def test_the_cache_follows_the_folder(copy, monkeypatch):
    from rsdbench.results import collect as module

    monkeypatch.setattr(module, "CACHE_FROM", 1)
    (copy / "progress").mkdir()
    columns = ["cell_id", "method", "new_tokens"]
    plain = collect(copy).table
    assert not (copy / "progress" / CACHE).exists(), "what needs everything reads everything"
    collect(copy, columns)
    assert (copy / "progress" / CACHE).exists()
    reads = []
    read = records.read_file
    monkeypatch.setattr(records, "read_file", lambda path, *rest: (reads.append(path.stem), read(path, *rest))[1])
    assert collect(copy, columns).table.equals(plain.select(columns))
    assert reads == [], "all of it from the cache"
    gone, changed, _ = cells(copy)
    gone.unlink()
    changed.write_bytes(changed.read_bytes())
    found = collect(copy, columns)
    assert reads == [changed.stem]
    assert set(found.cells) == {f.stem for f in cells(copy)} == set(found.table["cell_id"].to_pylist())
    (copy / "progress" / CACHE).write_bytes(b"PAR1 nonsense PAR1")
    assert set(collect(copy, columns).cells) == set(found.cells), "a damaged cache is made anew"


def test_everything_beside_the_records_may_be_deleted(folder):
    assert Path(folder, "progress").is_dir()
    for file in Path(folder, "progress").iterdir():
        file.unlink()
    out, _ = rsdbench("run", *SMALL, "methods=[sd,rsd_s]", f"results={folder}")
    assert "all 3 cells are done already" in out
