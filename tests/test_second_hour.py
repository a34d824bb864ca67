"""A user's own pair, data and question, as the README tells it: each errand in at most two commands."""

import json
import shutil

import pandas as pd
import pytest
from transformers import AutoTokenizer

import rsdbench as package
from rsdbench.models.checkpoints import MODELS

from . import commands
from .commands import cells, rsdbench
from .conftest import resembling, tiny_opt

SMALL = ["experiment=smoke", "methods=[sd,rsd_s]", "budgets=[6]", "max_structures=1", "compile=false"]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with a pair and a question-and-answer file of the user's."""
    folder = tmp_path_factory.mktemp("own")
    target = tiny_opt(1, vocabulary=1024, positions=256)
    for name, model in (("big", target), ("little", resembling(target, 2, 0.05))):
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(MODELS / "opt-25k").save_pretrained(folder / name)
    rows = [
        {
            "question": f"What is {i}?",
            "answer": f"It is {i}.",
            "kind": ["odd", "even"][i % 2 == 0],
            "turns": [f"Q{i}", "?"],
        }
        for i in range(12)
    ]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def two_rows(tmp_path_factory):
    """A results folder of two rows, two budgets and all methods."""
    folder = tmp_path_factory.mktemp("two_rows")
    rows = ["experiment=smoke", "drafter=opt-25k", "target=opt-2.6m"]
    rsdbench("run", *rows, "budgets=[6,14]", "max_structures=null", f"results={folder}")
    return folder


def test_errand_own_pair_in_python(own):
    pair = package.load_pair(str(own / "big"), str(own / "little"), device="cpu")
    out = package.generate(pair, [pair.tokenizer("What is 1?").input_ids], max_new_tokens=12)
    assert len(out.tokens[0]) == 12
    assert out.block_efficiency == 12 / out.blocks[0] >= 1
    assert len(out.acceptance_by_depth) == 3, "the default structure of RSD-S is 2x3"
    assert sum(out.acceptance_by_depth) == pytest.approx(out.block_efficiency - 1, abs=1 / out.blocks[0])
    assert out.tokens_per_second == pytest.approx(12 / out.decode_s)
    assert repr(pair).startswith("Pair(little (")
    assert "\n" not in repr(pair)


@pytest.mark.parametrize(
    ("method", "structure", "text"), [("sd", 6, "6"), ("rsd_c", [2, 1, 1], "2-1-1"), ("rsd_c", (3, 1), "3-1")]
)
def test_structures_may_be_numbers_and_lists(own, method, structure, text):
    pair = package.load_pair(str(own / "big"), str(own / "little"), device="cpu")
    ours, theirs = (package.generate(pair, [[2, 3, 4]], method, s, 8, seed=1).tokens for s in (structure, text))
    assert ours == theirs


def test_errand_own_jsonl(own, tmp_path):
    results = tmp_path / "r"
    run = ["run", *SMALL, "drafter=opt-25k", "target=opt-2.6m", f"dataset.path={own}/mine.jsonl", f"results={results}"]
    _, err = rsdbench(*run, code=2)
    for part in ("dataset.source=COLUMN", "dataset.template=", "dataset.metric=", "dataset.reference=COLUMN"):
        assert part in err
    assert "has the columns question, answer, kind, turns" in err
    assert len(err.strip().splitlines()) == 1
    rsdbench(
        *run, "dataset.source=question", "dataset.reference=answer", "dataset.metric=chrf",
        r"dataset.template='Q: {source}\nA:'",
    )  # fmt: skip
    frame = package.load_results(results).records
    assert set(frame.row) == {"OPT-25K-2.6M, mine"}
    assert set(frame.metric) == {"chrf"}
    assert set(frame.dataset) == {"mine"}
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "opt-25k")
    assert frame.prompt_tokens.iloc[0] == len(tokenizer("Q: What is 0?\nA:").input_ids), "a real new line"


def test_own_data_inherit_nothing_and_a_named_datasets_settings_are_its_own(own, tmp_path):
    from rsdbench.runner.compose import row_configs

    (config,) = row_configs(
        ["experiment=smoke", "drafter=opt-25k", "target=opt-2.6m", f"dataset.path={own}/mine.jsonl"]
    )
    assert (config.dataset.name, config.dataset.label, config.dataset.stop) == ("mine", "mine", "eos")
    assert [config.dataset[key] for key in ("source", "reference", "template", "metric", "id")] == [None] * 5
    pair = ["experiment=smoke", "drafter=opt-25k", "target=opt-2.6m"]
    (config,) = row_configs([*pair, "dataset=xsum", f"dataset.path={own}/mine.jsonl"])
    assert config.dataset.metric == "rouge2", "a copy of what is named"


