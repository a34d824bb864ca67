"""The ready datasets, on files with the columns that theirs have, and the ways to score an answer."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sacrebleu
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from rsdbench.errors import UsageError
from rsdbench.models.checkpoints import MODELS
from rsdbench.runner.compose import CONFIGS, compose
from rsdbench.tasks.examples import answer_text, check_dataset, load_examples, statistics
from rsdbench.tasks.scores import SCORES, of_resamples, of_texts

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
SPEC_BENCH = {
    "chat": "writing", "translation": "translation", "summarization": "summarization", "qa": "qa",
    "math": "math_reasoning", "rag": "rag",
}  # fmt: skip
QUESTIONS = [
    {"question_id": 10 * i + j, "category": category, "turns": [f"{category} {j}", "and then?"]}
    for i, category in enumerate((*SPEC_BENCH.values(), "humanities"))
    for j in range(3)
]
# rows as the datasets have them, and the prompts and references that follow
ROWS = {
    "gsm8k": (
        [{"question": f"{i} and {i}?", "answer": f"They are\n#### {2 * i}"} for i in range(3)],
        "Question: 1 and 1?\nAnswer:", "They are\n#### 2",
    ),
    "humaneval": (
        [{"task_id": f"HumanEval/{i}", "prompt": f"def f{i}():\n", "canonical_solution": "  pass", "test": "",
          "entry_point": f"f{i}"} for i in range(3)],
        "def f1():\n", "",
    ),
    "mt-bench": (
        [{"prompt": [f"First {i}.", "Second."], "prompt_id": i, "category": "math", "reference": []} for i in range(3)],
        "<user>First 1.<assistant>", "",
    ),
    "cnn-dailymail": (
        [{"article": f"News {i}.", "highlights": f"Short {i} .", "id": f"{i:040d}"} for i in range(3)],
        "News 1.\nSummary:", "Short 1 .",
    ),
    "alpaca": (
        [{"instruction": f"Do {i}.", "input": "x" * (i == 1), "output": "done", "text": ""} for i in range(4)],
        "<user>Do 2.<assistant>", "",  # an instruction without input
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    made = AutoTokenizer.from_pretrained(MODELS / "opt-25k")
    made.chat_template = CHAT
    return made


def dataset(name, **changes):
    config = compose(["experiment=paper", f"dataset={name}"])[0].dataset
    return OmegaConf.merge(config, {"num_prompts": 3, "shuffle": None, **changes})


def write(file, rows):
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def texts(tokenizer, examples):
    return [tokenizer.decode(e.prompt, skip_special_tokens=True) for e in examples]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", ROWS)
def test_prompts_of_the_ready_datasets(tokenizer, tmp_path, name, kind):
    rows, prompt, reference = ROWS[name]
    config = dataset(name, path=write(tmp_path / f"data.{kind}", rows))
    check_dataset(config)
    examples = load_examples(config, tokenizer, 200)
    assert len(examples) == 3
    assert (texts(tokenizer, examples)[1], examples[1].reference) == (prompt, reference)


@pytest.mark.parametrize("name", SPEC_BENCH)
def test_spec_benchs_six_categories(tokenizer, tmp_path, name):
    config = dataset(f"spec-bench-{name}", path=write(tmp_path / "question.jsonl", QUESTIONS))
    found = texts(tokenizer, load_examples(config, tokenizer, 200))
    assert sorted(found) == [f"<user>{SPEC_BENCH[name]} {j}<assistant>" for j in range(3)]
    more = dataset(f"spec-bench-{name}", path=config.path, num_prompts=6)
    if name == "chat":
        assert len(load_examples(more, tokenizer, 200)) == 6, "of writing and humanities"
    else:
        with pytest.raises(UsageError, match="has only 3 rows with"):
            check_dataset(more)


def test_spec_bench_asks_for_its_file():
    with pytest.raises(UsageError, match=r"dataset .spec-bench-qa. lacks .dataset\.path="):
        check_dataset(dataset("spec-bench-qa"))


def test_every_ready_dataset_names_its_source_and_is_tested_here():
    ready = {f.stem for f in (CONFIGS / "dataset").glob("*.yaml")} - {
        "all",
        "custom",
        "debian-de-en",
        "debian-synopsis",
    }
    assert ready == {"wmt", "xsum", *ROWS, *(f"spec-bench-{name}" for name in SPEC_BENCH)}
    for name in ROWS:
        assert "(" in (CONFIGS / "dataset" / f"{name}.yaml").read_text().splitlines()[0]


def test_a_long_chat_prompt_is_cut_inside_its_template(tokenizer, tmp_path):
    rows = [{"prompt": ["word " * 300], "prompt_id": i, "category": "", "reference": []} for i in range(3)]
    config = dataset("mt-bench", path=write(tmp_path / "a.jsonl", rows))
    example = load_examples(config, tokenizer, 60)[0]
    assert len(example.prompt) <= 60
    assert example.cut > 0
    assert texts(tokenizer, [example])[0].endswith("<assistant>")


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path):
    plain = AutoTokenizer.from_pretrained(MODELS / "opt-25k")
    config = dataset("mt-bench", path=write(tmp_path / "a.jsonl", ROWS["mt-bench"][0]))
    with pytest.raises(UsageError, match="the tokenizer has no chat template"):
        load_examples(config, plain, 60)


@pytest.mark.parametrize(
    ("text", "right"),
    [("So 3 + 4 = 7\n#### 1,234", 1), ("it is 1,234.", 1), ("first 9, then 12", 0), ("nothing", 0), ("1234", 0)],
)
def test_gsm8k_compares_the_last_numbers(text, right):
    assert statistics(dataset("gsm8k"), text, "reason 5\n#### 1,234") == [right]


@pytest.mark.parametrize(("text", "right"), [("The  Answer", 1), ("the answer\n", 1), ("the answers", 0), ("", 0)])
def test_exact_match_knows_no_case_and_no_spaces(text, right):
    assert SCORES["exact_match"].statistics(text, "the answer") == (right,)


def test_chrf_is_sacrebleus_of_each_answer():
    answers, references = ["a small cat", "dogs", ""], ["the small cats", "a dog", "something"]
    each = [sacrebleu.sentence_chrf(a, [r]).score for a, r in zip(answers, references, strict=True)]
    counts = np.array([[1, 1, 1], [2, 0, 1]])
    found = of_resamples("chrf", of_texts("chrf", answers, references), counts)
    assert found == pytest.approx([np.mean(each), (2 * each[0] + each[2]) / 3])


def test_no_score_is_no_number():
    assert math.isnan(of_resamples("none", of_texts("none", ["a", "b"], ["", ""]), np.ones((1, 2)))[0])


@pytest.mark.parametrize(("answer", "text"), [("line", "one"), ("all", "one\ntwo")])
def test_what_of_an_answer_is_scored(tokenizer, answer, text):
    ids = tokenizer(" one\ntwo\n", add_special_tokens=False).input_ids
    assert answer_text(ids, tokenizer, answer) == text
