"""Run the missing cells of a row job: quality in batches, speed at batch 1 in turns with AR."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from rsdbench.api import generate
from rsdbench.decoding.generation import Generation
from rsdbench.drafters import is_drafter
from rsdbench.errors import UsageError
from rsdbench.methods import BASELINE, get_shape
from rsdbench.models.checkpoints import hub_commit
from rsdbench.models.prefixes import Prefixes
from rsdbench.pair import parameters
from rsdbench.results import records
from rsdbench.results.metrics import TOKEN_RATE, Sample
from rsdbench.results.results import with_steady_times
from rsdbench.runner import progress, store
from rsdbench.runner.cells import Cell, RowJob
from rsdbench.runner.leases import Lease
from rsdbench.runner.pairs import found_pair, free_memory, pair_of
from rsdbench.runner.provenance import provenance
from rsdbench.runner.timing import Reference, Taken, Turn, take
from rsdbench.tasks.examples import Example, answer_text, load_examples, statistics, stop_tokens
from rsdbench.tasks.prompts import TREE_POSITIONS

WARM_UP_PROMPT, WARM_UP_TOKENS = 8, 2
KEEP_EVERY = 30.0  # seconds between two saves of an unfinished cell's prompts: what a kill without warning can cost
PASSES = ("quality", "speed", "profile")  # over a cell's prompts: methods of `RowRunner`, and records' phases
Rows = dict[tuple[str, str, int], dict[str, Any]]  # a cell's records so far, as `place` names them
PROMPTS_AT_ONCE = 16  # that are timed before it is asked whether they are enough
POLL_EVERY = 2.0  # seconds between two looks at cells that other processes run


class RowRunner:
    """The loaded models and prompts of a row job."""

    def __init__(self, row: RowJob) -> None:
        config = row.config
        self.row, self.config = row, config
        found, behind = found_pair(config), config.decode.max_new_tokens + TREE_POSITIONS
        room = found.positions - behind
        self.examples = load_examples(
            config.dataset, found.tokenizer, min(room, config.dataset.max_prompt_tokens or room)
        )
        longest = max(len(example.prompt) for example in self.examples) + behind
        self.pair = pair_of(config, found, min(config.quality.batch_size, len(self.examples)), longest)
        self.pair.engine.prefixes = Prefixes(int(config.prefix_memory * 2**30))
        self.stop = stop_tokens(config.dataset, self.pair.tokenizer, self.pair.target)
        self.reference = Reference()
        # of what decoded the last record: another backend where a method could not be compiled
        self.backend = {"backend": self.pair.forward}
        dtype = str(self.pair.target.dtype).removeprefix("torch.")
        self.drafter_params, self.target_params = parameters(self.pair.drafter), parameters(self.pair.target)
        roles = [role for role in ("drafter", "target") if not is_drafter(config[role].path)]
        commits = {role: hub_commit(config[role].path, config[role].revision) for role in roles}
        self.provenance = {
            **provenance(self.pair.device, dtype), "forward": self.pair.forward,
            "self_check": "passed" if self.pair.checked else "skipped",
            **{f"{role}_commit": commit for role, commit in commits.items() if commit},
        }  # fmt: skip

    def decode(
        self, seeded: Cell | RowJob, prompts: list[list[int]], method: str, structure: str, *seed: object
    ) -> Generation:
        """Decode prompts with the row's settings and a seed of the cell's own, or of the row's."""
        settings = self.config.decode
        return generate(
            self.pair, prompts, method, structure, settings.max_new_tokens, settings.temperature, settings.top_p,
            seed=seeded.seed(*seed), eos_token_id=self.stop,
        )  # fmt: skip

    def warm_up(self, cell: Cell) -> None:
        """A block or two of each method that is about to be timed, so that nothing is set up inside the clock."""
        settings = self.config.decode
        prompt = [self.examples[0].prompt[:WARM_UP_PROMPT]]
        for method, structure in ((BASELINE, "0"), (cell.method, cell.structure)):
            generate(self.pair, prompt, method, structure, WARM_UP_TOKENS, settings.temperature, settings.top_p)

    def quality(self, cell: Cell, rows: Rows) -> Iterator[list[dict[str, Any]]]:
        """Records of all prompts, batch by batch of neighbours, without the batches that are done; nothing is timed."""
        size = self.config.quality.batch_size
        for start in range(0, len(self.examples), size):
            batch = self.examples[start : start + size]
            if all(("quality", e.id, 0) in rows for e in batch):
                continue
            out = self.decode(cell, [e.prompt for e in batch], cell.method, cell.structure, "quality", start)
            yield [self.record(cell, "quality", e, out, i) for i, e in enumerate(batch)]

    def speed(self, cell: Cell, rows: Rows) -> Iterator[list[dict[str, Any]]]:
        """Records of the first prompts at batch 1, one a prompt and turn, until the interval is as narrow as asked."""
        settings = self.config.speed
        for start in range(0, settings.num_prompts, PROMPTS_AT_ONCE):
            stop = min(start + PROMPTS_AT_ONCE, settings.num_prompts)
            turns = [Turn(i, t) for i in range(start, stop) for t in range(settings.turns)]
            todo = [turn for turn in turns if ("speed", self.examples[turn.prompt].id, turn.number) not in rows]
            if todo:
                self.warm_up(cell)
            for record in take(todo, partial(self.one_turn, cell), self.reference):
                yield [record]
            if settings.half_width and half_width(rows) <= settings.half_width:
                return

    def one_turn(self, cell: Cell, turn: Turn) -> Taken:
        """A turn's record, and the seconds of AR's blocks: AR comes first in every other turn."""
        example = self.examples[turn.prompt]
        ar = partial(self.decode, self.row, [example.prompt], BASELINE, "0", "AR's turn", *turn)
        own = partial(self.decode, cell, [example.prompt], cell.method, cell.structure, "speed", *turn)
        if sum(turn) % 2:
            out, beside = own(), ar()
        else:
            beside, out = ar(), own()
        record = self.record(cell, "speed", example, out, 0, turn.number) | times(out) | {
            "ar_new_tokens": len(beside.tokens[0]), "ar_decode_s": beside.decode_s,
            "ar_block_us": microseconds(beside.block_s),
        }  # fmt: skip
        return record, beside.block_s

    def profile(self, cell: Cell, rows: Rows) -> Iterator[list[dict[str, Any]]]:
        """Records of the prompts of `speed`, decoded once more for their phase times."""
        if not self.config.decode.profile:
            return
        self.warm_up(cell)
        for i, example in enumerate(self.examples[: self.config.speed.num_prompts]):
            if ("profile", example.id, 0) not in rows:
                out = self.decode(cell, [example.prompt], cell.method, cell.structure, "profile", i)
                yield [self.record(cell, "profile", example, out, 0) | times(out)]

    def run(self, cell: Cell, results: Path) -> int:
        """Run a cell from where it was interrupted, if it was; returns the tokens that were generated now.

        Whatever ends it early, its finished prompts are kept; a long cell keeps them as it goes.
        """
        kept, origin = progress.kept(cell, results, self.provenance["code"])
        rows = {place(row): row for row in kept}
        metadata, tokens, saved = self.provenance | history(origin), 0, time.monotonic()
        try:
            for more in chain.from_iterable(getattr(self, name)(cell, rows) for name in PASSES):
                tokens += sum(row["new_tokens"] for row in more if place(row) not in rows)
                rows |= {place(row): row for row in more}
                if time.monotonic() - saved > KEEP_EVERY:
                    progress.keep(cell, results, list(rows.values()), metadata)
                    saved = time.monotonic()
        except BaseException:
            progress.keep(cell, results, list(rows.values()), metadata)
            raise
        progress.finish(cell, results, list(rows.values()), metadata | self.backend)
        return tokens

    def record(
        self, cell: Cell, phase: str, example: Example, out: Generation, i: int, turn: int = 0
    ) -> dict[str, Any]:
        """One prompt's row of a cell, without times."""
        config, tokens = self.config, out.tokens[i]
        self.backend = {"backend": out.backend, "fallbacks": ",".join(out.fallbacks)}
        text, data = answer_text(tokens, self.pair.tokenizer, config.dataset.answer), config.dataset
        return {
            "cell_id": cell.id, "experiment": config.name, "row": self.row.label, "drafter": config.drafter.name,
            "target": config.target.name, "dataset": config.dataset.name, "method": cell.method,
            "structure": cell.structure, "budget": cell.budget,
            "depth": get_shape(cell.method, cell.structure).depth, "seed": config.seed, "prompt_id": example.id,
            "phase": phase, "turn": turn, "prompt_tokens": len(example.prompt), "source_cut": example.cut,
            "new_tokens": len(tokens), "blocks": out.blocks[i], "accepted_by_depth": out.accepted_by_depth[i],
            "tokens": tokens, "text": text, "reference": example.reference, "metric": data.metric,
            "score_statistics": statistics(data, text, example.reference),
            "drafter_params": self.drafter_params, "target_params": self.target_params,
            "temperature": config.decode.temperature, "top_p": config.decode.top_p,
            "max_new_tokens": config.decode.max_new_tokens,
            "batch_size": config.quality.batch_size, "device": "+".join(self.pair.devices),
            "dtype": self.provenance["dtype"], "quantization": self.pair.quantization,
        }  # fmt: skip


