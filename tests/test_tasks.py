"""Embedded and local datasets, prompts and their cuts."""

import json

import pandas as pd
import pytest
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from rsdbench import UsageError
from rsdbench.engine.checkpoints import MODELS
from rsdbench.experiment.prompts import encode_prompt
from rsdbench.experiment.tasks import (
    DATA,
    answer_text,
    check_dataset,
    embedded_datasets,
    load_examples,
    stop_token,
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODELS / "opt-25k")


def dataset(**changes):
    base = {
        "name": "own", "label": "Own", "path": "debian_synopsis", "config": None, "split": "test", "revision": None,
        "source": "source", "reference": "reference", "id": "id", "template": "{source}\nSummary:",
        "max_prompt_tokens": 160, "stop": "eos", "metric": "rouge2", "num_prompts": 5,
    }  # fmt: skip
    return OmegaConf.create({**base, **changes})


@pytest.mark.parametrize("name", ["debian_de_en", "debian_synopsis"])
def test_embedded_sets_are_large_enough_and_unique(name):
    frame = pd.read_parquet(DATA / f"{name}.parquet")
    assert len(frame) >= 300
    assert frame.id.is_unique
    assert frame.source.is_unique
    assert (frame.source.str.len() >= 20).all()
    assert (frame.reference.str.len() >= 12).all()
    assert name in embedded_datasets()


def test_embedded_sets_say_where_they_come_from():
    card = (DATA / "README.md").read_text()
    for word in ("Debian", "Description", "licence", "Translation-de"):
        assert word in card


def test_a_prompt_that_fits_is_whole(tokenizer):
    ids, cut = encode_prompt(tokenizer, "German: {source}\nEnglish:", "Ein kurzer Satz.", 100)
    assert cut == 0
    assert tokenizer.decode(ids, skip_special_tokens=True) == "German: Ein kurzer Satz.\nEnglish:"


def test_a_long_source_is_cut_at_its_end_and_the_template_never(tokenizer):
    source = "word " * 500
    ids, cut = encode_prompt(tokenizer, "Text: {source}\nSummary:", source, 60)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert 50 <= len(ids) <= 60
    assert text.startswith("Text: word word")
    assert text.endswith("\nSummary:")
    assert cut == len(source) - (len(text) - len("Text: \nSummary:"))


def test_a_template_that_leaves_no_room_is_refused(tokenizer):
    with pytest.raises(UsageError, match="the prompt template alone takes"):
        encode_prompt(tokenizer, "A rather long instruction: {source}\nSummary:", "text", 5)


def test_parquet_and_jsonl_with_nested_columns_load_alike(tokenizer, tmp_path):
    rows = [{"translation": {"de": f"Satz {i}", "en": f"sentence {i}"}} for i in range(4)]
    pd.DataFrame(rows).to_parquet(tmp_path / "data.parquet")
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"source": "translation.de", "reference": "translation.en", "id": None, "num_prompts": 3}
    loaded = [
        load_examples(dataset(path=str(tmp_path / f"data.{kind}"), **options), tokenizer, 100)
        for kind in ("parquet", "jsonl")
    ]
    assert loaded[0] == loaded[1]
    assert [e.reference for e in loaded[0]] == ["sentence 0", "sentence 1", "sentence 2"]
    assert [e.id for e in loaded[0]] == ["own-00000", "own-00001", "own-00002"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nothing"}, "no dataset 'nothing'"),
        ({"path": "/no/where.parquet"}, "no dataset"),
        ({"path": "someone/something"}, "HF_HUB_OFFLINE is set"),
        ({"stop": "never"}, "dataset.stop must be one of eos, line"),
        ({"template": "no place"}, "must contain {source}"),
        ({"num_prompts": 0}, "at least 1"),
    ],
)
def test_unusable_settings_are_seen_before_loading(changes, message):
    with pytest.raises(UsageError, match=message):
        check_dataset(dataset(**changes))


def test_missing_columns_and_rows_are_named(tokenizer):
    with pytest.raises(UsageError, match="has no column 'article': it has id, package"):
        load_examples(dataset(source="article"), tokenizer, 100)
    with pytest.raises(UsageError, match="has only 600 rows"):
        load_examples(dataset(num_prompts=10_000), tokenizer, 100)
    with pytest.raises(UsageError, match="tokenizer"):
        load_examples(dataset(), None, 100)


def test_a_damaged_file_is_one_line(tokenizer, tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(UsageError, match="cannot be read") as caught:
        load_examples(dataset(path=str(tmp_path / "bad.parquet")), tokenizer, 100)
    assert "\n" not in str(caught.value)


def test_answers_end_at_their_line(tokenizer):
    tokens = tokenizer(" a text\nand more", add_special_tokens=False).input_ids
    assert answer_text([*tokens, tokenizer.eos_token_id], tokenizer) == "a text"
    assert answer_text([], tokenizer) == ""
    assert stop_token(dataset(), tokenizer) == 2
    assert tokenizer.decode([stop_token(dataset(stop="line"), tokenizer)]) == "\n"
