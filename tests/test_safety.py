"""Checkpoints, compiled code and records that somebody else has made: nothing of theirs runs, nothing of ours leaks."""

import html
import os
import pickle
import stat

import pyarrow.parquet as pq
import pytest
import torch

import rsdbench
from rsdbench.backends.aot import library
from rsdbench.backends.aot.library import DIGEST, Recipe
from rsdbench.results.records import PREFIX

from . import checkpoints, commands
from .commands import SMALL, cells

root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")


class Doubling(torch.nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A function that is compiled into a folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    inputs = (torch.ones(3),)
    made = Recipe("doubling", "doubling", ("a part",), Doubling(), inputs, (None,))
    result = made.library().run([torch.ones(3)])[0]
    assert result.tolist() == [2, 2, 2]
    return made


def test_compiled_code_is_kept_where_nobody_else_can_write(recipe):
    assert stat.S_IMODE(recipe.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(recipe.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("folder", [False, True])
def test_compiled_code_that_others_can_write_is_not_loaded(recipe, folder):
    (recipe.path.parent if folder else recipe.path).chmod(0o777)
    with pytest.raises(rsdbench.UsageError, match="is not loaded, because it can be written by others") as refused:
        recipe.library()
    assert "\n" not in str(refused.value)


@root
def test_compiled_code_of_another_user_is_not_loaded(recipe):
    os.chown(recipe.path, 12345, 12345)
    with pytest.raises(rsdbench.UsageError, match="is not loaded, because it belongs to another user"):
        recipe.library()


def test_compiled_code_that_is_not_what_was_written_is_compiled_anew(recipe, monkeypatch):
    contents = bytearray(recipe.path.read_bytes())
    contents[len(contents) // 2] ^= 1
    recipe.path.write_bytes(contents)
    builds = []
    monkeypatch.setattr(Recipe, "build", lambda self: builds.append(self.path))
    monkeypatch.setattr(library, "Library", lambda path: path)
    recipe.library()
    assert builds == [recipe.path]
    contents[len(contents) // 2] ^= 1
    recipe.path.write_bytes(contents)
    recipe.library()
    assert len(builds) == 1, "an undamaged one is loaded"
    assert len(contents) > DIGEST


def test_a_run_says_that_it_goes_on_without_compiled_code(tmp_path):
    home = tmp_path / "cache"
    (home / "rsdbench" / "compiled").mkdir(parents=True)
    (home / "rsdbench" / "compiled").chmod(0o777)
    _, err = commands.rsdbench(
        "run", *SMALL, "compile=auto", f"results={tmp_path / 'out'}", XDG_CACHE_HOME=str(home)
    )  # fmt: skip
    lines = [line for line in err.splitlines() if "can be written by others" in line]
    assert lines
    assert all(line.startswith("note: ") for line in lines)
    assert sum("the models' own forwards are used" in line for line in lines) == 1


class Runs:
    """What a crafted pickle has in it: reading it would make a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (self.file,)


@pytest.mark.parametrize("crafted", ["whole", "as a weight"])
def test_a_checkpoint_with_code_in_its_pickle_is_refused_in_our_words(tmp_path, crafted):
    folder, ran = tmp_path / "model", tmp_path / "ran"
    model = checkpoints.opt(folder, "float16.bin")
    if crafted == "whole":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(str(ran))))
    else:
        torch.save({**model.state_dict(), "lm_head.weight": Runs(str(ran))}, folder / "pytorch_model.bin")
    with pytest.raises(rsdbench.UsageError, match="holds more than tensors, and to read it could run any code") as told:
        rsdbench.load_pair(str(folder), str(folder), device="cpu")
    assert "weights_only" not in str(told.value)
    assert not ran.exists()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("safety")
    commands.rsdbench("run", *SMALL, f"results={folder}")
    return folder


def with_configuration(results, folder, text):
    """A copy of a results folder whose records hold another configuration."""
    (folder / "cells").mkdir(parents=True)
    for file in cells(results):
        table = pq.read_table(file)
        metadata = {**table.schema.metadata, f"{PREFIX}config".encode(): text.encode()}
        pq.write_table(table.replace_schema_metadata(metadata), folder / "cells" / file.name)
    return folder


def configuration(results):
    return pq.read_schema(cells(results)[0]).metadata[f"{PREFIX}config".encode()].decode()


READING = (("table",), ("claims",), ("figure", "--out", "f.svg"), ("merge", "--out", "m.parquet"), ("status",))


@pytest.mark.parametrize("command", READING, ids=lambda c: c[0])
def test_what_looks_like_an_interpolation_in_a_record_is_text(results, tmp_path, command):
    text = configuration(results).replace("name: smoke", "name: ${oc.env:SECRET}\nnote: ${oc.env:SECRET}")
    text = text.replace("drafters:", "targets_: ${oc.env:SECRET}\n  drafters:", 1)
    assert "oc.env" in text
    folder = with_configuration(results, tmp_path / "crafted", text)
    name, *rest = command
    out, err = commands.rsdbench(name, folder, *rest, cwd=tmp_path, SECRET="s3cr3t")
    written = b"".join(f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
    assert "s3cr3t" not in out + err
    assert b"s3cr3t" not in written


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "!!python/object/apply:os.mkdir [ran]"])
def test_a_configuration_that_is_none_is_kept_and_not_looked_at(results, tmp_path, text):
    folder = with_configuration(results, tmp_path / "crafted", text)
    for name, *rest in READING:
        commands.rsdbench(name, folder, *rest, cwd=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_brackets_and_dollars_in_labels_are_text(tmp_path):
    label = r"[red]5 $\nomacro{$ _"
    commands.rsdbench("run", *SMALL, f"results={tmp_path}/r", f"dataset.label='{label}'")
    assert label in commands.rsdbench("table", tmp_path / "r")[0]
    assert label in commands.rsdbench("status", tmp_path / "r")[0]
    commands.rsdbench("figure", tmp_path / "r", "--out", tmp_path / "f.svg")
    assert "[red]5 $\\nomacro{$ _" in html.unescape((tmp_path / "f.svg").read_text())