def test_without_references_there_is_no_accuracy_and_all_else(own, tmp_path):
    rsdbench(
        "run", *SMALL, "drafter=opt-25k", "target=opt-2.6m", f"dataset.path={own}/mine.jsonl", "dataset.source=turns.0",
        "dataset.metric=none", "dataset.template='{source}'", "dataset.where={kind: odd}", "dataset.num_prompts=6",
        f"results={tmp_path}/r",
    )  # fmt: skip
    frames = package.load_results(tmp_path / "r")
    assert frames.metrics.accuracy.isna().all()
    assert frames.metrics.block_efficiency.notna().all()
    assert sorted(set(frames.records.prompt_id)) == [f"mine-{i:05d}" for i in range(1, 12, 2)]
    rsdbench("figure", tmp_path / "r", "--out", tmp_path / "f.png")
    assert " - " in rsdbench("table", tmp_path / "r")[0]
    _, err = rsdbench(
        "run", *SMALL, "drafter=opt-25k", "target=opt-2.6m", f"dataset.path={own}/mine.jsonl", "dataset.source=turns.0",
        "dataset.metric=none", "dataset.template='{source}'", "dataset.where={kind: odd}", "dataset.num_prompts=7",
        f"results={tmp_path}/q", code=2,
    )  # fmt: skip
    assert "has only 6 rows with {'kind': 'odd'}" in err


def test_an_own_pair_is_one_row_and_a_manifest_lists_no_cell_twice(own, tmp_path):
    pair = [f"target.path={own}/big", f"drafter.path={own}/little", "dataset=debian-de-en"]
    out, _ = rsdbench("plan", *SMALL, *pair, f"results={tmp_path}/r", "--manifest", tmp_path / "m.jsonl")
    assert "1 row jobs, 3 cells" in out
    assert "LITTLE-BIG, De-En" in out
    twice = ["methods=[sd],[sd],[rsd_s]", "budgets=[6]"]
    rsdbench("plan", *SMALL[::3], *pair, *twice, "compile=false", f"results={tmp_path}/r", "--manifest", tmp_path / "m")
    lines = [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()]
    ids = [cell["id"] for line in lines for cell in line["cells"]]
    assert len(lines) == 2
    assert len(ids) == len(set(ids)) == 3
    for task in range(2):
        rsdbench("run", "--manifest", tmp_path / "m", "--task", str(task))
    assert sorted(f.stem for f in cells(tmp_path / "r")) == sorted(ids)
    assert "3 of 3 cells done" in rsdbench("status", tmp_path / "r")[0]


def test_two_pairs_of_one_name_are_told_how_to_differ(own, tmp_path):
    shutil.copytree(own / "little", tmp_path / "big")
    _, err = rsdbench(
        "plan", *SMALL, f"target.path={own}/big,{tmp_path}/big", f"drafter.path={own}/little", "dataset=wmt", code=2
    )
    assert "give each target a name of its own with target.name=NAME" in err
    _, err = rsdbench("plan", *SMALL, "drafter=opt-25k", "target=opt-2.6m", "dataset=wmt", "seed=0,1", code=2)
    assert "'results=results/${name}-${seed}'" in err
    _, err = rsdbench(
        "plan", *SMALL, "drafter=opt-25k", "target=opt-2.6m", "dataset=wmt", "decode.temperature=0,1", code=2
    )
    assert "'results=results/${name}-${decode.temperature}'" in err


def test_errand_a_figure_of_two_rows_and_two_columns_for_one_column_of_a_page(two_rows, tmp_path):
    rows = ["--rows", "de-en", "Synopsis"]
    out, _ = rsdbench(
        "figure", two_rows, *rows, "--columns", "token_rate", "block-efficiency", "--methods", "sd", "rsd_s", "--width",
        "8.5cm", "--title", "costs $5", "--colors", "sd=black", "--labels", "sd=Chain", "--legend", "top",
        "--out", tmp_path / "f.pdf",
    )  # fmt: skip
    assert "2 rows, 4 charts, 16 points" in out
    content = (tmp_path / "f.pdf").read_bytes()
    assert b"/Type3" not in content
    figure = package.plot_grid(
        two_rows, rows=["de-en"], columns=["token_rate"], width="8.5cm", labels={"sd": "Chain"}, structures="2x3",
        methods=["rsd_s"], budgets=[6],
    )  # fmt: skip
    assert figure.get_figwidth() == pytest.approx(8.5 / 2.54)
    (axes,) = figure.axes
    assert axes.get_title() == "token rate (AR = 1)"
    assert [list(line.get_xdata()) for line in axes.get_lines() if line.get_label() == "RSD-S (ours)"] == [[6]]


