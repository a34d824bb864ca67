"""A dataset's examples as prompts, where an answer ends, and what of it is scored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig

from rsdbench.errors import UsageError
from rsdbench.experiment.hub_datasets import hub_split
from rsdbench.experiment.prompts import CUTS, encode_prompt
from rsdbench.experiment.scores import SCORES
from rsdbench.experiment.splits import Split, files_digest, local_data, local_files, local_split
from rsdbench.seeds import seed_from

LINE_END = r"[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]"  # as of `str.splitlines`
# what the text of a token that ends an answer matches
STOPS = {"eos": None, "line": LINE_END, "sentence": rf"""{LINE_END}|[.!?]["'”’)\]]*\s*$"""}
# keys that a dataset's content leaves out at these values: without them, cells are what they were before there were any
NEUTRAL = {"instruction": None, "shots": 0, "shuffle": None, "cut": "proportional"}


@dataclass(frozen=True)
class Example:
    """One prompt: its token ids, the reference to score against, and the characters cut from its source."""

    id: str
    prompt: list[int]
    reference: str
    cut: int


class Row(NamedTuple):
    """One example's text; id: its own, or its number in the split."""

    id: str
    source: str
    reference: str


def check_dataset(config: DictConfig, here: bool = True) -> None:
    """Find a dataset and read what is on disk of it, so that what is wrong is said before a model is loaded.

    here: whether one of the hub must be on disk or reachable.

    Raises:
        UsageError: its settings are not usable, it is neither on disk nor reachable, or its rows are not usable.
    """
    check_dataset_settings(config)
    if here or local_data(config.path):
        split = open_split(config, fetch=False)
        if split is not None:
            chosen_rows(config, split)


def check_dataset_settings(config: DictConfig) -> None:
    """Everything about a dataset's settings that can be wrong without looking at its data.

    Raises:
        UsageError: the first thing that is wrong.
    """
    for key, choices in (("stop", STOPS), ("cut", CUTS), ("metric", SCORES)):
        if config[key] not in choices:
            raise UsageError(f"dataset.{key} must be one of {', '.join(choices)}, not '{config[key]}'")
    for key in ("path", "source", "reference"):
        if not isinstance(config[key], str):
            raise UsageError(f"dataset.{key} must be a text, not '{config[key]}'")
    for key in ("config", "split", "revision", "id", "instruction"):
        if not isinstance(config[key], str | None):
            raise UsageError(f"dataset.{key} must be a text or null, not '{config[key]}'")
    if "{source}" not in str(config.template):
        raise UsageError("dataset.template must contain {source}, where the example's text goes")
    for key, least in (("num_prompts", 1), ("shots", 0), ("max_prompt_tokens", 1)):
        if not is_number(config[key], least) and not (key == "max_prompt_tokens" and config[key] is None):
            raise UsageError(f"dataset.{key} must be a number of at least {least}, not '{config[key]}'")
    if config.shuffle is not None and not is_number(config.shuffle, 0):
        raise UsageError(f"dataset.shuffle must be null or a seed, a number of at least 0, not '{config.shuffle}'")
    check_shots(config)


def is_number(value: Any, least: int) -> bool:
    """Whether a setting is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_shots(config: DictConfig) -> None:
    """See that there are as many examples as are to be shown.

    Raises:
        UsageError: there are fewer, or one is not a source and a reference.
    """
    shots = config.examples if config.examples is not None else []
    if not isinstance(shots, ListConfig | list):
        raise UsageError("dataset.examples must be a list such as [{source: ..., reference: ...}]")
    for i, shot in enumerate(shots):
        texts = [shot.get(key) for key in ("source", "reference")] if hasattr(shot, "get") else []
        if not texts or not all(is_text(text) for text in texts):
            raise UsageError(f"dataset.examples[{i}] must have a source and a reference, both of them texts")
    if config.shots > len(shots):
        raise UsageError(f"dataset.shots is {config.shots}, but dataset.examples has only {len(shots)}")


def is_text(value: Any) -> bool:
    """Whether a value is a text with something in it."""
    return isinstance(value, str) and bool(value.strip())


def open_split(config: DictConfig, fetch: bool) -> Split | None:
    """A dataset's split; None if it is only on the hub and is not to be fetched.

    Raises:
        UsageError: it is not there, or cannot be read.
    """
    local = local_data(config.path)
    if local is None:
        return hub_split(config.path, config.config, config.split, config.revision, fetch)
    return local_split(local_files(local, config.config, config.split))


def dataset_content(dataset: dict[str, Any]) -> dict[str, Any]:
    """What cells depend on of a dataset's settings. A local dataset counts by its contents, not by where it lies."""
    content = {k: v for k, v in dataset.items() if k != "examples" and (k not in NEUTRAL or v != NEUTRAL[k])}
    if dataset["shots"]:
        content["examples"] = dataset["examples"][: dataset["shots"]]
    if local := local_data(dataset["path"]):
        content["path"] = files_digest(local_files(local, dataset["config"], dataset["split"]))
    return content


