"""`rsdbench doctor` on hub caches in the hub's own layout, whole and with holes."""

import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from rsdbench.cli.main import main

from .commands import SMALL
from .conftest import tiny_opt

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROW = [
    "drafter=opt-125m", "target=opt-13b", "dataset=wmt", "drafter.revision=null", "target.revision=null",
    "dataset.revision=null",
]  # fmt: skip


def snapshot(home, name, kind="models", revision="main"):
    """The folder of a repository's only commit, and a function that puts a file there as a link to its blob."""
    repository = home / f"{kind}--{name.replace('/', '--')}"
    folder = repository / "snapshots" / COMMIT
    for made in (folder, repository / "blobs", repository / "refs"):
        made.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(COMMIT)

    def put(path, source):
        blob = repository / "blobs" / f"blob{len(list((repository / 'blobs').iterdir()))}"
        shutil.copy(source, blob)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(blob)
        return blob

    return folder, put


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A model in one file, and one in several with an index."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny_opt(1).save_pretrained(folder / "whole")
    tiny_opt(2).save_pretrained(folder / "sharded", max_shard_size="5KB")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch, checkpoints):
    """A hub cache with all that ROW needs."""
    home = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.chdir(tmp_path)
    for name, checkpoint in (("facebook/opt-125m", "whole"), ("facebook/opt-13b", "sharded")):
        _, put = snapshot(home, name)
        for file in (checkpoints / checkpoint).iterdir():
            put(file.name, file)
    pairs = [{"de": f"Satz {i}.", "en": f"Sentence {i}."} for i in range(300)]
    pq.write_table(pa.table({"translation": pairs}), tmp_path / "test.parquet")
    _, put = snapshot(home, "wmt/wmt18", "datasets")
    put("de-en/test-00000-of-00001.parquet", tmp_path / "test.parquet")
    return home


def doctor(capsys, *arguments, code=0):
    """Lines of the report by what they are about."""
    if code:
        with pytest.raises(SystemExit) as ended:
            main(["doctor", *arguments])
        assert ended.value.code == code
    else:
        main(["doctor", *arguments])
    *lines, last = capsys.readouterr().out.splitlines()
    return {line[9:].partition(":")[0]: line for line in lines}, last


def test_a_whole_cache_is_enough(cache, capsys):
    found, last = doctor(capsys, *ROW)
    assert last == "experiment paper has all it needs here"
    assert found["drafter opt-125m"].startswith("ok ")
    assert COMMIT in found["target opt-13b"]
    assert found["dataset wmt"] == "ok       dataset wmt: wmt/wmt18, 300 rows, of which 256 are used"
    assert f"{cache}, " in found["hub cache"]
    assert "offline mode is set" in found["hub cache"]
    for subject, text in (("torch", "2."), ("libraries", "transformers 5"), ("CPU", " GiB, "), ("results", "GiB free")):
        assert text in found[subject]


def test_an_empty_cache_lacks_everything_and_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found, last = doctor(capsys, code=1)
    assert last == "experiment paper lacks 7 things here"
    lacking = {subject: line for subject, line in found.items() if line.startswith("missing")}
    assert set(lacking) == {
        "drafter opt-125m", "drafter opt-350m", "target opt-13b", "target opt-30b", "target opt-66b", "dataset wmt",
        "dataset xsum",
    }  # fmt: skip
    for name in ("opt-125m", "opt-350m", "opt-13b", "opt-30b", "opt-66b"):
        assert any(f" -> hf download facebook/{name} --exclude '*.h5'" in line for line in lacking.values())
    assert "hf download wmt/wmt18 --repo-type dataset" in lacking["dataset wmt"]
    assert lacking["dataset wmt"].endswith("--include '*de-en*test*'")


def test_the_commands_that_it_names_are_those_of_the_hubs_client():
    hf = Path(sys.executable).with_name("hf")
    shown = subprocess.run([hf, "download", "--help"], capture_output=True, text=True, check=True).stdout
    for option in ("--exclude", "--include", "--revision", "--repo-type"):
        assert option in shown


@pytest.mark.parametrize("hole", ["shard", "blob", "truncated"])
def test_a_cache_with_a_hole_is_partial(cache, capsys, hole):
    (file, *_) = sorted((cache / "models--facebook--opt-13b" / "snapshots" / COMMIT).glob("*.safetensors"))
    if hole == "shard":
        file.unlink()
    elif hole == "blob":
        file.resolve().unlink()
    else:
        file.resolve().write_bytes(file.read_bytes()[:-8])
    found, last = doctor(capsys, *ROW, code=1)
    assert last == "experiment paper lacks 1 thing here"
    assert found["target opt-13b"].startswith("partial  ")
    assert file.name in found["target opt-13b"]
    assert " -> hf download facebook/opt-13b" in found["target opt-13b"]


def test_another_revision_is_missing(cache, capsys):
    found, _ = doctor(capsys, *ROW, "target.revision=v2", code=1)
    assert "not in revision 'v2'" in found["target opt-13b"]
    assert " -> hf download facebook/opt-13b --revision v2 " in found["target opt-13b"]


def test_a_dataset_with_too_few_rows_or_without_a_column_is_partial(cache, capsys):
    found, _ = doctor(capsys, *ROW, "dataset.num_prompts=301", code=1)
    assert found["dataset wmt"].startswith("partial  dataset wmt: ")
    assert "has only 300 rows" in found["dataset wmt"]
    found, _ = doctor(capsys, *ROW, "dataset.reference=translation.fr", code=1)
    assert "has no column 'translation.fr'" in found["dataset wmt"]


def test_what_is_asked_for_and_not_here_is_missing(cache, capsys, monkeypatch):
    from rsdbench.runner import doctor as survey

    monkeypatch.setattr(survey, "find_spec", lambda _: None)
    monkeypatch.setattr(survey, "compiler_at_hand", lambda: False)
    found, _ = doctor(capsys, *ROW)
    assert found["quantization"].startswith("absent")
    assert found["C++ compiler"].startswith("absent")
    found, _ = doctor(capsys, *ROW, "target.quantization=int8", "compile=true", "target.path=/no/where", code=1)
    assert found["quantization"].endswith(" -> pip install 'rsdbench[quantization]'")
    assert found["C++ compiler"].startswith("missing")
    assert "no model '/no/where'" in found["target opt-13b"]


def test_embedded_models_and_datasets_are_always_there(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, last = doctor(capsys, *SMALL)
    assert last == "experiment smoke has all it needs here"
    assert found["target opt-2.6m"].startswith("ok ")
    assert not list(tmp_path.iterdir()), "looking leaves nothing behind"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment=other", "unknown experiment 'other'"),
        ("budgets=[7]x", "budgets"),
        ("decode.temperature=-1", "temperature must be a number >= 0"),
    ],
)
def test_bad_overrides_are_one_line(capsys, override, message):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *SMALL, override])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_on_a_terminal_it_is_a_table(capfdbinary):
    assert pty.spawn([sys.executable, "-m", "rsdbench", "doctor", *SMALL]) == 0
    shown = capfdbinary.readouterr().out.decode()
    assert "│" in shown
    assert "has all it needs here" in shown
