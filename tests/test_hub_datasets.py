"""Datasets of the hub: from a hub on this machine, from the hub cache, and from what `datasets` has prepared."""

import json
import os
import subprocess
import sys
from unittest.mock import Mock

import datasets
import huggingface_hub.constants
import pandas as pd
import pytest
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from rsdbench import UsageError
from rsdbench.models.checkpoints import MODELS
from rsdbench.runner.compose import compose
from rsdbench.runner.plan import planned_rows, prepare
from rsdbench.runner.run import run_row
from rsdbench.tasks.examples import check_dataset, load_examples
from rsdbench.tasks.hub_datasets import hub_split
from tests.commands import ROOT, cells
from tests.hub import local_hub
from tests.test_splits import write_parquet

WMT, XSUM = (compose(["experiment=paper", f"dataset={name}"])[0].dataset for name in ("wmt", "xsum"))
COMMIT = "c" * 40
CONVERTED = "refs/convert/parquet"
TRANSLATIONS = [{"translation": {"de": f"Satz Nummer {i}.", "en": f"Sentence {i}."}} for i in range(9)]
ARTICLES = [{"document": f"Article {i}. " * 20 * (i + 1), "summary": f"It is {i}.", "id": f"{i:08d}"} for i in range(9)]
# what runs in a process of its own, with the hub that is named in the environment
ONLINE = """
import json, sys
from rsdbench.tasks.hub_datasets import hub_split
for arguments in json.loads(sys.argv[1]):
    try:
        split = hub_split(*arguments)
        print(json.dumps(split and [split.count, split.take([split.count - 1, 0], split.columns)]))
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""
PREPARE = f"""
import datasets
datasets.load_dataset("wmt/wmt18", "de-en", split="test", revision="{COMMIT}")
datasets.load_dataset("EdinburghNLP/xsum", split="test", revision="{COMMIT}")
"""


def write_repositories(root):
    """WMT18 and XSum as the hub has them, and a dataset of JSONL files."""
    for config in ("cs-en", "de-en"):
        for split in ("test", "train"):
            write_parquet(root / f"wmt/wmt18/{config}/{split}-00000-of-00001.parquet", TRANSLATIONS)
    files = [{"split": split, "path": f"de-en/{split}-*"} for split in ("test", "train")]
    card = {"configs": [{"config_name": "de-en", "data_files": files}]}
    (root / "wmt/wmt18/README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    write_parquet(root / "EdinburghNLP/xsum/data/test-00000-of-00001.parquet", ARTICLES)
    (root / "some/jsonl").mkdir(parents=True)
    (root / "some/jsonl/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ARTICLES))


def online(url, home, code, *arguments):
    """Run Python code as a user of a hub."""
    environment = {
        **os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", code, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def cache(home, name, files, ref="main", commit=COMMIT):
    """A repository in the hub cache's layout: refs, blobs, and snapshots of links to blobs."""
    repository = home / "hub" / f"datasets--{name.replace('/', '--')}"
    (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / ref).write_text(commit)
    for file, rows in files.items():
        blob = write_parquet(repository / "blobs" / f"{len(list(repository.glob('blobs/*'))):040x}", rows)
        link = repository / "snapshots" / commit / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return repository


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODELS / "opt-25k")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of Hugging Face's libraries with nothing in it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A home in which `datasets` has prepared both datasets, as it does it itself."""
    root = tmp_path_factory.mktemp("prepared")
    write_repositories(root / "repositories")
    with local_hub(root / "repositories", COMMIT) as (url, _):
        online(url, root / "home", PREPARE)
    return root / "home"


def config(base, path, **changes):
    return OmegaConf.merge(base, {"path": path, "num_prompts": 5, "shuffle": 0, **changes})


