"""A dataset's examples as prompts, where an answer ends, and what of it is scored."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf

from rsdbench.errors import UsageError
from rsdbench.seeds import seed_from
from rsdbench.tasks.hub_datasets import hub_split
from rsdbench.tasks.prompts import encode_prompt
from rsdbench.tasks.scores import SCORES
from rsdbench.tasks.settings import STOPS, check_dataset_settings, is_text
from rsdbench.tasks.splits import files_digest, local_data, local_files, local_split
from rsdbench.tasks.tables import Split

# keys that a dataset's content leaves out at these values: without them, cells are what they were before there were any
NEUTRAL = {
    "chat_template": False, "answer": "line", "extract": None, "where": None, "instruction": None, "shots": 0,
    "shuffle": None, "cut": "proportional",
}  # fmt: skip


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
    for name in (*columns, *(config.where or {})):
        if column_of(name, split.columns) is None:
            raise UsageError(f"dataset '{config.path}' has no column '{name}': it has {', '.join(split.columns)}")
    order = matching_rows(config, split)
    if len(order) < count:
        which = f" with {OmegaConf.to_container(config.where)}" if config.where else ""
        raise UsageError(f"dataset.num_prompts is {count}, but '{config.path}' has only {len(order)} rows{which}")
    if config.shuffle is not None:
        order = sorted(order, key=lambda number: seed_from(f"{config.shuffle} {number}"))
    numbers = list(order[:count])
    found = split.take(numbers, list(dict.fromkeys(column_of(name, split.columns) for name in columns)))
    rows = [read_row(config, number, row) for number, row in zip(numbers, found, strict=True)]
    check_distinct_rows(config, numbers, rows)
    return rows


def column_of(name: str, columns: Sequence[str]) -> str | None:
    """The column that a name reads: itself, or that of a list whose elements it counts, as "turns.0"; None if none."""
    above, _, place = name.rpartition(".")
    if name in columns:
        return name
    return above if place.isdecimal() and above in columns else None


def matching_rows(config: DictConfig, split: Split) -> Sequence[int]:
    """The numbers of the rows that have the values that are asked for."""
    if not config.where:
        return range(split.count)
    wanted = {key: value if isinstance(value, ListConfig) else [value] for key, value in config.where.items()}
    rows = split.take(list(range(split.count)), [column_of(name, split.columns) for name in wanted])
    return [i for i, row in enumerate(rows) if all(value_of(row, key) in own for key, own in wanted.items())]


def read_row(config: DictConfig, number: int, row: dict[str, Any]) -> Row:
    """The texts of a row and its id.

    Raises:
        UsageError: one of them is missing or empty.
    """
    texts = [value_of(row, name) if name else "" for name in (config.source, config.reference)]
    for name, text in zip((config.source, config.reference), texts, strict=True):
        if name and not is_text(text):
            raise UsageError(
                f"row {number} of dataset '{config.path}' has no text in column '{name}': mend the data, or choose "
                "other rows with dataset.num_prompts or dataset.shuffle"
            )
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UsageError(
                f"row {number} of dataset '{config.path}' has half a character (a lone surrogate) in column '{name}': "
                "mend the data"
            )
    own = value_of(row, config.id) if config.id else f"{config.name}-{number:05d}"
    if own is None or own == "":
        raise UsageError(f"row {number} of dataset '{config.path}' has no id: dataset.id=null takes the row's number")
    return Row(str(own), *texts)


def value_of(row: dict[str, Any], name: str) -> Any:
    """A column's value; "a.b" is a column of that name, or looks into nested ones, "a.0" into lists. None if none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, list) and part.isdecimal():
            value = value[int(part)] if int(part) < len(value) else None
        else:
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
    lead, encode, examples = lead_of(config), encoder(config, tokenizer), []
    for row in chosen_rows(config, split):
        prompt, cut = encode_prompt(encode, config.template, row.source, max_prompt_tokens, lead, config.cut)
        examples.append(Example(row.id, prompt, row.reference, cut))
    return examples


def encoder(config: DictConfig, tokenizer: Any) -> Callable[[str], list[int]]:
    """From a prompt's text to its token ids, by the tokenizer's chat template if that is asked for.

    Raises:
        UsageError: it has none.
    """
    if not config.chat_template:
        return lambda text: tokenizer(text).input_ids
    if not tokenizer.chat_template:
        raise UsageError("dataset.chat_template=true, but the tokenizer has no chat template: take a chat model's")

    def encode(text: str) -> list[int]:
        turns = [{"role": "user", "content": text}]
        return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))

    return encode


def stop_tokens(config: DictConfig, tokenizer: Any, model: Any = None) -> list[int]:
    """The tokens that end an answer. model: the target, whose generation_config may name more than the tokenizer.

    End-of-sequence does in any case; with "line" so does any token with a line's end in it; with "sentence" so does
    one that ends in a full stop, an exclamation mark or a question mark as well.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = [tokenizer.eos_token_id, *(named if isinstance(named, list | tuple) else [named])]
    end = sorted({token for token in own if token is not None})
    pattern = STOPS[config.stop]
    if pattern is None:
        return end
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return sorted({*end, *(token for token, text in enumerate(texts) if re.search(pattern, text))})


def answer_text(tokens: list[int], tokenizer: Any, answer: str = "line") -> str:
    """New tokens as text without special tokens: its first line, or all of it."""
    text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return text.splitlines()[0].strip() if text and answer == "line" else text


def statistics(config: DictConfig, text: str, reference: str) -> list[float]:
    """What is kept of an answer for its dataset's score."""
    if config.extract:
        text, reference = (last_match(config.extract, own) for own in (text, reference))
    return list(SCORES[config.metric].statistics(text, reference))


def last_match(pattern: str, text: str) -> str:
    """What a regular expression finds last in a text: its group, if it has one; "" if it finds nothing."""
    found = [match[match.lastindex or 0] for match in re.finditer(pattern, text)]
    return found[-1] if found else ""
