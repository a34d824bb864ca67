"""A dataset's rows as prompts: which rows, what comes before them, where they are cut, where answers end."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from rsdbench import UsageError
from rsdbench.models.checkpoints import MODELS
from rsdbench.runner.compose import CONFIGS, compose
from rsdbench.tasks.examples import answer_text, check_dataset, dataset_content, load_examples, stop_tokens
from rsdbench.tasks.prompts import encode_prompt

ARTICLE = "The council met on Monday. It said that the bridge will be closed, for repairs, until 14 May.\n"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODELS / "opt-25k")


def dataset(base="debian-synopsis", **changes):
    config = compose([f"dataset={base}"])[0].dataset
    return OmegaConf.merge(config, {"num_prompts": 5, "max_prompt_tokens": 160, **changes})


def write(file, rows):
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(file)


def wmt(folder, count=40, kind="jsonl"):
    rows = [{"translation": {"de": f"Satz Nummer {i}.", "en": f"Sentence {i}."}} for i in range(count)]
    return dataset("wmt", path=write(folder / f"wmt.{kind}", rows))


def xsum(folder, rows, kind="jsonl", **changes):
    rows = [{"document": ARTICLE, "summary": "A bridge.", "id": f"{i:08d}"} | row for i, row in enumerate(rows)]
    return dataset("xsum", path=write(folder / f"xsum.{kind}", rows), num_prompts=len(rows), **changes)


def ids_of(tokenizer):
    return lambda text: tokenizer(text).input_ids


def text(tokenizer, example):
    return tokenizer.decode(example.prompt, skip_special_tokens=True)


def test_a_prompt_that_fits_is_whole(tokenizer):
    ids, cut = encode_prompt(ids_of(tokenizer), "German: {source}\nEnglish:", "Ein kurzer Satz.", 100)
    assert cut == 0
    assert tokenizer.decode(ids, skip_special_tokens=True) == "German: Ein kurzer Satz.\nEnglish:"


@pytest.mark.parametrize("cut", ["proportional", "longest"])
def test_a_long_source_is_cut_at_its_end_and_nothing_else_is(tokenizer, cut):
    source = "word " * 500
    ids, lost = encode_prompt(ids_of(tokenizer), "Text: {source}\nSummary:", source, 60, "Be brief.\n\n", cut)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert 50 <= len(ids) <= 60
    assert text.startswith("Be brief.\n\nText: word word")
    assert text.endswith("\nSummary:")
    assert lost == len(source) - (len(text) - len("Be brief.\n\nText: \nSummary:"))


def test_the_longest_cut_loses_no_character_that_fits(tokenizer):
    random.seed(5)
    for _ in range(20):
        source = "".join(random.choice(["der ", "Brücke", "\n", "12.5", "  ", "x", "日本"]) for _ in range(300))
        room = random.randint(20, 150)
        ids, lost = encode_prompt(ids_of(tokenizer), "{source}\nSummary:", source, room, cut="longest")
        kept = len(source) - lost
        assert ids == tokenizer(source[:kept] + "\nSummary:").input_ids
        assert len(ids) <= room < len(tokenizer(source[: kept + 1] + "\nSummary:").input_ids)
        assert lost <= encode_prompt(ids_of(tokenizer), "{source}\nSummary:", source, room)[1]


def test_a_template_that_leaves_no_room_is_refused(tokenizer):
    with pytest.raises(UsageError, match="the prompt template alone takes"):
        encode_prompt(ids_of(tokenizer), "A rather long instruction: {source}\nSummary:", "text", 5)
    with pytest.raises(UsageError, match="the prompt template with its instruction and examples takes"):
        encode_prompt(ids_of(tokenizer), "{source}:", "text", 5, "A rather long instruction.\n\n")


def test_long_articles_leave_room_for_new_tokens_and_tree(tokenizer, tmp_path):
    config = xsum(tmp_path, [{}, {"document": ARTICLE * 200}], shots=1, instruction="Sum up the article.")
    room = 2048 - 128 - 32
    short, long = load_examples(config, tokenizer, room)
    assert (short.cut, len(long.prompt)) == (0, room)
    assert 0 < long.cut < len(ARTICLE) * 200
    kept = (ARTICLE * 200)[: -long.cut]
    shot = config.examples[0]
    head = f"Sum up the article.\n\n{shot.source}\nSummary: {shot.reference}\n\n"
    assert text(tokenizer, long) == f"{head}{kept}\nSummary:"
    assert text(tokenizer, short) == f"{head}{ARTICLE}\nSummary:"


def test_one_shot_prompts_are_the_examples_then_the_source(tokenizer, tmp_path):
    config = wmt(tmp_path)
    shot = config.examples[0]
    zero = load_examples(config, tokenizer, 1000)
    one = load_examples(OmegaConf.merge(config, {"shots": 1}), tokenizer, 1000)
    assert text(tokenizer, zero[0]) == "German: Satz Nummer 0.\nEnglish:"
    assert text(tokenizer, one[0]) == (
        f"German: {shot.source}\nEnglish: {shot.reference}\n\nGerman: Satz Nummer 0.\nEnglish:"
    )
    assert [e.id for e in one] == [e.id for e in zero]


def test_an_example_that_is_shown_is_not_evaluated(tmp_path):
    config = wmt(tmp_path)
    shot = {"source": "Satz Nummer 3.", "reference": "Sentence 3."}
    check_dataset(OmegaConf.merge(config, {"shots": 0, "examples": [shot]}))
    check_dataset(OmegaConf.merge(config, {"shots": 1, "examples": [shot], "num_prompts": 3}))
    with pytest.raises(UsageError, match=r"row 3 of dataset .* is evaluated and shown as one of dataset.examples"):
        check_dataset(OmegaConf.merge(config, {"shots": 1, "examples": [shot]}))


@pytest.mark.parametrize(("make", "rows"), [("wmt", None), ("xsum", [{}] * 7)])
def test_the_same_rows_from_parquet_and_jsonl_are_the_same_prompts(tokenizer, tmp_path, make, rows):
    for shuffle in (None, 0):
        loaded = []
        for kind in ("parquet", "jsonl"):
            config = wmt(tmp_path, kind=kind) if make == "wmt" else xsum(tmp_path, rows, kind)
            config.shuffle = shuffle
            loaded.append(load_examples(config, tokenizer, 100))
        assert loaded[0] == loaded[1]
    assert loaded[0][0].id.startswith("wmt-000" if make == "wmt" else "0000000")


def test_the_same_seed_gives_the_same_prompts_however_many(tokenizer, tmp_path):
    config = wmt(tmp_path)
    orders = {}
    for seed in (None, 0, 1):
        few, all_ = (
            load_examples(OmegaConf.merge(config, {"shuffle": seed, "num_prompts": n}), tokenizer, 100) for n in (5, 40)
        )
        assert few == all_[:5]
        orders[seed] = [e.id for e in all_]
        assert sorted(orders[seed]) == [f"wmt-{i:05d}" for i in range(40)]
        assert all(f"Nummer {int(e.id[-5:])}." in text(tokenizer, e) for e in all_), "ids stay with their rows"
    assert orders[None] == sorted(orders[None])
    assert len({tuple(order) for order in orders.values()}) == 3
    first = [f"wmt-{i:05d}" for i in (38, 6, 34, 14, 4)]
    assert orders[0][:5] == first, "the order of a seed is the same everywhere, and for good"


def test_cells_of_earlier_versions_keep_their_names(tmp_path):
    earlier = {
        *("name", "label", "path", "config", "split", "revision", "source", "reference", "id", "template"),
        *("max_prompt_tokens", "stop", "metric", "num_prompts"),
    }
    plain = OmegaConf.to_container(dataset())
    assert set(dataset_content(plain)) == earlier
    for key, value in {"instruction": "Sum up.", "shuffle": 0, "cut": "longest"}.items():
        assert dataset_content({**plain, key: value}) == {**dataset_content(plain), key: value}
    shots = [{"source": "a", "reference": "b"}, {"source": "c", "reference": "d"}]
    assert dataset_content({**plain, "examples": shots}) == dataset_content(plain), "examples that are not shown"
    assert dataset_content({**plain, "examples": shots, "shots": 1})["examples"] == shots[:1]
    moved = tmp_path / "moved.parquet"
    moved.write_bytes((CONFIGS.parent / "rsdbench/assets/data/debian_synopsis.parquet").read_bytes())
    assert dataset_content({**plain, "path": str(moved)}) == dataset_content(plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nothing"}, "no dataset 'nothing'"),
        ({"path": "/no/where.parquet"}, "there is no file '/no/where.parquet'"),
        ({"path": "someone/something"}, "'someone/something' is not on disk, and HF_HUB_OFFLINE is set: get it with"),
        ({"path": None}, "dataset 'debian-synopsis' lacks \"dataset.path="),
        ({"stop": "never"}, "dataset.stop must be one of eos, line, sentence, not 'never'"),
        ({"cut": "short"}, "dataset.cut must be one of proportional, longest"),
        ({"metric": "rouge9"}, "dataset.metric must be one of bleu, rouge2"),
        ({"template": "no place"}, "must contain {source}"),
        ({"split": 3}, "dataset.split must be a text or null"),
        ({"instruction": 3}, "dataset.instruction must be a text or null"),
        ({"num_prompts": 0}, "dataset.num_prompts must be a number of at least 1"),
        ({"num_prompts": None}, "dataset.num_prompts must be a number of at least 1"),
        ({"num_prompts": True}, "dataset.num_prompts must be a number of at least 1"),
        ({"num_prompts": 10_000}, "dataset.num_prompts is 10000, but 'debian_synopsis' has only 600 rows"),
        ({"max_prompt_tokens": 0}, "dataset.max_prompt_tokens must be a number of at least 1"),
        ({"shuffle": "yes"}, "dataset.shuffle must be null or a seed"),
        ({"shots": -1}, "dataset.shots must be a number of at least 0"),
        ({"shots": 1}, "dataset.shots is 1, but dataset.examples has only 0"),
        ({"examples": "text"}, "dataset.examples must be a list"),
        ({"examples": ["text"]}, r"dataset.examples\[0\] must have a source and a reference"),
        ({"examples": [{"source": "a"}]}, r"dataset.examples\[0\] must have a source and a reference"),
        ({"source": "article"}, "has no column 'article': it has id, package, origin, source, reference"),
        ({"reference": "source.en"}, "has no column 'source.en'"),
        ({"id": "number"}, "has no column 'number'"),
    ],
)
def test_unusable_settings_are_seen_before_a_model_is_loaded(changes, message):
    config = dataset()
    config.update(changes)
    with pytest.raises(UsageError, match=message) as error:
        check_dataset(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{}, {"document": None}], "row 1 of dataset '.*' has no text in column 'document'"),
        ([{}, {}, {"document": " \n"}], "row 2 of dataset '.*' has no text in column 'document'"),
        ([{"summary": ""}], "row 0 of dataset '.*' has no text in column 'summary'"),
        ([{}, {"id": None}], "row 1 of dataset '.*' has no id: dataset.id=null"),
        ([{"id": "a"}, {"id": "b"}, {"id": "a"}], "rows 0 and 2 of dataset '.*' have the same id 'a'"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, rows, message, kind):
    with pytest.raises(UsageError, match=message) as error:
        check_dataset(xsum(tmp_path, rows, kind))
    assert "\n" not in str(error.value)


def test_rows_that_are_not_evaluated_may_be_anything(tmp_path):
    config = xsum(tmp_path, [{}, {"document": None}])
    config.num_prompts = 1
    check_dataset(config)


def test_numbers_are_no_texts(tmp_path):
    with pytest.raises(UsageError, match=r"row 0 of dataset '.*' has no text in column 'document'"):
        check_dataset(xsum(tmp_path, [{"document": 12}], "parquet"))


def test_a_split_without_rows_is_refused(tmp_path):
    empty = dataset("xsum", path=write(tmp_path / "empty.jsonl", []))
    none = pa.table({"document": pa.array([], pa.string()), "summary": pa.array([], pa.string())})
    pq.write_table(none, tmp_path / "empty.parquet")
    for config in (empty, dataset("xsum", path=str(tmp_path / "empty.parquet"))):
        with pytest.raises(UsageError, match=r"split 'test' of dataset '.*' has no rows"):
            check_dataset(config)


def test_prompts_need_a_tokenizer():
    with pytest.raises(UsageError, match="tokenizer"):
        load_examples(dataset(), None, 100)


def test_answers_end_at_their_line(tokenizer):
    tokens = tokenizer(" a text\nand more", add_special_tokens=False).input_ids
    assert answer_text([*tokens, tokenizer.eos_token_id], tokenizer) == "a text"
    assert answer_text([], tokenizer) == ""


def test_stop_tokens_are_those_that_end_what_is_asked_for(tokenizer):
    eos, line, sentence = (
        {tokenizer.decode([token]) for token in stop_tokens(dataset(stop=stop), tokenizer)}
        for stop in ("eos", "line", "sentence")
    )
    assert eos == {tokenizer.eos_token}
    assert eos | {"\n"} <= line < sentence
    assert all(len(f"-{token}-".splitlines()) > 1 for token in line - eos)
    assert {".", "!", "?"} <= sentence
    assert not sentence & {",", "a", " ", ":"}
    assert stop_tokens(dataset(stop="line"), tokenizer) == sorted(stop_tokens(dataset(stop="line"), tokenizer))