def test_a_figure_is_the_same_whatever_the_users_settings(two_rows, tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 40\nsavefig.dpi: 10\n")
    shell = {"MPLBACKEND": "module://no_such_backend", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    for name, environment in (("a", {}), ("b", shell)):
        rsdbench("figure", two_rows, "--out", tmp_path / f"{name}.svg", cwd=tmp_path, **environment)
    assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (["--rows", "de-en", "nowhere"], "--rows names 'nowhere'"),
        (
            ["--columns", "speed"],
            "there is no metric 'speed': choose from block_efficiency, mbsu, token_rate, accuracy",
        ),
        (["--methods", "medusa"], "--methods names 'medusa', which is not there: choose from sd, spectr, rsd_c, rsd_s"),
        (["--budgets", "7"], "--budgets names '7', which is not there: choose from 6, 14"),
        (["--structures", "9x9"], "--structures names '9x9'"),
        (["--width", "wide"], "'wide' is no width: give one such as 8.5cm"),
        (["--width", "1cm"], "--width must be at least"),
        (["--style", "/no/such.mplstyle"], "--style '/no/such.mplstyle' cannot be used"),
        (["--colors", "sd=burnt"], "which is no color"),
        (["--colors", "sd"], "--colors takes METHOD=VALUE"),
        (["--legend", "left"], "--legend names 'left'"),
        (["--methods", "sd", "--structures", "2x3"], "holds nothing of what is asked for"),
    ],
)
def test_wishes_that_cannot_be_met_are_one_line(two_rows, tmp_path, wish, message):
    _, err = rsdbench("figure", two_rows, "--out", tmp_path / "f.png", *wish, code=2)
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "f.png").exists()


def test_errand_which_structure_at_budget_14_and_does_it_pay(two_rows, tmp_path):
    out, _ = rsdbench("best", two_rows, "--budget", "14", "--metric", "block_efficiency")
    points = package.load_results(two_rows).points
    for row in ("OPT-25K-2.6M, De-En", "OPT-25K-2.6M, Synopsis"):
        own = points[(points.row == row) & (points.budget == 14) & (points.metric == "block efficiency")]
        winners = own[own.value == own.value.max()]
        (verdict,) = [line for line in out.splitlines() if line.startswith(f"{row}: ")]
        labels = {"sd": "SD", "spectr": "SpecTr", "rsd_c": "RSD-C", "rsd_s": "RSD-S"}
        assert verdict.startswith(tuple(f"{row}: {labels[w.method]} {w.structure} " for w in winners.itertuples()))
        assert "AR" in verdict
    rsdbench("best", two_rows, "--out", tmp_path / "best.csv")
    frame = pd.read_csv(tmp_path / "best.csv")
    assert set(frame[frame.other == "AR"].row) == set(points.row)
    assert (frame[frame.other != "AR"].ratio >= 1 - 1e-9).all()
    known = "--metric must be one of block_efficiency, mbsu, token_rate"
    for option, wrong, message in (
        ("--budget", "15", "have no budget 15: choose from 6, 14"), ("--metric", "x", known),
        ("--metric", "accuracy", known),
    ):  # fmt: skip
        assert message in rsdbench("best", two_rows, option, wrong, code=2)[1]


def test_all_structures_are_on_the_screen(two_rows):
    out, _ = rsdbench("table", two_rows, "--all")
    for structure in ("2-1-1", "2-2", "3-1", "2x3", "3x2", "2x7", "7x2"):
        assert f" {structure} " in out


def test_what_was_not_asked_for_is_not_missing_and_a_merged_file_has_a_status(two_rows, tmp_path):
    rsdbench("merge", two_rows, "--out", tmp_path / "all.parquet")
    out, _ = rsdbench("status", tmp_path / "all.parquet")
    assert "34 of 34 cells done" in out
    copy = shutil.copytree(two_rows, tmp_path / "copy", copy_function=shutil.copyfile)
    assert "an hour" not in rsdbench("status", copy)[0], "times of copies say nothing"
    assert "missing" not in rsdbench("table", copy)[0]
    next(iter(sorted((copy / "cells").glob("*_rsd_s_2x7_*")))).unlink()
    assert "missing: 1 of 34 cells" in rsdbench("table", copy)[0]
    rsdbench("merge", copy, "--out", tmp_path / "part.parquet")
    assert "missing: 1 of 34 cells" in rsdbench("table", tmp_path / "part.parquet")[0]
    assert "33 of 34 cells done, 1 missing" in rsdbench("status", tmp_path / "part.parquet")[0]


