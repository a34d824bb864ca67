"""End to end: the command line runs all 12 rows, resumes by content, and draws what it finds."""

import json
import os
import pty
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from rsdbench.methods import get_shape
from rsdbench.plotting.grid import plot_grid
from rsdbench.results.metrics import metric_labels

from .commands import rsdbench, shell
from .conftest import tiny_opt

BUDGETS = [6, 10, 14, 21, 30]
CELLS = 12 * (1 + 4 * 5)  # one structure a method and budget, and AR
ONE = ["experiment=smoke", "drafter=opt-25k", "target=opt-2.6m", "dataset=wmt", "budgets=[6]"]


def files(results):
    return {f.name: f.stat().st_mtime_ns for f in (Path(results) / "cells").iterdir()}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    out, err = rsdbench("run", "experiment=smoke", f"results={folder}")
    assert f"{CELLS} cells done, 0 were there already" in out
    assert f"{CELLS}/{CELLS} cells" in err
    return folder


@pytest.fixture(scope="module")
def records(smoke):
    return pd.read_parquet(smoke / "cells")


def test_every_cell_has_one_file_and_its_budget_in_nodes(smoke, records):
    assert len(files(smoke)) == CELLS == records.cell_id.nunique()
    assert {Path(f).stem for f in files(smoke)} == set(records.cell_id)
    assert records.groupby(["drafter", "target", "dataset"]).ngroups == 12
    assert set(records.method) == {"ar", "sd", "spectr", "rsd_c", "rsd_s"}
    for (method, structure), own in records.groupby(["method", "structure"]):
        shape = get_shape(method, structure)
        assert set(own.budget) == {shape.budget}
        assert set(own.depth) == {shape.depth}


def test_records_hold_what_was_promised(records):
    columns = {
        *("cell_id", "experiment", "drafter", "target", "dataset", "method", "structure", "budget", "seed"),
        *("prompt_id", "phase", "new_tokens", "blocks", "accepted_by_depth", "prefill_s", "decode_s", "draft_s"),
        *("target_s", "verify_s", "commit_s", "text", "reference", "drafter_params", "target_params"),
        *("temperature", "top_p", "max_new_tokens"),
    }
    assert columns <= set(records.columns)
    assert set(records.phase) == {"quality", "speed"}
    assert (records[records.phase == "quality"].groupby("cell_id").size() == 2).all()
    speed, quality = records[records.phase == "speed"], records[records.phase == "quality"]
    assert (speed.groupby("cell_id").turn.apply(list).map(lambda turns: turns == [0, 1])).all()
    timed = [
        "prefill_s",
        "decode_s",
        "block_us",
        "draft_s",
        "target_s",
        "verify_s",
        "commit_s",
        "ar_decode_s",
        "steady",
    ]
    assert quality[timed].isna().all(axis=None), "what is not a measurement is not there"
    assert (speed.decode_s > 0).all()
    for who in ("", "ar_"):
        blocks = speed[f"{who}block_us"].map(sum) / 1e6
        share = blocks / speed[f"{who}decode_s"]
        assert share.max() < 1.001
        assert share.median() > 0.95, "of all blocks, and little beside them"
    assert (speed.block_us.map(len) == speed.blocks).all()
    assert (records.new_tokens == records.tokens.map(len)).all()
    accepted = records.accepted_by_depth.map(sum)
    assert (records.new_tokens <= accepted + records.blocks).all()
    assert (records.new_tokens >= accepted + records.blocks - 1).all()
    phases = records[["draft_s", "target_s", "verify_s", "commit_s"]].sum(axis=1)
    assert (phases[speed.index] <= speed.decode_s * 1.001).all()
    assert (records[records.method == "ar"].blocks == records[records.method == "ar"].new_tokens).all()


def test_metadata_says_where_a_record_comes_from(smoke):
    file = smoke / "cells" / sorted(files(smoke))[0]
    metadata = {k.decode(): v.decode() for k, v in pq.read_schema(file).metadata.items()}
    for key in ("config", "git_commit", "torch", "transformers", "rsdbench", "device", "dtype", "started", "host"):
        assert f"rsdbench.{key}" in metadata
    config = yaml.safe_load(metadata["rsdbench.config"])
    assert config["decode"]["temperature"] == 0.3
    cell = json.loads(metadata["rsdbench.cell"])
    assert file.stem.startswith(f"{config['drafter']['name']}_{config['target']['name']}_{config['dataset']['name']}")
    assert file.stem.split("_", 3)[3].startswith(f"{cell['method']}_{cell['structure']}_")


