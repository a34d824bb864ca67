"""Learning curves, scores and samples of the embedded models, for the model card.

    python scripts/evaluate_standins.py            # curves from build/training, scores of all 600 held-out prompts

Writes `results/training/`: `curves.csv` and `curves.png` (held-out loss by tokens seen, with the seconds of training),
`scores.csv` (corpus BLEU and ROUGE-2 of autoregressive answers at temperature 0.3, four to each prompt, with 95 %
intervals from a bootstrap over prompts) and `samples.md` (the first answers of each target).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from train_standins import RECIPES

from rsdbench import generate, load_pair
from rsdbench.pair import Pair
from rsdbench.results.metrics import RESAMPLES_ACCURACY, estimate, weights
from rsdbench.runner.compose import row_configs
from rsdbench.tasks.examples import answer_text, load_examples, stop_tokens
from rsdbench.tasks.scores import of_resamples, of_texts

ROOT = Path(__file__).resolve().parents[1]
MODELS = tuple(RECIPES)  # two drafters, three targets
TARGETS = MODELS[2:]
DATASETS = {"debian-de-en": "De-En", "debian-synopsis": "Synopsis"}
TEMPERATURE, NEW_TOKENS, BATCH = 0.3, 48, 60
ANSWERS = 4  # to each prompt


def learning_curves(work: Path) -> pd.DataFrame:
    """Held-out losses of every training's log: model, tokens, de_en, synopsis; the last row has its seconds too."""
    rows = []
    for name in MODELS:
        log = json.loads((work / f"{name}.json").read_text())
        rows += [{"model": name, "tokens": seen, **losses} for seen, losses in log["curve"]]
        rows[-1]["seconds"] = round(log["seconds"])
    return pd.DataFrame(rows)


def draw(curves: pd.DataFrame, out: Path) -> None:
    """One chart a task, one line a model."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
    for axis, (task, title) in zip(axes, (("de_en", "De-En"), ("synopsis", "Synopsis")), strict=True):
        for name, own in curves.groupby("model", sort=False):
            axis.plot(own.tokens / 1e6, own[task], marker=".", label=name)
        axis.set(title=title, xlabel="tokens seen, millions")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("held-out loss, nats a token")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(out, dpi=150)


def answers(pair: Pair, dataset: str, target: str, prompts: int) -> pd.DataFrame:
    """ANSWERS autoregressive answers of a target to each of the first prompts of a dataset, a row each."""
    overrides = ["experiment=standin_full", "drafter=opt-25k", f"target={target}", f"dataset={dataset}"]
    (config,) = row_configs([*overrides, f"dataset.num_prompts={prompts}"])
    examples = load_examples(config.dataset, pair.tokenizer, config.dataset.max_prompt_tokens)
    stop = stop_tokens(config.dataset, pair.tokenizer)
    rows = []
    for start in range(0, len(examples) * ANSWERS, BATCH):
        batch = [examples[i % len(examples)] for i in range(start, min(start + BATCH, len(examples) * ANSWERS))]
        ids = [e.prompt for e in batch]
        out = generate(pair, ids, "ar", "0", NEW_TOKENS, TEMPERATURE, seed=start, eos_token_id=stop)
        for example, tokens in zip(batch, out.tokens, strict=True):
            prompt = pair.tokenizer.decode(example.prompt, skip_special_tokens=True)
            rows.append((example.id, prompt, example.reference, answer_text(tokens, pair.tokenizer)))
    frame = pd.DataFrame(rows, columns=["id", "prompt", "reference", "answer"])
    return frame.assign(model=target, dataset=dataset, metric=config.dataset.metric)


def scores(found: pd.DataFrame) -> pd.DataFrame:
    """A row for each model and dataset: score in percent and its interval."""
    rows = []
    for (dataset, metric, model), own in found.groupby(["dataset", "metric", "model"], sort=False):
        prompts = own.id.nunique()
        counts = np.tile(
            weights("", tuple(range(prompts)))[: 1 + RESAMPLES_ACCURACY], ANSWERS
        )  # a prompt comes with all its answers
        value = estimate(of_resamples(metric, of_texts(metric, own.answer, own.reference), counts))
        rows.append((model, dataset, metric, prompts, *(round(x, 2) for x in value)))
    return pd.DataFrame(rows, columns=["model", "dataset", "metric", "prompts", "score", "low", "high"])


def samples(found: pd.DataFrame, number: int) -> str:
    """The first prompts of each dataset with all targets' answers, as Markdown."""
    lines = [
        "# Samples",
        "",
        f"The first {number} held-out prompts of each task, not chosen; temperature {TEMPERATURE}, autoregressive.",
    ]
    for dataset, title in DATASETS.items():
        own = found[found.dataset == dataset]
        lines += ["", f"## {title}"]
        for prompt in own.prompt.unique()[:number]:
            same = own[own.prompt == prompt].drop_duplicates("model")
            quoted = prompt.strip().replace("\n", "\n> ")
            lines += ["", f"> {quoted}", "", "| | |", "|---|---|", f"| reference | {cell(same.reference.iloc[0])} |"]
            lines += [f"| {row.model} | {cell(row.answer)} |" for row in same.itertuples()]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Text inside a table."""
    return text.replace("|", "\\|")


def main() -> None:
    """Write all four files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "training", help="logs of train_standins.py")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "training")
    parser.add_argument("--prompts", type=int, default=600, help="of each task")
    parser.add_argument("--samples", type=int, default=12, help="of each task")
    args = parser.parse_args()
    missing = [name for name in MODELS if not (args.work / f"{name}.json").exists()]
    if missing:
        names = ", ".join(missing)
        print(f"evaluate_standins: no log of {names} in '{args.work}': run train_standins.py first", file=sys.stderr)
        sys.exit(2)
    args.out.mkdir(parents=True, exist_ok=True)
    curves = learning_curves(args.work)
    curves.to_csv(args.out / "curves.csv", index=False)
    draw(curves, args.out / "curves.png")
    found = []
    for target in TARGETS:
        pair = load_pair(target, "opt-25k", device="cpu")
        found += [answers(pair, dataset, target, args.prompts) for dataset in DATASETS]
        print(scores(pd.concat(found[-len(DATASETS) :])).to_string(header=False), flush=True)
    everything = pd.concat(found)
    scores(everything).to_csv(args.out / "scores.csv", index=False)
    (args.out / "samples.md").write_text(samples(everything, args.samples))


if __name__ == "__main__":
    main()