def test_readers_say_what_the_numbers_rest_on(two_rows):
    out, _ = rsdbench("table", two_rows)
    assert "noise floor: AR against AR in paired turns gives" in out
    assert "few prompts: some token rates are of" in out


def test_a_slice_says_what_its_claims_lack(own, tmp_path):
    rsdbench("run", *SMALL, "drafter=opt-25k", "target=opt-2.6m", "dataset=wmt", f"results={tmp_path}/slice")
    out, _ = rsdbench("claims", tmp_path / "slice")
    assert "lacks SpecTr, RSD-C" in out
    assert "lacks a second budget" in out
    pair = [f"target.path={own}/big", f"drafter.path={own}/little", "dataset=wmt"]
    rsdbench("run", *SMALL, *pair, f"results={tmp_path}/own")
    out, _ = rsdbench("claims", tmp_path / "own")
    assert "The paper says nothing of these models" in out
    assert "fails" not in out
    figure = package.plot_grid(tmp_path / "own")
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["SD", "RSD-S"], "(ours) is the paper's"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("structures=[4x3]", "structures must be lists by method and budget, such as {rsd_s: {12: [4x3]}}"),
        ("structures={rsd_s: [4x3]}", "structures must be lists by method and budget"),
        ("structures={rsd_s: {12: [banana]}}", "structure 'banana' is not of the form"),
        ("structures={medusa: {12: [4x3]}}", "unknown method 'medusa'"),
        ("+decode.temprature=1", "there is no setting 'decode.temprature': did you mean decode.temperature?"),
        ("++bogus=1", "there is no setting 'bogus'"),
        ("dataset.template=Q: {source}", "a value with spaces, braces or colons needs quotes of its own"),
        ("dataset.path=missing.jsonl", "there is no file 'missing.jsonl'"),
        ("check=maybe", "unknown check 'maybe'"),
        ("redo=rsd_s", "redo must be a list such as [rsd_s,30] or [code]"),
        ("redo=[medusa]", "redo names 'medusa', which no cell of this run has"),
        ("dataset.chat_template=true", "the tokenizer has no chat template"),
        ("dataset.extract='('", "dataset.extract must be null or a regular expression"),
        ("dataset.answer=some", "dataset.answer must be one of line, all"),
        ("dataset.where=[3]", "dataset.where must be null or columns with values"),
        ("dataset.where={colour: red}", "has no column 'colour'"),
    ],
)
def test_raw_errors_are_one_line(tmp_path, override, message):
    _, err = rsdbench("run", *commands.SMALL, f"results={tmp_path}/r", override, code=2)
    assert message in err
    assert len([line for line in err.splitlines() if not line.startswith("note: ")]) == 1


def test_structures_that_are_not_asked_for_are_said_to_be_unused(tmp_path):
    _, err = rsdbench("run", *commands.SMALL, f"results={tmp_path}/r", "structures={rsd_s: {12: [4x3]}}")
    assert "note: structures of rsd_s at 12 are not used" in err


def test_one_prompt_decides_nothing(tmp_path):
    run = [
        "experiment=smoke",
        "drafter=opt-25k",
        "target=opt-2.6m",
        "dataset=wmt",
        "budgets=[6]",
        "speed.num_prompts=1",
    ]
    rsdbench("run", *run, f"results={tmp_path}/r")
    out, _ = rsdbench("best", tmp_path / "r")
    (verdict,) = [line for line in out.splitlines() if line.startswith("OPT-25K-2.6M, De-En: ")]
    assert "cannot be told from AR; no more than a hint, of 1 prompt" in verdict
    assert "ahead" not in verdict


@pytest.mark.parametrize("arguments", [("certify", "--levels", "4"), ("figure", "x"), ("table", "x", "--nothing")])
def test_wrong_options_are_one_line_too(arguments):
    _, err = rsdbench(*arguments, code=2)
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("rsdbench: ")
    assert f"(rsdbench {arguments[0]} --help)" in err
