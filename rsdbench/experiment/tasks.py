"""A dataset's examples as prompts, and the score of what is generated for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rsdbench.engine.checkpoints import require_hub
from rsdbench.errors import UsageError
from rsdbench.experiment.prompts import encode_prompt

DATA = Path(__file__).resolve().parents[1] / "assets" / "data"
STOPS = ("eos", "line")


@dataclass(frozen=True)
class Example:
    """One prompt: its token ids, the reference to score against, and the characters cut from its source."""

    id: str
    prompt: list[int]
    reference: str
    cut: int


def embedded_datasets() -> list[str]:
    """Names of the evaluation sets that ship with the package."""
    return sorted(p.stem for p in DATA.glob("*.parquet"))


def local_file(path: str) -> Path | None:
    """The file of an embedded or local dataset, or None if `path` can only be a hub id.

    Raises:
        UsageError: it is neither a file nor of a hub id's form.
    """
    if (DATA / f"{path}.parquet").is_file():
        return DATA / f"{path}.parquet"
    file = Path(path).expanduser()
    if file.is_file():
        return file
    if path.count("/") != 1 or file.suffix in (".parquet", ".jsonl", ".json") or path.startswith((".", "/", "~")):
        names = ", ".join(embedded_datasets())
        raise UsageError(f"no dataset '{path}': give an embedded one ({names}), a .parquet or .jsonl file, or a hub id")
    return None


def check_dataset(config: DictConfig) -> None:
    """Find a dataset without loading it.

    Raises:
        UsageError: it is neither on disk nor reachable, or its settings are not usable.
    """
    if local_file(config.path) is None:
        require_hub(config.path, config.revision, "dataset")
    if config.stop not in STOPS:
        raise UsageError(f"dataset.stop must be one of {', '.join(STOPS)}, not '{config.stop}'")
    if "{source}" not in config.template:
        raise UsageError("dataset.template must contain {source}, where the example's text goes")
    if not isinstance(config.num_prompts, int) or config.num_prompts < 1:
        raise UsageError(f"dataset.num_prompts must be a number of at least 1, not {config.num_prompts}")


def read_rows(config: DictConfig) -> list[dict[str, Any]]:
    """The first `num_prompts` rows of a dataset.

    Raises:
        UsageError: it cannot be read, or has fewer rows.
    """
    file = local_file(config.path)
    try:
        if file is None:
            from datasets import load_dataset

            split = load_dataset(config.path, config.config, split=config.split, revision=config.revision)
            rows = split.select(range(min(config.num_prompts, len(split)))).to_list()
        elif file.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(file).slice(0, config.num_prompts).to_pylist()
        else:
            import pandas as pd

            rows = pd.read_json(file, lines=True, nrows=config.num_prompts).to_dict("records")
    except (OSError, ValueError) as error:
        raise UsageError(f"dataset '{config.path}' cannot be read: {str(error).splitlines()[0]}") from error
    if len(rows) < config.num_prompts:
        raise UsageError(f"dataset.num_prompts is {config.num_prompts}, but '{config.path}' has only {len(rows)} rows")
    return rows


def column(row: dict[str, Any], name: str, path: str) -> Any:
    """A column's value; "a.b" looks into nested columns.

    Raises:
        UsageError: there is no such column.
    """
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UsageError(f"dataset '{path}' has no column '{name}': it has {', '.join(row)}")
        value = value[part]
    return value


def load_examples(config: DictConfig, tokenizer: Any, max_prompt_tokens: int) -> list[Example]:
    """The first `num_prompts` examples, each prompt cut at its source's end to `max_prompt_tokens`.

    Raises:
        UsageError: the dataset cannot be read, lacks a column or rows, or the template alone is too long.
    """
    if tokenizer is None:
        raise UsageError("neither target nor drafter came with a tokenizer: add one to a model's folder")
    examples = []
    for i, row in enumerate(read_rows(config)):
        prompt, cut = encode_prompt(
            tokenizer, config.template, str(column(row, config.source, config.path)), max_prompt_tokens
        )
        name = str(column(row, config.id, config.path)) if config.id else f"{config.name}-{i:05d}"
        examples.append(Example(name, prompt, str(column(row, config.reference, config.path)), cut))
    return examples


def stop_token(config: DictConfig, tokenizer: Any) -> int | None:
    """The token that ends an answer: end-of-sequence, or the line's end."""
    if config.stop == "line":
        return tokenizer("\n", add_special_tokens=False).input_ids[-1]
    return tokenizer.eos_token_id


def answer_text(tokens: list[int], tokenizer: Any) -> str:
    """New tokens as text: no special tokens, nothing past the first line's end."""
    text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return text.splitlines()[0].strip() if text else ""
