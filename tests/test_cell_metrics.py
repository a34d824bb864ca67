"""RESULTS/metrics.parquet: one row a cell, the same numbers as the table's, kept up to date."""

import shutil
import time

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from .commands import cells, rsdbench

ROW = ["experiment=smoke", "drafter=opt-25k", "target=opt-2.6m", "dataset=wmt", "budgets=[6]", "dataset.num_prompts=6",
       "decode.max_new_tokens=12", "speed.num_prompts=2"]  # fmt: skip
NAMES = {"block efficiency": "block_efficiency", "MBSU": "mbsu", "token rate": "token_rate", "accuracy": "accuracy"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    rsdbench("run", *ROW, "methods=[sd,rsd_s]", f"results={folder}")
    return folder


@pytest.fixture
def frame(folder):
    return pd.read_parquet(folder / "metrics.parquet").set_index("method")


def test_it_is_the_table(folder, frame, tmp_path):
    rsdbench("table", folder, "--all", "--out", tmp_path / "points.parquet")
    points = pd.read_parquet(tmp_path / "points.parquet")
    assert set(points.metric) == set(NAMES)
    for p in points.itertuples():
        own = frame.loc[p.method]
        assert own.structure == p.structure
        for end, value in (("", p.value), ("_low", p.low), ("_high", p.high)):
            assert own[NAMES[p.metric] + end] == pytest.approx(value, nan_ok=True)


def test_what_a_row_says_follows_from_the_records(folder, frame):
    records = pd.concat([pd.read_parquet(file) for file in cells(folder)])
    assert frame.cell_id.tolist() == sorted(records.cell_id.unique())
    for method, own in records.groupby("method"):
        quality, speed, found = own[own.phase == "quality"], own[own.phase == "speed"], frame.loc[method]
        assert found.block_efficiency == pytest.approx(quality.new_tokens.sum() / quality.blocks.sum())
        assert found.mean_block_efficiency == pytest.approx((quality.new_tokens / quality.blocks).mean())
        assert (found.prompts, found.timed_prompts, found.turns) == (6, 2, 4)
        rates = [speed[f"{who}new_tokens"].sum() / speed[f"{who}decode_s"].sum() for who in ("", "ar_")]
        assert found.plain_token_rate == pytest.approx(rates[0] / rates[1])
        assert found.unsteady_turns == (~speed.steady.astype(bool)).sum()
    ar = frame.loc["ar"]
    assert (ar.block_efficiency, ar.mbsu, ar.accuracy) == (1, 1, 1)


def test_run_and_merge_keep_it_up_to_date(folder, tmp_path):
    before = pd.read_parquet(folder / "metrics.parquet").set_index("cell_id")
    rsdbench("run", *ROW, "methods=[spectr]", f"results={folder}")
    after = pd.read_parquet(folder / "metrics.parquet").set_index("cell_id")
    assert set(after.method) == {"ar", "sd", "spectr", "rsd_s"}
    pd.testing.assert_frame_equal(after.loc[before.index], before)
    (folder / "metrics.parquet").write_bytes(b"damaged")
    rsdbench("merge", folder, "--out", tmp_path / "all.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "metrics.parquet").set_index("cell_id"), after)


def test_only_what_has_changed_is_computed_anew(folder, monkeypatch):
    from rsdbench.results import cell_metrics

    computed = []
    real = cell_metrics.one_cell
    monkeypatch.setattr(cell_metrics, "one_cell", lambda *a: computed.append(a) or real(*a))
    cell_metrics.refresh(folder)
    assert not computed
    time.sleep(0.01)
    next(file for file in cells(folder) if "_sd_" in file.name).touch()
    cell_metrics.refresh(folder)
    assert len(computed) == 1
    next(file for file in cells(folder) if "_ar_" in file.name).touch()
    cell_metrics.refresh(folder)
    assert len(computed) == 1 + len(cells(folder)), "all accuracies are relative to AR's"


def test_what_is_unsteady_is_said_at_the_end_and_in_the_table(folder, tmp_path):
    copy = tmp_path / "copy"
    (copy / "cells").mkdir(parents=True)
    for file in cells(folder):
        table = pq.read_table(file)
        place = table.column_names.index("steady")
        if "_sd_" in file.name:  # as on a machine that was never quiet
            never = pc.if_else(pc.is_valid(table["steady"]), False, table["steady"])
            table = table.set_column(place, table.schema.field("steady"), never)
        pq.write_table(table, copy / "cells" / file.name, write_page_checksum=True)
    said = "the machine was not quiet: OPT-25K-2.6M, De-En sd 6"
    assert f"unsteady: 1 of 4 token rates, {said}" in rsdbench("merge", copy, "--out", tmp_path / "all.parquet")[0]
    assert pd.read_parquet(copy / "metrics.parquet").set_index("method").steady.to_dict() == {
        "ar": True, "sd": False, "spectr": True, "rsd_s": True
    }  # fmt: skip
    out, _ = rsdbench("table", copy)
    assert "6 unsteady" in out
    assert f"unsteady: 1 of 3 token rates, {said}" in out
    out, _ = rsdbench("figure", copy, "--out", tmp_path / "figure.png")
    assert f"{said} (hollow markers)" in out


def test_a_row_without_ar_or_without_times_is_drawn_all_the_same(folder, tmp_path):
    copy = tmp_path / "copy"
    (copy / "cells").mkdir(parents=True)
    for file in cells(folder):
        if "_ar_" not in file.name:
            shutil.copy(file, copy / "cells")
    assert "1 rows, 4 charts" in rsdbench("figure", copy, "--out", tmp_path / "a.png")[0]
    rsdbench("merge", copy, "--out", tmp_path / "all.parquet")
    frame = pd.read_parquet(copy / "metrics.parquet")
    assert frame.accuracy.isna().all()
    assert frame.token_rate.notna().all()
    rsdbench("run", *ROW, "methods=[sd]", "speed.num_prompts=0", f"results={tmp_path / 'untimed'}")
    assert "1 rows, 4 charts" in rsdbench("figure", tmp_path / "untimed", "--out", tmp_path / "b.png")[0]
    assert pd.read_parquet(tmp_path / "untimed" / "metrics.parquet").token_rate.isna().all()


@pytest.mark.parametrize("kind", ["csv", "parquet", "md", "tex"])
def test_tables_as_files(folder, tmp_path, kind):
    out, _ = rsdbench("table", folder, "--out", tmp_path / f"points.{kind}")
    if kind in ("csv", "parquet"):
        read = getattr(pd, f"read_{kind}")(tmp_path / f"points.{kind}")
        assert list(read)[:8] == ["row", "metric", "method", "budget", "value", "low", "high", "structure"]
        assert f"{len(read)} points" in out
    else:
        text = (tmp_path / f"points.{kind}").read_text()
        assert text.count("rsd") == 1 if kind == "md" else text.count(r"rsd\_s") == 1
        assert all(name in text for name in NAMES)


def test_a_table_of_another_kind_is_refused(folder, tmp_path):
    _, err = rsdbench("table", folder, "--out", tmp_path / "points.xlsx", code=2)
    assert "must end in .csv, .parquet, .md, .tex" in err
    assert np.array_equal(list(tmp_path.iterdir()), [])
