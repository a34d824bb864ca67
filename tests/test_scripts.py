"""The scripts that make the embedded data and models: no leak into the test set, resumption, bad surroundings."""

import hashlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import rsdbench
from rsdbench.models.checkpoints import MODELS
from rsdbench.tasks.splits import DATA

DATASETS = ("debian-de-en", "debian-synopsis")
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
    """A script in a process of its own."""
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


def words(seed, number):
    """A text like no other."""
    return " ".join(f"w{hashlib.sha256(f'{seed} {i}'.encode()).hexdigest()[:6]}" for i in range(number))


@pytest.fixture
def indices(corpus, tmp_path):
    """Indices of 300 source packages with two binary packages each, and the held-out ones that copy a training text."""
    english, german, packages, copies = [], [], [], set()
    common = next(i for i in range(300) if corpus.split_of(f"foo{i}") == "train")
    for i in range(300):
        if i % 2 and corpus.split_of(f"foo{i}") != "train":
            copies.add(f"foo{i}")
        for kind in ("lib", "dev"):
            name, digest = f"{kind}foo{i}", hashlib.md5(f"{kind} {i}".encode()).hexdigest()
            body = words(f"body {common if f'foo{i}' in copies else i} {kind}", 30)
            packages.append(f"Package: {name}\nSource: foo{i} (1.0)\n")
            for language, stanzas, text in (("en", english, f"{body} {i}"), ("de", german, words(f"de {name}", 12))):
                head = f"Description-{language}: {words(f'{language} head {name}', 4)}"
                stanzas.append(f"Package: {name}\nDescription-md5: {digest}\n{head}\n {text}\n")
    files = {}
    for kind, stanzas in (("en", english), ("de", german), ("Packages", packages)):
        files[kind] = tmp_path / kind
        files[kind].write_text("\n".join(stanzas))
    return files, copies


def test_no_source_package_and_no_near_duplicate_crosses_the_split(corpus, indices, tmp_path, monkeypatch, capsys):
    files, copies = indices
    monkeypatch.setattr(corpus, "index_files", lambda kind, language=None: [str(files[language or kind])])
    monkeypatch.setattr(corpus, "index_text", lambda path: Path(path).read_text())
    corpus.main(["--out", str(tmp_path / "out"), "--data", str(tmp_path / "data")])
    train = pd.read_parquet(tmp_path / "out" / "train.parquet")
    held_out = {f"foo{i}" for i in range(300)} - set(train.origin)
    assert copies <= held_out
    assert {corpus.split_of(origin) for origin in copies} == {"validation", "test"}
    assert {f"{kind}{o}" for o in train.origin for kind in ("lib", "dev")} == set(train.package)
    for file in ("debian_synopsis", "debian_de_en"):
        test = pd.read_parquet(tmp_path / "data" / f"{file}.parquet")
        assert test[test.origin.isin(copies) & (test.source.str.len() > 40)].empty, "their headlines alone are new"
        assert set(test.origin) >= {o for o in held_out - copies if corpus.split_of(o) == "test"}
        assert not set(test.origin) & set(train.origin)
    dropped = sum(int(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines() if "dropped" in line)
    assert dropped == 2 * 2 * len(copies), "two packages each, in both tasks"


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


def test_held_out_loss_falls_with_size_on_both_tasks():
    training = load("train_standins")
    frames = [pd.read_parquet(DATA / f"debian_{task}.parquet")[:100].assign(task=task) for task in training.TEMPLATES]
    data = training.encode(pd.concat(frames), AutoTokenizer.from_pretrained(MODELS / "opt-25k"))
    models = [AutoModelForCausalLM.from_pretrained(MODELS / name, dtype="float32") for name in training.RECIPES]
    losses = pd.DataFrame([training.evaluate(model, data, "cpu") for model in models])
    assert (losses.diff()[1:] < 0).all().all(), losses


def test_the_model_cards_numbers_come_from_logs_and_answers(tmp_path):
    training = load("train_standins")
    work = tmp_path / "work"
    work.mkdir()
    ran = run("evaluate_standins", "--work", work, "--out", tmp_path / "out")
    assert ran.returncode == 2
    assert ran.stderr.startswith("evaluate_standins: no log of opt-25k, opt-70k, opt-2.6m, opt-6m, opt-13.2m in")
    assert ran.stderr.count("\n") == 1
    for name in training.RECIPES:
        curve = [[1000, {"de_en": 5.0, "synopsis": 5.1}], [2000, {"de_en": 4.0, "synopsis": 4.1}]]
        (work / f"{name}.json").write_text(json.dumps({"seconds": 7.4, "curve": curve}))
    options = ("--prompts", 5, "--samples", 2)
    ran = run("evaluate_standins", "--work", work, "--out", tmp_path / "out", *options)
    assert ran.returncode == 0, ran.stderr
    curves = pd.read_csv(tmp_path / "out" / "curves.csv")
    assert curves.groupby("model").tokens.max().eq(2000).all()
    assert set(curves.seconds.dropna()) == {7}
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert scores.value_counts(["model", "dataset", "prompts"]).to_dict() == {
        (model, dataset, 5): 1 for model in ("opt-2.6m", "opt-6m", "opt-13.2m") for dataset in DATASETS
    }
    assert ((scores.low <= scores.score) & (scores.score <= scores.high)).all()
    samples = (tmp_path / "out" / "samples.md").read_text()
    assert samples.count("| reference |") == 2 * 2
    assert samples.count("| opt-13.2m |") == 2 * 2


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
