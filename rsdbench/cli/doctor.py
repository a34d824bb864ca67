"""`rsdbench doctor`: whether this machine has what an experiment needs, and how to get what is missing."""

from __future__ import annotations

import sys

from rich.table import Table
from rich.text import Text

from rsdbench.cli.output import command_parser, screen
from rsdbench.cli.run import hydra_errors
from rsdbench.runner.compose import row_configs, sweep, with_config_dir
from rsdbench.runner.doctor import ABSENT, MISSING, OK, PARTIAL, Finding, findings_of
from rsdbench.runner.settings import check_settings

DEFAULT = "experiment=paper"
STYLES = {OK: "green", ABSENT: "dim", MISSING: "red", PARTIAL: "red"}


def main(arguments: list[str]) -> None:
    """Look at everything and say what is missing; exits with 1 if something is.

    Raises:
        UsageError: an override is wrong.
    """
    parser = command_parser("doctor", "Is all here that an experiment needs?", "rsdbench doctor experiment=standin")
    parser.add_argument("overrides", nargs="*", help=f"as for `rsdbench run -m` (default: {DEFAULT})")
    overrides = parser.parse_args(with_config_dir(arguments)).overrides
    if not any(override.startswith("experiment=") for override in overrides):
        overrides = [DEFAULT, *overrides]
    with hydra_errors():
        configs = [config for job in sweep(overrides) for config in row_configs(job)]
        for config in configs:
            check_settings(config)
    findings = findings_of(configs)
    if sys.stdout.isatty():
        screen().print(table(findings))
    else:
        print("\n".join(map(line, findings)))
    names = ", ".join(dict.fromkeys(config.name for config in configs))
    lacking = sum(finding.lacking for finding in findings)
    if lacking:
        print(f"experiment {names} lacks {lacking} thing{'s' if lacking > 1 else ''} here")
        sys.exit(1)
    print(f"experiment {names} has all it needs here")


def table(findings: list[Finding]) -> Table:
    """A line a finding, and below it how to get what is missing."""
    made = Table()
    for name in ("", "what", "found"):
        made.add_column(name, overflow="fold")
    for finding in findings:
        found = Text(finding.detail)
        if finding.remedy and finding.lacking:
            found.append(f"\n{finding.remedy}", "bold")
        made.add_row(Text(finding.state, STYLES[finding.state]), finding.subject, found)
    return made


def line(finding: Finding) -> str:
    """The same without a terminal, to be searched and cut."""
    remedy = f" -> {finding.remedy}" if finding.remedy and finding.lacking else ""
    return f"{finding.state:8} {finding.subject}: {finding.detail}{remedy}"
