"""Whether a dataset's settings are usable, and all that it needs is said."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, ListConfig

from rsdbench.errors import UsageError
from rsdbench.tasks.prompts import CUTS
from rsdbench.tasks.scores import NO_SCORE, SCORES
from rsdbench.tasks.splits import local_data, local_files, local_split

LINE_END = r"[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]"  # as of `str.splitlines`
# what the text of a token that ends an answer matches
STOPS = {"eos": None, "line": LINE_END, "sentence": rf"""{LINE_END}|[.!?]["'”’)\]]*\s*$"""}
ANSWERS = ("line", "all")  # of what is generated, what is scored


def check_dataset_settings(config: DictConfig) -> None:
    """Everything about a dataset's settings that can be wrong without looking at its data.

    Raises:
        UsageError: the first thing that is wrong.
    """
    check_asked(config)
    for key, choices in (("stop", STOPS), ("cut", CUTS), ("metric", SCORES), ("answer", ANSWERS)):
        if config[key] not in choices:
            raise UsageError(f"dataset.{key} must be one of {', '.join(choices)}, not '{config[key]}'")
    for key in ("path", "source", "label", "name"):
        if not isinstance(config[key], str):
            raise UsageError(f"dataset.{key} must be a text, not '{config[key]}'")
    for key in ("config", "split", "revision", "id", "instruction", "reference"):
        if not isinstance(config[key], str | None):
            raise UsageError(f"dataset.{key} must be a text or null, not '{config[key]}'")
    if "{source}" not in str(config.template):
        raise UsageError("dataset.template must contain {source}, where the example's text goes")
    for key, least in (("num_prompts", 1), ("shots", 0), ("max_prompt_tokens", 1)):
        if not is_number(config[key], least) and not (key == "max_prompt_tokens" and config[key] is None):
            raise UsageError(f"dataset.{key} must be a number of at least {least}, not '{config[key]}'")
    if config.chat_template not in (True, False):
        raise UsageError(f"dataset.chat_template must be true or false, not '{config.chat_template}'")
    if config.extract is not None and not is_pattern(config.extract):
        raise UsageError(f"dataset.extract must be null or a regular expression, not '{config.extract}'")
    if config.where is not None and not isinstance(config.where, DictConfig):
        raise UsageError(f"dataset.where must be null or columns with values, {{category: math}}, not '{config.where}'")
    if config.shuffle is not None and not is_number(config.shuffle, 0):
        raise UsageError(f"dataset.shuffle must be null or a seed, a number of at least 0, not '{config.shuffle}'")
    check_shots(config)


def check_asked(config: DictConfig) -> None:
    """What a dataset cannot do without, said all at once, with the columns that there are.

    Raises:
        UsageError: something is missing.
    """
    asked = {
        "path": "FILE_OR_FOLDER_OR_HUB_ID", "source": "COLUMN", "template": "'Question: {source}\\nAnswer:'",
        "metric": "|".join(SCORES),
    }  # fmt: skip
    if config.metric != NO_SCORE:
        asked["reference"] = "COLUMN"
    missing = [f'"dataset.{key}={what}"' for key, what in asked.items() if config[key] is None]
    if not missing:
        return
    have = ""
    if isinstance(config.path, str) and (local := local_data(config.path)):
        have = f" ('{config.path}' has the columns "
        have += f"{', '.join(local_split(local_files(local, config.config, config.split)).columns)})"
    alone = "; dataset.metric=none needs no reference" if "reference" in asked and config.reference is None else ""
    raise UsageError(f"dataset '{config.name}' lacks {', '.join(missing)}{have}{alone} (configs/README.md, Data)")


def is_number(value: Any, least: int) -> bool:
    """Whether a setting is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_pattern(text: Any) -> bool:
    """Whether a setting is a regular expression."""
    try:
        return isinstance(text, str) and bool(re.compile(text))
    except re.error:
        return False


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
