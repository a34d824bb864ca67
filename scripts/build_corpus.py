"""Build the embedded corpus from the package descriptions in Debian's indices.

    apt-get update -o Acquire::Languages=en,de
    python scripts/build_corpus.py

Two tasks come out of the same text: German sentence or paragraph to English ("de_en"), and long description to
its one-line synopsis ("synopsis"). German and English are matched by Description-md5. Train, validation and test
are split by the package's *source*, so that `libfoo1` and `libfoo-dev` never lie on both sides, and an evaluation
example is dropped when more than half of its word 5-grams also occur in the training text.

Writes `build/corpus/{train,validation}.parquet` and the evaluation sets `rsdbench/assets/data/*.parquet`.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rsdbench.files import whole_file

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = "Acquire::Languages=en,de"
GET_INDICES = f"run `apt-get update -o {LANGUAGES}` first"
PERCENT_TEST, PERCENT_VALIDATION = 4, 1
EVALUATION_EXAMPLES = 600  # a task, at most
EXAMPLES_PER_ORIGIN = 3
SHINGLE = 5  # words
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-ZÄÖÜ0-9\"(])")


def refuse(reason: str) -> NoReturn:
    """End with one line and exit code 2."""
    print(f"build_corpus: {reason}", file=sys.stderr)
    sys.exit(2)


def index_files(kind: str, language: str | None = None) -> list[str]:
    """Paths of apt's downloaded indices: kind "Packages", or "Translations" of one language."""
    command = ["apt-get", "indextargets", "-o", LANGUAGES, "--format", "$(CREATED_BY)|$(LANGUAGE)|$(FILENAME)"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        refuse("there is no apt-get here: run this on Debian")
    rows = (line.split("|") for line in listing.splitlines())
    return [path for created_by, lang, path in rows if created_by == kind and language in (None, lang)]


def index_text(path: str) -> str:
    """An index, whichever way apt has compressed it."""
    command = ["/usr/lib/apt/apt-helper", "cat-file", path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def stanzas(paths: Iterable[str]) -> Iterator[dict[str, str]]:
    """The RFC-822 paragraphs of index files as dictionaries; continuation lines keep their space."""
    for path in paths:
        for block in index_text(path).split("\n\n"):
            fields: dict[str, str] = {}
            key = ""
            for line in block.splitlines():
                if line[:1] in " \t" and key:
                    fields[key] += "\n" + line
                elif ":" in line:
                    key, _, value = line.partition(":")
                    fields[key] = value.strip()
            if fields:
                yield fields


def read_sources(paths: Iterable[str]) -> dict[str, str]:
    """Binary package name -> source package name."""
    return {s["Package"]: s.get("Source", s["Package"]).split(" ")[0] for s in stanzas(paths)}


def read_descriptions(paths: Iterable[str], language: str) -> dict[str, tuple[str, str, list[str]]]:
    """Description-md5 -> (package, synopsis, paragraphs), whitespace folded."""
    found = {}
    for stanza in stanzas(paths):
        synopsis, _, body = stanza.get(f"Description-{language}", "").partition("\n")
        paragraphs = [" ".join(p.split()) for p in re.split(r"\n \.(?=\n|$)", "\n" + body)]
        if synopsis and stanza.get("Description-md5"):
            found[stanza["Description-md5"]] = (stanza["Package"], synopsis, [p for p in paragraphs if p])
    return found


def aligned_pairs(german: list[str], english: list[str]) -> Iterator[tuple[str, str]]:
    """Paragraphs one to one where their numbers agree, and inside them sentences where theirs do."""
    if len(german) != len(english):
        return
    for de, en in zip(german, english, strict=True):
        de_sentences, en_sentences = SENTENCE_END.split(de), SENTENCE_END.split(en)
        if len(de_sentences) == len(en_sentences):
            yield from zip(de_sentences, en_sentences, strict=True)
        else:
            yield de, en


def examples(sources: dict[str, str], english: dict, german: dict) -> pd.DataFrame:
    """All examples of both tasks: task, package, origin (source package), source, reference."""
    rows = []
    for md5, (package, synopsis, paragraphs) in english.items():
        origin = sources.get(package, package)
        if paragraphs:
            rows.append(("synopsis", package, origin, " ".join(paragraphs), synopsis))
        if md5 in german:
            _, de_synopsis, de_paragraphs = german[md5]
            for de, en in aligned_pairs([de_synopsis, *de_paragraphs], [synopsis, *paragraphs]):
                if de != en:
                    rows.append(("de_en", package, origin, de, en))
    frame = pd.DataFrame(rows, columns=["task", "package", "origin", "source", "reference"])
    short = (frame.reference.str.len() >= 12) & (frame.source.str.len() >= 20)
    fits = (frame.task == "synopsis") | ((frame.source.str.len() <= 320) & (frame.reference.str.len() <= 320))
    return frame[short & fits].drop_duplicates(["task", "source", "reference"]).reset_index(drop=True)


def split_of(origin: str) -> str:
    """train, validation or test, fixed by the source package's name."""
    percent = int(hashlib.sha256(origin.encode()).hexdigest(), 16) % 100
    if percent < PERCENT_TEST:
        return "test"
    return "validation" if percent < PERCENT_TEST + PERCENT_VALIDATION else "train"


def shingles(text: str) -> set[tuple[str, ...]]:
    """Runs of SHINGLE lower-case words; a shorter text is one run."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def without_near_duplicates(held_out: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """Drop held-out examples more than half of whose shingles (of source or of reference) occur in training."""
    seen: set[int] = set()
    for column in ("source", "reference"):
        for text in train[column].unique():
            seen.update(map(hash, shingles(text)))

    def overlap(text: str) -> float:
        own = shingles(text)
        return sum(hash(s) in seen for s in own) / len(own)

    keep = held_out.source.map(overlap).le(0.5) & held_out.reference.map(overlap).le(0.5)
    return held_out[keep]


def evaluation_set(test: pd.DataFrame, task: str) -> pd.DataFrame:
    """A fixed sample in the order of a hash: few examples a source package, no source text twice, with ids."""
    own = test[test.task == task].copy()
    own["order"] = [hashlib.sha256((p + s).encode()).hexdigest() for p, s in zip(own.package, own.source, strict=True)]
    own = own.sort_values("order").drop_duplicates("source")
    own = own.groupby("origin", sort=False).head(EXAMPLES_PER_ORIGIN).head(EVALUATION_EXAMPLES)
    own["id"] = [f"{task}-{i:04d}" for i in range(len(own))]
    return own[["id", "package", "origin", "source", "reference"]]


def write(frame: pd.DataFrame, path: Path) -> None:
    """A parquet file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as stream:
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), stream)