def place(row: dict[str, Any]) -> tuple[str, str, int]:
    """What tells a cell's rows apart."""
    return row["phase"], row["prompt_id"], row["turn"]


def half_width(rows: Rows) -> float:
    """Of the interval of a cell's token rate, as a share of it."""
    speed = [row for row in rows.values() if row["phase"] == "speed"]
    frame = with_steady_times(pa.Table.from_pylist(speed, records.COLUMNS))
    value, low, high = TOKEN_RATE.estimate(Sample(frame))
    return (high - low) / 2 / value


def times(out: Generation) -> dict[str, Any]:
    """A single sequence's times, as records hold them."""
    phases = {f"{name}_s": seconds for name, seconds in out.phase_s.items()}
    return {
        "prefill_s": out.prefill_s,
        "decode_s": out.decode_s,
        "block_us": microseconds(out.block_s),
        **phases,
    }


def microseconds(blocks: list[float]) -> list[int]:
    """Seconds of blocks, as records hold them."""
    return [round(1e6 * seconds) for seconds in blocks]


def history(origin: dict[str, str]) -> dict[str, str]:
    """Metadata that say where kept prompts come from, if there are any."""
    if not origin:
        return {}
    own = {key: origin[key] for key in ("started", "host", "job", "device") if key in origin}
    return {progress.HISTORY: json.dumps([*json.loads(origin.get(progress.HISTORY, "[]")), own])}


