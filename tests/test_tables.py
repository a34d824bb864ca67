"""Files and folders of rows as people have them: read, or refused in one line."""

import bz2
import gzip
import json

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rsdbench.errors import UsageError
from rsdbench.tasks.examples import value_of
from rsdbench.tasks.splits import local_data, local_files, local_split

ROWS = [{"de": f"Satz, Nummer {i}\tund mehr", "en": f"Sentence {i}", "n": str(i)} for i in range(5)]
LINES = "\n".join(json.dumps(row) for row in ROWS)


def csv(separator):
    return pd.DataFrame(ROWS).to_csv(sep=separator, index=False)


FILES = {
    "a.jsonl": LINES.encode(), "a.ndjson": LINES.encode(), "a.JSONL": LINES.encode(),
    "a.jsonl.gz": gzip.compress(LINES.encode()), "a.json.bz2": bz2.compress(LINES.encode()),
    "a.json": json.dumps(ROWS, indent=1).encode(), "b.json": b"\xef\xbb\xbf \n" + json.dumps(ROWS).encode(),
    "a.csv": csv(",").encode(), "a.tsv": csv("\t").encode(), "a.csv.gz": gzip.compress(csv(",").encode("utf-8-sig")),
}  # fmt: skip


def rows_of(path, config=None, split="test"):
    found = local_split(local_files(local_data(str(path)), config, split))
    return found.take(list(range(found.count)), found.columns)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_kind_gives_its_rows(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    assert rows_of(tmp_path / name) == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.json"])
def test_a_folder_of_files_of_any_kind_has_splits(tmp_path, name):
    suffix = name[1:]
    for split in ("train", "test"):
        (tmp_path / f"{split}{suffix}").write_bytes(FILES[name])
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "README.md").write_text("about it")
    assert rows_of(tmp_path) == ROWS
    with pytest.raises(UsageError, match="has no split 'dev': it has test, train"):
        rows_of(tmp_path, split="dev")


SPARK = "part-0000{}-5f1c9a-c000.snappy.parquet"


@pytest.mark.parametrize("pattern", [SPARK, "part.{}.parquet", "0000000{}.parquet", "part-{}.jsonl"])
def test_parts_that_other_programs_write_are_one_split(tmp_path, pattern):
    for number, part in enumerate((ROWS[:2], ROWS[2:])):
        file = tmp_path / pattern.format(number)
        if file.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(part), file)
        else:
            file.write_text("\n".join(map(json.dumps, part)))
    assert rows_of(tmp_path) == ROWS


def test_partitions_are_columns(tmp_path):
    table = pa.Table.from_pylist([{**row, "lang": "x" if i % 2 else "y"} for i, row in enumerate(ROWS)])
    pq.write_to_dataset(table, tmp_path / "d", partition_cols=["lang"])
    found = rows_of(tmp_path / "d")
    assert sorted((row["n"], row["lang"]) for row in found) == [(str(i), "x" if i % 2 else "y") for i in range(5)]


def test_what_datasets_has_saved(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data.select([0]), "test": data}).save_to_disk(tmp_path / "two")
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two") == ROWS
    with pytest.raises(UsageError, match="has no split 'dev': it has test, train"):
        rows_of(tmp_path / "two", split="dev")


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_texts_of_any_type(tmp_path, kind):
    table = pa.table({"de": pa.array([row["de"] for row in ROWS]).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    split = local_split([tmp_path / "a.parquet"])
    assert [row["de"] for row in split.take([3, 1], ["de"])] == [ROWS[3]["de"], ROWS[1]["de"]]


def test_a_column_whose_own_name_has_a_dot(tmp_path):
    pq.write_table(pa.table({"translation.de": ["a", "b"]}), tmp_path / "a.parquet")
    (row,) = local_split([tmp_path / "a.parquet"]).take([1], ["translation.de"])
    assert value_of(row, "translation.de") == "b"


@pytest.mark.parametrize("name", ["data/test.csv", "data/test.tsv", "data/test.jsonl.gz", "data/test.ndjson"])
def test_a_file_that_is_missing_is_no_hub_id(name):
    with pytest.raises(UsageError, match=f"there is no file '{name}'"):
        local_data(name)


BAD = {
    "a.jsonl.gz": (b"no gzip", "cannot be read: Not a gzipped file"),
    "b.jsonl.gz": (gzip.compress(LINES.encode())[:40], "cannot be read: Compressed file ended"),
    "a.json": (b"[1, 2]", "entry 0 of dataset file .* is no JSON object"),
    "b.json": (b'[{"de": 1}', "cannot be read: Expecting"),
    "a.csv": (b"de,en\na,b\na,b,c,d\n", "cannot be read: Error tokenizing data"),
    "b.csv": (b"", "cannot be read: No columns to parse"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_is_one_line(tmp_path, name):
    contents, message = BAD[name]
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(UsageError, match=message) as error:
        rows_of(tmp_path / name)
    assert "\n" not in str(error.value)