def test_the_hub_gives_the_files_of_one_split_and_they_stay(tmp_path):
    write_repositories(tmp_path / "repositories")
    calls = [
        ["wmt/wmt18", "de-en", "test", COMMIT, False],
        ["wmt/wmt18", "de-en", "test", CONVERTED, True],
        ["EdinburghNLP/xsum", None, "test", None, True],
        ["some/jsonl", None, "test", None, True],
        ["wmt/wmt18", "en-de", "test", None, False],
        ["wmt/wmt18", "de-en", "dev", None, False],
        ["wmt/wmt18", "de-en", "test", "gone", False],
        ["wmt/wmt36", "de-en", "test", None, False],
    ]
    for repository in ("wmt/wmt18", "EdinburghNLP/xsum"):  # about it: no config, and no split
        (tmp_path / "repositories" / repository / "dataset_infos.json").write_text("{}")
    with local_hub(tmp_path / "repositories", COMMIT, ("main", CONVERTED)) as (url, asked):
        there, wmt, xsum, jsonl, *errors = map(json.loads, online(url, tmp_path / "home", ONLINE, json.dumps(calls)))
        assert there is None, "checked, not fetched"
        assert wmt == [9, [TRANSLATIONS[8], TRANSLATIONS[0]]]
        assert xsum == jsonl == [9, [ARTICLES[8], ARTICLES[0]]]
        assert errors == [
            "UsageError: dataset 'wmt/wmt18' has no config 'en-de': it has cs-en, de-en",
            "UsageError: dataset 'wmt/wmt18' has no split 'dev': it has test, train "
            "(dataset.split=null takes all its files)",
            "UsageError: dataset 'wmt/wmt18' has no revision 'gone': dataset.revision=null takes main",
            "UsageError: the hub has no dataset 'wmt/wmt36' that you may read: give another id or a path",
        ]
        assert not [path for path in asked if "train" in path or "cs-en" in path]
        asked.clear()
        (again,) = map(json.loads, online(url, tmp_path / "home", ONLINE, json.dumps(calls[1:2])))
        assert again == wmt
        assert not asked, "what is in the hub cache is not asked for again"


@pytest.mark.parametrize(
    ("name", "files", "ref"),
    [
        ("wmt/wmt18", {"de-en/test-00000-of-00001.parquet": TRANSLATIONS}, "main"),
        ("wmt/wmt18", {f"de-en/test/000{i}.parquet": TRANSLATIONS[5 * i : 5 * i + 5] for i in (0, 1)}, CONVERTED),
        ("EdinburghNLP/xsum", {"data/test-00000-of-00001.parquet": ARTICLES}, "main"),
        ("EdinburghNLP/xsum", {"default/test/0000.parquet": ARTICLES}, CONVERTED),
    ],
)  # fmt: skip
def test_an_offline_hub_cache_gives_the_same_prompts_as_a_local_file(tokenizer, home, name, files, ref):
    cache(home, name, files, ref)
    base = WMT if name == "wmt/wmt18" else XSUM
    rows = TRANSLATIONS if base is WMT else ARTICLES
    local = write_parquet(home / "local.parquet", rows)
    expected = load_examples(config(base, str(local)), tokenizer, 150)
    for revision in (ref, COMMIT, *([None] if ref == "main" else [])):
        cached = config(base, name, revision=revision)
        check_dataset(cached)
        assert load_examples(cached, tokenizer, 150) == expected
    assert len({e.id for e in expected}) == 5


