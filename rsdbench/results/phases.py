"""Where a block's time goes: the records of `decode.profile=true`, by method and budget."""

from __future__ import annotations

import pandas as pd

from rsdbench.errors import UsageError
from rsdbench.results.results import CELL, Results

PHASES = ("draft", "target", "verify", "commit")
OTHER = "other"  # of the decoding time: what lies between the phases


def phase_times(results: Results, every: bool = False) -> pd.DataFrame:
    """Milliseconds of an average block in each phase: row, method, budget, structure, blocks, tokens, ms, phases.

    ms is the whole block, and the sum of all phases; tokens those that a block gave. AR comes first in each row, with
    budget 0. every: all structures, not only each method and budget's fastest one.

    Raises:
        UsageError: nothing was profiled.
    """
    frame = results.records[results.records.phase == "profile"]
    if frame.empty:
        raise UsageError("no block of these results was profiled: run them with decode.profile=true into a new folder")
    columns = [f"{phase}_s" for phase in PHASES]
    sums = frame.groupby(CELL, sort=False)[["blocks", "new_tokens", "decode_s", *columns]].sum().reset_index()
    if not every:
        seconds_a_token = (sums.decode_s / sums.new_tokens).sort_values(kind="stable")
        sums = sums.loc[seconds_a_token.index].drop_duplicates(["row", "method", "budget"])
    made = sums[CELL].assign(blocks=sums.blocks, tokens=sums.new_tokens / sums.blocks)
    milliseconds = sums[["decode_s", *columns]].mul(1e3).div(sums.blocks, axis=0)
    made["ms"] = milliseconds.decode_s
    for phase, column in zip(PHASES, columns, strict=True):
        made[phase] = milliseconds[column]
    made[OTHER] = made.ms - made[list(PHASES)].sum(axis=1)
    baseline = sorted(set(made.method) - set(results.methods))
    for name, order in {"row": results.rows, "method": [*baseline, *results.methods]}.items():
        made[name] = pd.Categorical(made[name], order, ordered=True)
    made = made.sort_values(["row", "method", "budget", "structure"]).reset_index(drop=True)
    return made.astype({"row": str, "method": str})
