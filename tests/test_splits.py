"""Parquet and JSONL files as rows, and the files of a folder or repository that make up a split."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rsdbench import UsageError
from rsdbench.tasks.splits import (
    DATA,
    embedded_datasets,
    files_digest,
    layout,
    local_data,
    local_files,
    local_split,
    parquet_split,
    split_files,
)

HUB = [
    "README.md", "cs-en/test-00000-of-00001.parquet", "de-en/test-00000-of-00001.parquet",
    "de-en/train-00000-of-00002.parquet", "de-en/train-00001-of-00002.parquet",
]  # fmt: skip


def pairs(count, first=0):
    return [{"translation": {"de": f"Satz {i}", "en": f"sentence {i}"}} for i in range(first, first + count)]


def write_parquet(file, rows, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file, **options)
    return file


def one_line(error):
    return "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["debian_de_en", "debian_synopsis"])
def test_embedded_sets_are_large_enough_and_unique(name):
    frame = pd.read_parquet(DATA / f"{name}.parquet")
    assert len(frame) >= 300
    assert frame.id.is_unique
    assert frame.source.is_unique
    assert (frame.source.str.len() >= 20).all()
    assert (frame.reference.str.len() >= 12).all()
    assert name in embedded_datasets()
    assert local_data(name) == DATA / f"{name}.parquet"


def test_embedded_sets_say_where_they_come_from():
    card = (DATA / "README.md").read_text()
    for word in ("Debian", "Description", "licence", "Translation-de"):
        assert word in card


def test_the_hubs_ways_to_name_files_are_known():
    assert layout(HUB) == {
        "cs-en": {"test": [HUB[1]]},
        "de-en": {"test": [HUB[2]], "train": HUB[3:]},
    }
    for file in (
        "data/test-00000-of-00001.parquet", "test-00000-of-00001-0123456789abcdef.parquet",
        "default/test/0000.parquet", "test.parquet",
    ):  # fmt: skip
        assert layout([file]) == {"default": {"test": [file]}}
    assert layout(["database/test.parquet", "data/de-en/test.parquet"]) == {
        "database": {"test": ["database/test.parquet"]},
        "de-en": {"test": ["data/de-en/test.parquet"]},
    }


@pytest.mark.parametrize(
    ("paths", "config", "split", "files"),
    [
        (HUB, "de-en", "test", HUB[2:3]),
        (HUB, "de-en", "train", HUB[3:]),
        (HUB, "de-en", None, HUB[2:]),
        (HUB[2:], None, "test", HUB[2:3]),
        (["a/test.parquet", "test.parquet"], None, "test", ["test.parquet"]),
    ],
)
def test_a_splits_files_are_found(paths, config, split, files):
    assert split_files(paths, config, split, "it") == files


@pytest.mark.parametrize(
    ("paths", "config", "split", "message"),
    [
        (["README.md"], None, "test", "it has no files of rows"),
        (HUB, None, "test", "several configs: choose one with dataset.config, of cs-en, de-en"),
        (HUB, "en-de", "test", "it has no config 'en-de': it has cs-en, de-en"),
        (HUB, "de-en", "dev", "it has no split 'dev': it has test, train"),
        (HUB[:4], "de-en", "train", "it has only 1 of the 2 files of split 'train'"),
    ],
)
def test_what_a_repository_lacks_is_said_with_what_it_has(paths, config, split, message):
    with pytest.raises(UsageError, match=message) as error:
        split_files(paths, config, split, "it")
    assert one_line(error)


def test_rows_are_numbered_through_all_files_and_row_groups(tmp_path):
    files = [
        write_parquet(tmp_path / f"test-{i:05d}-of-00002.parquet", pairs(7, 7 * i), row_group_size=2) for i in (0, 1)
    ]
    split = parquet_split(files)
    assert (split.columns, split.count) == (["translation.de", "translation.en"], 14)
    numbers = [13, 0, 7, 6, 2]
    found = split.take(numbers, ["translation.de"])
    assert [row["translation"]["de"] for row in found] == [f"Satz {i}" for i in numbers]


def test_a_folder_may_be_a_repositorys_a_configs_or_plain_shards(tmp_path):
    whole = tmp_path / "whole"
    for file in HUB[1:]:
        write_parquet(whole / file, pairs(2))
    one = whole / "de-en"
    plain = tmp_path / "plain"
    shards = [write_parquet(plain / f"part-0000{i}-c000.snappy.parquet", pairs(2, 2 * i)) for i in (0, 1)]
    assert local_files(whole, "de-en", "test") == [one / "test-00000-of-00001.parquet"]
    assert local_files(one, "de-en", "test") == [one / "test-00000-of-00001.parquet"]
    assert local_files(plain, None, None) == shards
    assert local_files(plain, None, "test") == shards, "parts without a split's name are the only split"
    assert local_split(shards).count == 4
    with pytest.raises(UsageError, match="has no config 'en-de': it has cs-en, de-en"):
        local_files(whole, "en-de", "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty' has no files of rows"):
        local_files(tmp_path / "empty", None, "test")


def test_damaged_parquet_files_are_one_line(tmp_path):
    good = write_parquet(tmp_path / "good.parquet", pairs(50), compression="zstd").read_bytes()
    truncated, broken, none = (tmp_path / f"{name}.parquet" for name in ("truncated", "broken", "none"))
    truncated.write_bytes(good[: len(good) // 2])
    none.write_bytes(b"not parquet at all")
    broken.write_bytes(good[:4] + bytes(60) + good[64:])  # its footer is whole
    for file in (truncated, none):
        with pytest.raises(UsageError, match=f"dataset file '{file}' cannot be read: ") as error:
            parquet_split([file])
        assert one_line(error)
    split = parquet_split([broken])
    with pytest.raises(UsageError, match=f"dataset file '{broken}' cannot be read: ") as error:
        split.take([0], ["translation.de"])
    assert one_line(error)


def test_files_of_different_columns_are_no_split(tmp_path):
    files = [write_parquet(tmp_path / "a.parquet", pairs(1)), write_parquet(tmp_path / "b.parquet", [{"de": "x"}])]
    with pytest.raises(UsageError, match=r"a.parquet' and '.*b.parquet' have different columns"):
        parquet_split(files)


def test_jsonl_is_read_as_it_is(tmp_path):
    rows = [{"id": "007", "n": {"de": "für\u2028uns", "en": "for"}}, {"id": "8", "more": 1}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\ufeff" + json.dumps(rows[0], ensure_ascii=False) + "\r\n\n" + json.dumps(rows[1]))
    split = local_split([file])
    assert (split.columns, split.count) == (["id", "n.de", "n.en", "more"], 2)
    assert split.take([1, 0], ["id"]) == rows[::-1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"de": "ein', "line 3 of dataset file '.*' is not JSON: Unterminated string"),
        (b"[1, 2]", "line 3 of dataset file '.*' is no JSON object: give one a line"),
        (b'{"de": "\xff\xfe"}', "line 3 of dataset file '.*' is not UTF-8"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"de": "a"}\n\n' + line + b'\n{"de": "b"}\n')
    with pytest.raises(UsageError, match=message) as error:
        local_split([file])
    assert one_line(error)


def test_files_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "rows.xls").write_text("de,en\n")
    with pytest.raises(UsageError, match=r"rows.xls' is of no known kind: give one of .parquet, .jsonl, "):
        local_split([tmp_path / "rows.xls"])


def test_files_count_by_their_contents_alone(tmp_path):
    files = [write_parquet(tmp_path / f"{name}.parquet", pairs(n)) for name, n in (("a", 2), ("b", 2), ("c", 3))]
    assert files_digest(files[:1]) == files_digest(files[1:2])
    assert len({files_digest(files[:1]), files_digest(files[2:]), files_digest(files), files_digest(files[::2])}) == 4