def chosen_rows(config: DictConfig, split: Split) -> list[Row]:
    """The rows that are evaluated: the first `num_prompts`, in the split's order or in that of a shuffle by seed.

    A shuffle's order depends on its seed and on how many rows the split has: the first rows are the same whether many
    are asked for or few.

    Raises:
        UsageError: there are too few rows; a column is not there; a text or id is missing; two ids are equal; an
            example to be shown is also evaluated.
    """
    count = config.num_prompts
    if not split.count:
        raise UsageError(f"split '{config.split}' of dataset '{config.path}' has no rows: choose another")
    columns = [name for name in (config.source, config.reference, config.id) if name]
    for name in columns:
        if name not in split.columns:
            raise UsageError(f"dataset '{config.path}' has no column '{name}': it has {', '.join(split.columns)}")
    if split.count < count:
        raise UsageError(f"dataset.num_prompts is {count}, but '{config.path}' has only {split.count} rows")
    order = range(split.count)
    if config.shuffle is not None:
        order = sorted(order, key=lambda number: seed_from(f"{config.shuffle} {number}"))
    numbers = list(order[:count])
    found = split.take(numbers, columns)
    rows = [read_row(config, number, row) for number, row in zip(numbers, found, strict=True)]
    check_distinct_rows(config, numbers, rows)
    return rows


def read_row(config: DictConfig, number: int, row: dict[str, Any]) -> Row:
    """The texts of a row and its id.

    Raises:
        UsageError: one of them is missing or empty.
    """
    texts = [value_of(row, name) for name in (config.source, config.reference)]
    for name, text in zip((config.source, config.reference), texts, strict=True):
        if not is_text(text):
            raise UsageError(
                f"row {number} of dataset '{config.path}' has no text in column '{name}': mend the data, or choose "
                "other rows with dataset.num_prompts or dataset.shuffle"
            )
    own = value_of(row, config.id) if config.id else f"{config.name}-{number:05d}"
    if own is None or own == "":
        raise UsageError(f"row {number} of dataset '{config.path}' has no id: dataset.id=null takes the row's number")
    return Row(str(own), *texts)


def value_of(row: dict[str, Any], name: str) -> Any:
    """A column's value; "a.b" looks into nested columns. None if there is none."""
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def check_distinct_rows(config: DictConfig, numbers: list[int], rows: list[Row]) -> None:
    """See that results can be told apart by their prompts' ids, and that no example shown is evaluated as well.

    Raises:
        UsageError: two rows have one id, or an example is evaluated.
    """
    seen: dict[str, int] = {}
    shown = {shot.source for shot in (config.examples or [])[: config.shots]}
    for number, row in zip(numbers, rows, strict=True):
        if row.id in seen:
            raise UsageError(
                f"rows {seen[row.id]} and {number} of dataset '{config.path}' have the same id '{row.id}': "
                "dataset.id=null takes the rows' numbers"
            )
        if row.source in shown:
            raise UsageError(
                f"row {number} of dataset '{config.path}' is evaluated and shown as one of dataset.examples"
            )
        seen[row.id] = number


def lead_of(config: DictConfig) -> str:
    """What comes before each prompt: the instruction and the examples, each followed by an empty line."""
    shots = [
        f"{config.template.replace('{source}', shot.source)} {shot.reference}"
        for shot in (config.examples or [])[: config.shots]
    ]
    return "".join(f"{text}\n\n" for text in ([config.instruction] if config.instruction else []) + shots)


def load_examples(config: DictConfig, tokenizer: Any, max_prompt_tokens: int) -> list[Example]:
    """The examples that are evaluated, each prompt cut at its source's end to `max_prompt_tokens`.

    Raises:
        UsageError: the dataset cannot be read, its rows are not usable, or there is no room for a source.
    """
    if tokenizer is None:
        raise UsageError("neither target nor drafter came with a tokenizer: add one to a model's folder")
    split = open_split(config, fetch=True)
    assert split is not None, "what is fetched is there"
    lead, examples = lead_of(config), []
    for row in chosen_rows(config, split):
        prompt, cut = encode_prompt(tokenizer, config.template, row.source, max_prompt_tokens, lead, config.cut)
        examples.append(Example(row.id, prompt, row.reference, cut))
    return examples


def stop_tokens(config: DictConfig, tokenizer: Any) -> list[int]:
    """The tokens that end an answer.

    End-of-sequence does in any case; with "line" so does any token with a line's end in it; with "sentence" so does
    one that ends in a full stop, an exclamation mark or a question mark as well.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    pattern = STOPS[config.stop]
    if pattern is None:
        return end
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return sorted({*end, *(token for token, text in enumerate(texts) if re.search(pattern, text))})


def answer_text(tokens: list[int], tokenizer: Any) -> str:
    """New tokens as text: no special tokens, nothing past the first line's end."""
    text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return text.splitlines()[0].strip() if text else ""
