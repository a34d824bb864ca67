"""Run the missing cells of a row job: quality in batches, speed at batch 1 in turns with AR."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from rsdbench.engine.decode import Generation, generate
from rsdbench.engine.lane import position_limit
from rsdbench.engine.methods import BASELINE, get_shape
from rsdbench.engine.models import Pair, load_pair, parameters
from rsdbench.experiment import records
from rsdbench.experiment.cells import Cell, RowJob
from rsdbench.experiment.tasks import Example, answer_text, load_examples, stop_token

WARM_UP_PROMPT, WARM_UP_TOKENS = 8, 2
TREE_POSITIONS = 32  # kept free behind a prompt's new tokens, whichever structures run: prompts must not depend on them


@lru_cache(maxsize=1)
def cached_pair(
    target: str, drafter: str, device: str, dtype: str, target_revision: str | None, drafter_revision: str | None
) -> Pair:
    """The pair of the last row job: rows that differ in the dataset alone share it."""
    return load_pair(target, drafter, device, dtype, target_revision, drafter_revision)


class RowRunner:
    """The loaded models and prompts of a row job."""

    def __init__(self, row: RowJob) -> None:
        config = row.config
        self.row, self.config = row, config
        self.pair = cached_pair(
            config.target.path, config.drafter.path, config.device, config.dtype,
            config.target.revision, config.drafter.revision,
        )  # fmt: skip
        limit = min(position_limit(self.pair.target), position_limit(self.pair.drafter))
        room = limit - config.decode.max_new_tokens - TREE_POSITIONS
        room = min(room, config.dataset.max_prompt_tokens or room)
        self.examples = load_examples(config.dataset, self.pair.tokenizer, room)
        self.stop = stop_token(config.dataset, self.pair.tokenizer)
        dtype = str(self.pair.target.dtype).removeprefix("torch.")
        self.drafter_params, self.target_params = parameters(self.pair.drafter), parameters(self.pair.target)
        self.provenance = records.provenance(self.pair.target.device, dtype)

    def decode(self, cell: Cell, prompts: list[list[int]], method: str, structure: str, *seed: object) -> Generation:
        """Decode prompts with the row's settings and a seed of the cell's own."""
        settings = self.config.decode
        return generate(
            self.pair, prompts, method, structure, settings.max_new_tokens, settings.temperature, settings.top_p,
            seed=cell.seed(*seed), eos_token_id=self.stop,
        )  # fmt: skip

    def warm_up(self, cell: Cell) -> None:
        """A block or two of each method that is about to be timed, so that nothing is set up inside the clock."""
        settings = self.config.decode
        prompt = [self.examples[0].prompt[:WARM_UP_PROMPT]]
        for method, structure in ((BASELINE, "0"), (cell.method, cell.structure)):
            generate(self.pair, prompt, method, structure, WARM_UP_TOKENS, settings.temperature, settings.top_p)

    def quality(self, cell: Cell) -> list[dict[str, Any]]:
        """Records of all prompts, decoded in batches of neighbours."""
        rows = []
        size = self.config.quality.batch_size
        for start in range(0, len(self.examples), size):
            batch = self.examples[start : start + size]
            out = self.decode(cell, [e.prompt for e in batch], cell.method, cell.structure, "quality", start)
            rows += [self.record(cell, "quality", e, out, i, share=len(batch)) for i, e in enumerate(batch)]
        return rows

    def speed(self, cell: Cell) -> list[dict[str, Any]]:
        """Records of the first prompts at batch 1; AR runs before the method and after it by turns."""
        count = self.config.speed.num_prompts
        if count:
            self.warm_up(cell)
        rows = []
        for i, example in enumerate(self.examples[:count]):
            order = [(BASELINE, "0"), (cell.method, cell.structure)]
            outs = {}
            for turn in (0, 1) if i % 2 == 0 else (1, 0):
                outs[turn] = self.decode(cell, [example.prompt], *order[turn], "speed", i, turn)
            row = self.record(cell, "speed", example, outs[1], 0, share=1)
            rows.append({**row, "ar_new_tokens": len(outs[0].tokens[0]), "ar_decode_s": outs[0].decode_s})
        return rows

    def record(self, cell: Cell, phase: str, example: Example, out: Generation, i: int, share: int) -> dict[str, Any]:
        """One prompt's row of a cell."""
        config, tokens = self.config, out.tokens[i]
        return {
            "cell_id": cell.id, "experiment": config.name, "row": self.row.label, "drafter": config.drafter.name,
            "target": config.target.name, "dataset": config.dataset.name, "method": cell.method,
            "structure": cell.structure, "budget": cell.budget,
            "depth": get_shape(cell.method, cell.structure).depth, "seed": config.seed, "prompt_id": example.id,
            "phase": phase, "prompt_tokens": len(example.prompt), "source_cut": example.cut,
            "new_tokens": len(tokens), "blocks": out.blocks[i], "accepted_by_depth": out.accepted_by_depth[i],
            "tokens": tokens, "prefill_s": out.prefill_s / share, "decode_s": out.decode_s / share,
            **{f"{name}_s": seconds / share for name, seconds in out.phase_s.items()},
            "text": answer_text(tokens, self.pair.tokenizer), "reference": example.reference,
            "metric": config.dataset.metric, "drafter_params": self.drafter_params,
            "target_params": self.target_params, "temperature": config.decode.temperature,
            "top_p": config.decode.top_p, "max_new_tokens": config.decode.max_new_tokens,
            "batch_size": config.quality.batch_size, "device": str(self.pair.target.device),
            "dtype": self.provenance["dtype"],
        }  # fmt: skip


def run_row(row: RowJob, results: Path, finished: Callable[[Cell, int], None]) -> None:
    """Run the cells of a row job that have no record yet.

    `finished` is called after each cell with the tokens it generated.
    """
    missing = [cell for cell in row.cells if not records.is_done(cell, results)]
    if not missing:
        return
    runner = RowRunner(row)
    for cell in missing:
        rows = runner.quality(cell) + runner.speed(cell)
        records.write(cell, results, rows, runner.provenance)
        finished(cell, sum(r["new_tokens"] for r in rows))
