"""Whether the published certificate is whole, and which code it is of.

    python scripts/check_certificate.py [results/certificate]

Exit code 1 if it is not whole.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from rsdbench.methods import METHODS
from rsdbench.sources import code_hash

ROOT = Path(__file__).resolve().parents[1]


def problems(folder: Path) -> list[str]:
    """What is wrong with the certificate in a folder."""
    checks = pd.read_parquet(folder / "certificate.parquet")
    page = (folder / "certificate.md").read_text()
    samples = checks[checks.check == "joint law of three tokens"].samples
    wrong = {
        f"it fails {(~checks.verdict.isin(['pass', 'rejected'])).sum()} checks": not set(checks.verdict)
        <= {"pass", "rejected"},
        f"it lacks {', '.join(sorted(set(METHODS) - set(checks.method)))}": not set(METHODS) <= set(checks.method),
        f"it has {samples.min():,} continuations a case, fewer than a million": samples.min() < 1_000_000,
        "page and table are of different code": checks.code[0] not in page,
        "its page does not say that it passed": "**Passed**" not in page,
    }
    return [text for text, is_wrong in wrong.items() if is_wrong]


def main() -> None:
    """Print what is wrong."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "results" / "certificate"
    found = problems(folder)
    code = pd.read_parquet(folder / "certificate.parquet", columns=["code"]).code[0]
    print(*[f"not whole: {text}" for text in found] or ["whole"], sep="\n")
    print(f"of code {code}" + ("" if code == code_hash() else f"; the code here is {code_hash()}"))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