def test_the_same_prompts_go_to_every_method(records):
    for _, row in records[records.phase == "quality"].groupby("row"):
        assert row.groupby("cell_id").prompt_id.agg(tuple).nunique() == 1


def test_running_again_does_nothing_and_a_deleted_cell_alone_comes_back(smoke):
    before = files(smoke)
    out, _ = rsdbench("run", "experiment=smoke", f"results={smoke}")
    assert f"all {CELLS} cells are done already" in out
    assert files(smoke) == before
    gone = sorted(before)[17]
    old = pd.read_parquet(smoke / "cells" / gone)
    (smoke / "cells" / gone).unlink()
    out, _ = rsdbench("run", "experiment=smoke", f"results={smoke}")
    assert f"1 cells done, {CELLS - 1} were there already" in out
    after = files(smoke)
    assert set(after) == set(before)
    assert {f for f in after if after[f] != before[f]} == {gone}
    new = pd.read_parquet(smoke / "cells" / gone)
    assert [list(t) for t in new.tokens] == [list(t) for t in old.tokens], "the same cell, the same tokens"


def test_the_figure_has_48_charts_of_4_lines_and_5_ticks(smoke):
    figure = plot_grid(smoke)
    assert len(figure.axes) == 48
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == [*metric_labels()[:2], *(f"{metric} (AR = 1)" for metric in metric_labels()[2:])]
    assert [axes.get_ylabel() for axes in figure.axes[::4]] == [
        f"OPT-{d}-{t}\n{s}" for d in ("25K", "70K") for t in ("2.6M", "6M", "13.2M") for s in ("De-En", "Synopsis")
    ]
    for i, axes in enumerate(figure.axes):
        assert list(axes.get_xticks()) == BUDGETS
        assert list(axes.get_xticks(minor=True)) == []
        assert axes.get_xlabel() == ("num. tokens at target" if i >= 44 else "")
        lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
        styles = [(x.get_label(), x.get_color(), x.get_linestyle(), x.get_marker()) for x in lines]
        paper = [
            ("SD", "tab:orange", ":", "x"),
            ("SpecTr", "tab:red", "-.", "+"),
            ("RSD-C (ours)", "tab:green", "--", "D"),
            ("RSD-S (ours)", "tab:blue", "-", "o"),
        ]
        if i % 4 < 3:
            assert styles == paper
            assert all(list(line.get_xdata()) == BUDGETS for line in lines)
        else:  # a few tokens may score nothing, and 0 / 0 is no ratio
            assert set(styles) <= set(paper)
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["SD", "SpecTr", "RSD-C (ours)", "RSD-S (ours)"]


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_figure_formats(smoke, tmp_path, kind, magic):
    out, _ = rsdbench("figure", smoke, "--out", tmp_path / f"figure.{kind}")
    assert "12 rows, 48 charts" in out
    assert "missing" not in out
    assert (tmp_path / f"figure.{kind}").read_bytes().startswith(magic)
    assert [f.name for f in tmp_path.iterdir()] == [f"figure.{kind}"]


def test_the_table_is_the_figures_points(smoke, tmp_path):
    rsdbench("table", smoke, "--out", tmp_path / "points.csv")
    table = pd.read_csv(tmp_path / "points.csv")
    assert list(table.columns) == ["row", "metric", "method", "budget", "value", "low", "high", "structure", "steady"]
    assert len(table) == 48 * 4 * 5
    assert not table.duplicated(["row", "metric", "method", "budget"]).any()
    plotted = table[table.metric != "accuracy"]  # a few tokens score nothing, and 0 / 0 is no ratio
    assert ((plotted.low <= plotted.value + 1e-9) & (plotted.value <= plotted.high + 1e-9)).all()
    out, _ = rsdbench("table", smoke)
    assert out.count("block efficiency") == 12


def test_the_best_structure_is_chosen_for_each_metric():
    from rsdbench.results.points import best

    points = pd.DataFrame(
        [("r", "MBSU", "sd", 6, 1.0, "a"), ("r", "MBSU", "sd", 6, 2.0, "b"), ("r", "token rate", "sd", 6, 3.0, "a")],
        columns=["row", "metric", "method", "budget", "value", "structure"],
    )
    assert set(best(points).structure) == {"a", "b"}
    assert best(points)[best(points).metric == "MBSU"].structure.tolist() == ["b"]


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("partial")
    rsdbench("run", *ONE, f"results={folder}")
    return folder