def main(arguments: list[str] | None = None) -> None:
    """Read the indices and write corpus and evaluation sets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "corpus", help="training text goes here")
    parser.add_argument("--data", type=Path, default=ROOT / "rsdbench" / "assets" / "data", help="evaluation sets")
    args = parser.parse_args(arguments)

    files = {}
    for kind, language in (("Translations", "en"), ("Translations", "de"), ("Packages", None)):
        paths = [path for path in index_files(kind, language) if Path(path).exists()]
        if not paths:
            refuse(f"no Debian index {' '.join(filter(None, (kind, language)))} here: {GET_INDICES}")
        files[language or kind] = paths

    frame = examples(
        read_sources(files["Packages"]), read_descriptions(files["en"], "en"), read_descriptions(files["de"], "de")
    )
    frame["split"] = frame.origin.map(split_of)
    train = frame[frame.split == "train"]
    write(train, args.out / "train.parquet")
    print(f"train: {train.task.value_counts().to_dict()}")
    for split in ("validation", "test"):
        held_out = frame[frame.split == split]
        kept = without_near_duplicates(held_out, train)
        print(
            f"{split}: {held_out.task.value_counts().to_dict()}, near-duplicates dropped: {len(held_out) - len(kept)}"
        )
        if split == "validation":
            write(kept, args.out / "validation.parquet")
        else:
            for task in ("de_en", "synopsis"):
                chosen = evaluation_set(kept, task)
                write(chosen, args.data / f"debian_{task}.parquet")
                print(f"evaluation {task}: {len(chosen)} of {int((kept.task == task).sum())}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        refuse(f"{error.strerror or error}: free some space or give other folders with --out and --data")