class Watcher(Protocol):
    """Is told how a row goes on."""

    def finished(self, cell: Cell, tokens: int) -> None:
        """A cell is done, with so many tokens generated for it now."""

    def waiting(self, cells: int) -> None:
        """So many cells are left, and other processes run them all."""


def run_row(row: RowJob, cells: list[Cell], results: Path, watcher: Watcher) -> dict[Cell, str]:
    """Run those cells of a row job that have no record yet; what another process runs comes last, if at all.

    Returns the reason of each cell that failed.

    Raises:
        UsageError: the models, the data or the results folder cannot be used.
    """
    missing = [cell for cell in cells if not store.is_done(cell, results)]
    failed: dict[Cell, str] = {}
    runner: RowRunner | None = None
    while missing:
        cell, lease = next_free(missing, results)
        if lease is None:
            watcher.waiting(len(missing))
            time.sleep(POLL_EVERY)
            missing = [c for c in missing if not store.is_done(c, results)]
            continue
        missing.remove(cell)
        with lease:
            if store.is_done(cell, results):  # by another process, meanwhile
                continue
            try:
                runner = runner or RowRunner(row)
                tokens = runner.run(cell, results)
            except UsageError:
                raise
            except Exception as error:
                progress.fail(cell, results, error)
                failed[cell] = f"{type(error).__name__}: {error}"
                if runner is None:  # what keeps the models from being loaded fails the whole row
                    for other in missing:
                        progress.fail(other, results, error)
                    return failed | dict.fromkeys(missing, failed[cell])
            else:
                watcher.finished(cell, tokens)
            if cell in failed:  # and its error is gone, whose traceback held what the device has no room for
                free_memory()
    return failed


def next_free(cells: list[Cell], results: Path) -> tuple[Cell, Lease | None]:
    """The first cell that no other process runs, leased; no lease if there is none."""
    for cell in cells:
        if lease := progress.lease(cell, results):
            return cell, lease
    return cells[0], None