def test_a_partial_folder_gives_a_partial_figure_and_says_so(partial, tmp_path):
    out, _ = rsdbench("figure", partial, "--out", tmp_path / "part.png")
    assert "1 rows, 4 charts, 16 points" in out
    assert "missing" not in out, "one row was asked for, and is there"
    for cell in sorted((partial / "cells").glob("*_rsd_*")):
        cell.rename(tmp_path / cell.name)
    try:
        out, _ = rsdbench("figure", partial, "--out", tmp_path / "part.png")
        assert "missing: 2 of 5 cells, in 1 rows (0 of them whole): OPT-25K-2.6M, De-En" in out
    finally:
        for cell in tmp_path.glob("*_rsd_*"):
            cell.rename(partial / "cells" / cell.name)


def test_a_narrowed_run_uses_cells_of_the_whole_one(smoke):
    out, _ = rsdbench("run", *ONE, f"results={smoke}")
    assert "all 5 cells are done already" in out


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_sweeps_run_row_jobs(partial, tmp_path, launcher):
    axes = ["drafter=opt-25k,opt-70k", "target=opt-2.6m", "dataset=wmt,xsum", "budgets=[6]"]
    options = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    shell("run", "-m", *options, "experiment=smoke", *axes, f"results={tmp_path}", cwd=tmp_path)
    assert len(files(tmp_path)) == 4 * 5
    assert set(files(partial)) < set(files(tmp_path)), "a cell is named by its content, however it was launched"
    assert not list(tmp_path.glob("20*")), "no folders by job number or date"


def test_settings_are_part_of_a_cells_name(partial, tmp_path):
    names = set(files(partial))
    for i, change in enumerate(("decode.temperature=0.7", "seed=1", "decode.max_new_tokens=5")):
        out, _ = rsdbench("run", *ONE, "methods=[sd]", f"results={tmp_path}/{i}", change)
        assert "2 cells done" in out
        assert not names & set(files(tmp_path / str(i)))
        names |= set(files(tmp_path / str(i)))


def test_a_folder_holds_one_configuration(partial, tmp_path):
    before = files(partial)
    _, err = rsdbench("run", *ONE, "methods=[sd]", f"results={partial}", "seed=1", "decode.temperature=0.7", code=2)
    assert err.count("\n") == 1
    assert "of another configuration: decode.temperature (there 0.3, here 0.7), seed (there 0, here 1)" in err
    _, err = rsdbench("run", "-m", *ONE, "seed=1,2", f"results={tmp_path}/two", code=2)
    assert err.count("\n") == 1
    assert "two configurations of opt-25k_opt-2.6m_debian-de-en_ar_0 would go to" in err
    assert "they differ in seed (1, 2)" in err
    assert files(partial) == before
    assert not (tmp_path / "two").exists()

    rsdbench("run", *ONE, "methods=[sd]", f"results={tmp_path}/other", "seed=1")
    shutil.copy(partial / "cells" / sorted(before)[0], tmp_path / "other" / "cells")  # put together by hand
    _, err = rsdbench("figure", tmp_path / "other", "--out", tmp_path / "x.png", code=2)
    assert "mixes cells that differ in seed: 1 (2 cells), 0 (1 cells): give each run its own results=DIR" in err


