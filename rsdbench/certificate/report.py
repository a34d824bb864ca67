"""A certificate on disk: every check in a parquet file, and a page of Markdown."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from rsdbench.certificate.certify import ALPHA, MUTANT_P, failed
from rsdbench.methods import METHODS

LEVELS = {
    1: "The rule alone, by enumeration: largest difference between the law of the emitted token and p.",
    2: "The engine: joint law of three tokens from `generate` by chi-square; greedy decoding; seeds.",
    3: "The embedded models against AR: first two tokens, BLEU and ROUGE-2, over the rows of the embedded grid.",
}


def table(checks: pd.DataFrame, provenance: dict[str, str]) -> pa.Table:
    """All checks, with where they come from as columns and as the file's metadata."""
    frame = checks.assign(**provenance)
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(
        {f"rsdbench.{key}": value for key, value in provenance.items()}
    )


def summary(checks: pd.DataFrame) -> pd.DataFrame:
    """One line for checks that are alike, with the worst of them: all rows of the grid; all structures at T = 0."""
    shown = checks.assign(
        setting=checks.setting.where(
            checks.level == 2, checks.setting.str.partition(",")[0].where(checks.level == 1, "")
        ),
        structure=checks.structure.where((checks.level != 2) | checks.p_value.notna(), "all"),
    )
    lines = []
    for (level, check, method, structure, setting, mutant), own in shown.groupby(
        ["level", "check", "method", "structure", "setting", "mutant"], sort=False
    ):
        worst = own.loc[own.p_value.idxmin() if own.p_value.notna().any() else own.statistic.idxmax()]
        lines.append(
            {
                "level": level, "method": METHODS[method].label, "structure": structure, "check": check,
                "setting": setting, "samples": f"{own.samples.sum():,}", "statistic": statistic_text(worst, len(own)),
                "bound": bound_text(worst), "would find": finds_text(own), "verdict": verdict(own), "mutant": mutant,
            }
        )  # fmt: skip
    return pd.DataFrame(lines)


def verdict(checks: pd.DataFrame) -> str:
    """The verdict of alike checks: a single bad one decides."""
    bad = failed(checks)
    return checks.verdict.iloc[0] if bad.empty else f"{bad.verdict.iloc[0].upper()} ({len(bad)} of {len(checks)})"


def statistic_text(check: pd.Series, alike: int) -> str:
    """The statistic of the worst of `alike` checks."""
    if pd.isna(check.p_value):
        text = f"{check.statistic:.2g}" + (f" of {check.samples}" if check.bound == 0 else "")
    else:
        p = f"p = {check.p_value:.2g}" if check.p_value > 0 else "p < 1e-300"
        if pd.notna(check.freedom):
            text = f"chi2({check.freedom:.0f}) = {check.statistic:.4g}, {p}"
        else:
            text = f"{check.statistic:+.2f} [{check.low:+.2f}, {check.high:+.2f}], {p}"
    return text if alike == 1 else f"{text}, worst of {alike}"


def finds_text(checks: pd.DataFrame) -> str:
    """The deviation that alike checks would have found, of the weakest of them."""
    weakest = checks.loc[checks.finds.idxmax()] if checks.finds.notna().any() else None
    if weakest is None:
        return "-"
    if pd.isna(weakest.p_value):
        return "any" if weakest.bound == 0 else f"{weakest.finds:g}"
    return f"TV {weakest.finds:.2g}" if pd.notna(weakest.freedom) else f"{weakest.finds:.1f} points"


def bound_text(check: pd.Series) -> str:
    """What the statistic had to keep to."""
    if check.mutant:
        return f"p < {MUTANT_P:g}"
    return f"p >= {check.bound:.2g}" if pd.notna(check.p_value) else f"{check.bound:g}"


def markdown(checks: pd.DataFrame, provenance: dict[str, str], seconds: float, saved: bool = True) -> str:
    """The certificate on a page. saved: whether all checks are in a file beside it."""
    bad, mutants = failed(checks), checks[checks.mutant]
    honest = checks[~checks.mutant]
    engine = checks[(checks.level == 2) & checks.p_value.notna()]
    sampled = f"; {engine.samples.sum():,} continuations of the tiny model" if len(engine) else ""
    sampled += f", {engine.samples.sum() / engine.seconds.sum():,.0f} a second on one core" if len(engine) else ""
    lines = summary(checks)
    all_are = "all are in `certificate.parquet`" if saved else "`--out DIR` keeps all"
    versions = ", ".join(f"{key} {provenance[key]}" for key in ("rsdbench", "torch", "transformers", "python"))
    parts = [
        "# Certificate of losslessness",
        f"**{'FAILED' if len(bad) else 'Passed'}**: {len(honest)} checks, {len(failed(honest))} failed; "
        f"{power_text(mutants)}.",
        f"{versions}; commit {short(provenance['git_commit'])}, code {provenance['code']}; seed "
        f"{provenance['seed']}; {provenance['started']}; {provenance['device']}, {provenance['dtype']}.",
        f"`{provenance['command']}`: {seconds:.0f} s{sampled}.",
        f"All p-values together fail by chance with probability {ALPHA:g} if every method is lossless (Bonferroni). "
        f"Of checks that are alike, the worst is shown; {all_are}. What a check would find, it finds with a "
        "probability of 95 %: TV is the total variation between laws, points are of a score.",
    ]
    for level, title in LEVELS.items():
        own = lines[(lines.level == level) & ~lines.mutant].drop(columns=["level", "mutant"])
        if len(own):
            parts += [f"## Level {level}", title, own.to_markdown(index=False)]
            if level == 1:
                parts.append(acceptance(checks))
    if len(mutants):
        own = lines[lines.mutant].drop(columns=["level", "mutant"]).rename(columns={"check": "what is broken"})
        parts += ["## Power", "The level 2 tests on code that is broken on purpose.", own.to_markdown(index=False)]
    return "\n\n".join(parts) + "\n"


def power_text(mutants: pd.DataFrame) -> str:
    """What the mutants say of the checks."""
    if mutants.empty:
        return "no mutants were tried, which level 2 does: whether an error would have been found is not known"
    return f"{len(mutants)} mutants, {len(failed(mutants))} missed"


def short(commit: str) -> str:
    """A commit's first letters, and whether its files were changed."""
    name, _, changed = commit.partition(" ")
    return f"{name[:12] or 'unknown'} {changed}".rstrip()


def acceptance(checks: pd.DataFrame) -> str:
    """Mean probability that one of k drafts is accepted, beside the optimum for such drafts."""
    own = checks[(checks.level == 1) & (checks.optimum > 0) & checks.setting.str.startswith("float64")]
    if own.empty:
        return "No method here has drafts to accept."
    text = [f"{a:.3f} / {b:.3f}" for a, b in zip(own.acceptance, own.optimum, strict=True)]
    number = "k = " + own.setting.str.rsplit("= ", n=1).str[-1]
    frame = pd.DataFrame({"method": [METHODS[m].label for m in own.method], "number": number, "text": text})
    wide = frame.pivot(index="method", columns="number", values="text").fillna("")
    return (
        "Mean probability that one of k drafts is accepted / the most that any lossless rule could accept of these "
        "drafts:\n\n" + wide.reindex(frame.method.unique()).to_markdown()
    )