def test_a_hub_cache_says_what_it_has(home):
    repository = cache(home, "wmt/wmt18", {
        "de-en/test-00000-of-00001.parquet": TRANSLATIONS, "de-en/train-00000-of-00002.parquet": TRANSLATIONS,
    })  # fmt: skip
    for arguments, message in (
        (("en-de", "test", None), "in the hub cache has no config 'en-de': it has de-en, and HF_HUB_OFFLINE is set"),
        (("de-en", "dev", None), "in the hub cache has no split 'dev': it has test, train"),
        (("de-en", "train", None), "in the hub cache has only 1 of the 2 files of split 'train'"),
        (("de-en", "test", "b" * 40), f"at revision b* is not on disk .*dataset.revision={COMMIT}.*--revision bbb"),
        (("de-en", "test", CONVERTED), r"get it with: hf download wmt/wmt18 .* --include '\*de-en\*test\*'"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            hub_split("wmt/wmt18", *arguments, fetch=True)
        assert "\n" not in str(error.value)
    for blob in repository.glob("blobs/*"):
        blob.unlink()
    with pytest.raises(UsageError, match=r"in the hub cache has no files of rows"):
        hub_split("wmt/wmt18", "de-en", "test", None, fetch=True)


def test_a_damaged_file_in_the_hub_cache_is_named(home):
    repository = cache(home, "wmt/wmt18", {"de-en/test-00000-of-00001.parquet": TRANSLATIONS})
    (blob,) = repository.glob("blobs/*")
    blob.write_bytes(blob.read_bytes()[:-20])
    with pytest.raises(UsageError, match=r"snapshots/c*/de-en/test-00000-of-00001.parquet' cannot be read"):
        check_dataset(config(WMT, "wmt/wmt18", revision=None))


@pytest.mark.parametrize("base", [WMT, XSUM])
def test_what_datasets_has_prepared_gives_the_same_prompts(tokenizer, home, prepared, monkeypatch, base):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", prepared / "datasets")
    local = write_parquet(home / "local.parquet", TRANSLATIONS if base is WMT else ARTICLES)
    expected = load_examples(config(base, str(local)), tokenizer, 150)
    for revision in (None, COMMIT, CONVERTED):
        there = config(base, base.path, revision=revision)
        check_dataset(there)
        assert load_examples(there, tokenizer, 150) == expected


def test_what_datasets_has_prepared_says_what_it_is(home, prepared, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", prepared / "datasets")
    for arguments, message in (
        (("en-de", "test", None), "cannot be loaded: .*en-de.*Available configs in the cache: .*de-en"),
        (("de-en", "dev", None), "cannot be loaded: Unknown split .dev.*test"),
        (("de-en", "test", "b" * 40), f"has prepared dataset 'wmt/wmt18' at revision {COMMIT}, not bbb.*revision=null"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            hub_split("wmt/wmt18", *arguments, fetch=True)
        assert "\n" not in str(error.value)


def test_the_papers_grid_runs_from_an_offline_hub_cache(home):
    cache(home, XSUM.path, {"data/test-00000-of-00001.parquet": ARTICLES}, commit=XSUM.revision)
    (planned,) = rows = planned_rows([
        "experiment=paper", "drafter=opt-25k", "target=opt-2.6m", "dataset=xsum", "dataset.num_prompts=3",
        "methods=[sd]", "budgets=[6]", "decode.max_new_tokens=12", "speed.num_prompts=1", "compile=false",
        f"results={home / 'r'}",
    ])  # fmt: skip
    prepare(rows)
    assert run_row(planned.row, planned.cells, planned.results, Mock()) == {}
    frame = pd.concat([pd.read_parquet(file) for file in cells(home / "r")])
    articles = {row["id"]: row for row in ARTICLES}
    for _, pass_ in frame.groupby(["method", "phase", "turn"]):
        assert list(pass_.prompt_id) == list(frame.prompt_id)[: len(pass_)], "every method decodes the same prompts"
    assert set(frame.phase) == {"quality", "speed"}
    assert all(articles[row.prompt_id]["summary"] == row.reference for row in frame.itertuples())
    assert frame.source_cut.max() > 0
    assert (frame.prompt_tokens + 12 + 32 <= 256).all()
    ends = frame.text.str.extract(r"([.!?])")[0].notna()
    assert (frame.text[ends].str.count(r"[.!?]") == 1).all(), "one sentence"
    assert (frame.new_tokens[~ends] <= 12).all()