@pytest.mark.parametrize("damage", ["cut", "zeros", "zeros inside", "empty"])
def test_a_damaged_record_is_named_never_plotted_and_recomputed(tmp_path, damage):
    rsdbench("run", *ONE, "methods=[sd]", f"results={tmp_path}")
    file = tmp_path / "cells" / sorted(files(tmp_path))[0]
    content = file.read_bytes()
    middle = len(content) // 4
    bad = {
        "cut": content[: len(content) // 2],
        "zeros": bytes(len(content)),
        "zeros inside": content[:100] + bytes(middle) + content[100 + middle :],
        "empty": b"",
    }[damage]
    file.write_bytes(bad)
    _, err = rsdbench("figure", tmp_path, "--out", tmp_path / "figure.png", code=2)
    assert f"damaged record '{file}'" in err
    assert not (tmp_path / "figure.png").exists()
    out, _ = rsdbench("run", *ONE, "methods=[sd]", f"results={tmp_path}")
    assert "1 cells done, 1 were there already" in out
    rsdbench("figure", tmp_path, "--out", tmp_path / "figure.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=other"], "unknown experiment 'other': choose from paper, smoke, standin, standin_full"),
        (["dataset=squad"], "unknown dataset 'squad': choose from all, alpaca, cnn-dailymail, custom, debian-de-en"),
        (["target=opt-7b"], "unknown target 'opt-7b'"),
        (["methods=[medusa]"], "unknown method 'medusa': choose from ar, sd, "),
        (["methods=sd"], "methods must be a list such as [sd,rsd_s]"),
        (["budgets=[7]"], "method 'sd' has no structures of budget 7"),
        (["budgets=6"], "budgets must be a list of numbers"),
        (["structures={rsd_s:{6:[3x3]}}"], "has 9 nodes, but its budget is 6"),
        (["decode.temperature=-1"], "temperature must be a number >= 0"),
        (["decode.temperature=warm"], "decode.temperature must be a number"),
        (["decode.top_p=0"], "top_p must lie in (0, 1]"),
        (["decode.max_new_tokens=0"], "decode.max_new_tokens must be at least 1"),
        (["decode.max_new_tokens=1000"], "the prompt template alone takes"),
        (["decode.topp=1"], "there is no setting 'decode.topp': did you mean decode.top_p?"),
        (["methods=[sd"], "no viable alternative"),
        (["dataset.num_prompts=100000"], "has only 600 rows"),
        (["speed.num_prompts=3"], "must not exceed dataset.num_prompts"),
        (["target.path=/no/such/model"], "no model '/no/such/model'"),
        (["target=opt-13b"], "model 'facebook/opt-13b' is not on disk and HF_HUB_OFFLINE is set"),
        (["dataset.path=wmt/wmt18"], "dataset 'wmt/wmt18' is not on disk"),
        (["drafter.path=opt-70k", "results=/proc/nothing"], "cannot be written"),
        (["device=tpu9"], "unknown device 'tpu9'"),
        (["dtype=int1"], "unknown dtype 'int1'"),
    ],
)
def test_bad_input_to_run_is_one_line_and_code_2(tmp_path, arguments, message):
    results = [] if any(a.startswith("results=") for a in arguments) else [f"results={tmp_path}/new"]
    _, err = rsdbench("run", *ONE, *results, *arguments, code=2)
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("rsdbench: ")
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "unknown command 'fly': choose from run, plan, doctor, status, merge, figure, table, best, claims, "),
        (["figure", "/no/results", "--out", "x.png"], "holds no results"),
        (["table", "/no/results"], "holds no results"),
        (["figure", "RESULTS", "--out", "x.gif"], "must end in .png, .pdf, .svg"),
        (["figure", "RESULTS", "--out", "/proc/no/x.png"], "cannot be written"),
        (["table", "RESULTS", "--out", "x.txt"], "must end in .csv"),
        (["table", "RESULTS", "--out", "/proc/no/x.csv"], "cannot be written"),
    ],
)
def test_bad_input_to_other_commands_is_one_line_and_code_2(partial, arguments, message):
    _, err = rsdbench(*(str(partial) if a == "RESULTS" else a for a in arguments), code=2)
    assert message in err
    assert err.count("\n") == 1


def test_a_drafter_of_another_vocabulary_is_refused(tmp_path):
    tiny_opt(1, vocabulary=64).save_pretrained(tmp_path / "model")
    _, err = rsdbench("run", *ONE, f"drafter.path={tmp_path / 'model'}", f"results={tmp_path / 'results'}", code=2)
    assert err.startswith("rsdbench: target has a vocabulary of 1024 tokens and drafter one of 64: they must share one")
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_terminal_shows_a_live_bar(tmp_path):
    """A real pseudo-terminal: cells done, tokens a second and time left."""
    shown = bytearray()

    def read(descriptor):
        data = os.read(descriptor, 4096)
        shown.extend(data)
        return data

    command = [sys.executable, "-m", "rsdbench", "run", *ONE, "methods=[sd]", f"results={tmp_path}"]
    assert pty.spawn(command, read) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    for part in ("OPT-25K-2.6M, De-En", "2/2 cells", "tokens/s", "about 0 s left"):
        assert part in text


def test_help_and_version():
    assert "figure RESULTS --out FILE" in shell("--help")[0]
    assert shell("--version")[0].startswith("rsdbench 0.")
    assert "experiment: paper, smoke, standin, standin_full" in rsdbench("run", "--help")[0]
