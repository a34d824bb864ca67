"""The scripts that make the embedded data and models: no leak into the test set, resumption, bad surroundings."""

import importlib.util
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import rsdbench
from rsdbench.experiment.tasks import DATA

SCRIPTS = Path(__file__).parents[1] / "scripts"


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def corpus():
    return load("build_corpus")


def run(script, *arguments, **options):
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_shipped_examples_come_from_source_packages_that_training_never_sees(corpus):
    for task in ("de_en", "synopsis"):
        frame = pd.read_parquet(DATA / f"debian_{task}.parquet")
        assert len(frame) == 600
        assert set(frame.origin.map(corpus.split_of)) == {"test"}
        assert frame.source.is_unique
        assert frame.groupby("origin").size().max() <= corpus.EXAMPLES_PER_ORIGIN


def test_a_source_package_lies_in_one_split_and_all_splits_occur(corpus):
    splits = [corpus.split_of(f"package-{i}") for i in range(2000)]
    share = pd.Series(splits).value_counts(normalize=True)
    assert share["train"] == pytest.approx(0.95, abs=0.02)
    assert share["test"] == pytest.approx(0.04, abs=0.015)
    assert share["validation"] > 0


def test_near_duplicates_of_training_text_are_dropped(corpus):
    text = "a small tool that shows the weather of the next three days in a window on the desktop"
    train = pd.DataFrame({"source": [text], "reference": ["weather on the desktop for everyone"]})
    held_out = pd.DataFrame(
        [
            (text, "something else entirely, not seen before"),  # the same source
            (text.replace("three", "five"), "another text that nobody has seen"),  # one word changed
            ("a library to read old sound files of home computers", "weather on the desktop for everyone"),
            ("a library to read old sound files of home computers", "reader of old sound files"),
        ],
        columns=["source", "reference"],
    )
    assert corpus.without_near_duplicates(held_out, train).index.tolist() == [3]


def test_examples_are_aligned_and_named_by_their_source(corpus):
    english = {
        "1": ("libfoo1", "library for foo handling", ["It reads foo files. It writes them too."]),
        "2": ("bar", "a bar for the desktop", ["Shows a bar on top of the screen."]),
    }
    german = {"1": ("libfoo1", "Bibliothek für den Umgang mit foo", ["Sie liest foo-Dateien. Sie schreibt sie auch."])}
    frame = corpus.examples({"libfoo1": "foo"}, english, german)
    assert set(frame[frame.package == "libfoo1"].origin) == {"foo"}
    assert set(frame[frame.package == "bar"].origin) == {"bar"}
    pairs = set(zip(frame[frame.task == "de_en"].source, frame[frame.task == "de_en"].reference, strict=True))
    assert ("Bibliothek für den Umgang mit foo", "library for foo handling") in pairs
    assert ("Sie liest foo-Dateien.", "It reads foo files.") in pairs


def test_missing_indices_are_one_line(tmp_path):
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\n")
    apt.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    ran = run("build_corpus", "--out", tmp_path / "out", "--data", tmp_path / "data", env=environment)
    assert ran.returncode == 2
    assert ran.stderr == (
        "build_corpus: no Debian index Translations en here: run `apt-get update -o Acquire::Languages=en,de` first\n"
    )
    ran = run("build_corpus", env={**os.environ, "PATH": str(tmp_path / "nothing")})
    assert ran.returncode == 2
    assert ran.stderr == "build_corpus: there is no apt-get here: run this on Debian\n"
    assert [f.name for f in tmp_path.iterdir()] == ["apt-get"]


@pytest.fixture
def texts(tmp_path):
    """A corpus of a few examples."""
    rows = [
        (task, f"{task} text number {i} of a few", f"answer number {i}")
        for task in ("de_en", "synopsis")
        for i in range(60)
    ]
    frame = pd.DataFrame(rows, columns=["task", "source", "reference"])
    folder = tmp_path / "corpus"
    folder.mkdir()
    frame.to_parquet(folder / "train.parquet")
    frame[::10].to_parquet(folder / "validation.parquet")
    return folder


def train(texts, tokens, folder, **options):
    return run(
        "train_standins", "--models", "opt-25k", "--tokens", tokens, "--corpus", texts, "--device", "cpu",
        "--work", folder / "work", "--out", folder / "models", **options,
    )  # fmt: skip


def test_training_resumes_and_publishes_a_model_that_loads(texts, tmp_path):
    assert train(texts, 3000, tmp_path).returncode == 0
    first = json.loads((tmp_path / "work" / "opt-25k.json").read_text())
    ran = train(texts, 9000, tmp_path)
    assert ran.returncode == 0, ran.stderr
    log = json.loads((tmp_path / "work" / "opt-25k.json").read_text())
    assert log["curve"][: len(first["curve"])] == first["curve"], "the second run goes on from the first"
    assert log["seen"] >= 9000 > first["seen"] >= 3000
    assert log["curve"][-1][1]["de_en"] < log["curve"][0][1]["de_en"]
    pair = rsdbench.load_pair(str(tmp_path / "models" / "opt-25k"), str(tmp_path / "models" / "opt-25k"))
    assert pair.cost_ratio == 1
    assert pair.tokenizer is not None
    assert sorted(f.name for f in (tmp_path / "models").iterdir()) == ["opt-25k"]


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(texts, tmp_path):
    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # a checkpoint takes 340 kB

    assert train(texts, 3000, tmp_path).returncode == 0
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    ran = train(texts, 9000, tmp_path, preexec_fn=no_large_files)
    assert ran.returncode == 2
    assert "File too large: free some space" in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


def test_no_corpus_is_one_line(tmp_path):
    ran = train(tmp_path, 3000, tmp_path)
    assert ran.returncode == 2
    assert "no corpus in" in ran.stderr
    assert "build_corpus.py" in ran.stderr
