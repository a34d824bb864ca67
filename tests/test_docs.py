"""README and guides: every marked block runs, every link leads somewhere, every figure quoted is that of results/."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest

from rsdbench import __version__
from rsdbench.cli.main import COMMANDS, USAGE
from rsdbench.models.checkpoints import MODELS

from .commands import ROOT, rsdbench

PAGES = [p for p in sorted(ROOT.rglob("README.md")) if not {".venv", ".git", ".pytest_cache"} & set(p.parts)]
BLOCK = re.compile(r"<!-- run -->\n```(\w*)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
RESULTS = ROOT / "results"
# what makes a grid a matter of seconds
SMALL = {
    "dataset.num_prompts": "2", "speed.num_prompts": "1", "decode.max_new_tokens": "2", "max_structures": "1",
    "compile": "false", "budgets": "[6,14]", "dataset.max_prompt_tokens": "40",
}  # fmt: skip
LABELS = {"sd": "SD", "spectr": "SpecTr", "rsd_c": "RSD-C", "rsd_s": "RSD-S"}


def text(name):
    return (ROOT / name).read_text()


def words(line):
    """The arguments of a line of a block, made small if it decodes."""
    program, *arguments = shlex.split(line, comments=True)
    assert program == "rsdbench"
    if arguments[0] in ("run", "plan"):
        given = {argument.partition("=")[0] for argument in arguments}
        arguments += [f"{key}={value}" for key, value in SMALL.items() if key not in given]
    return arguments


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the embedded grid was run, small, with a pair and a file of the user's own."""
    folder = tmp_path_factory.mktemp("docs")
    rsdbench(*words("rsdbench run experiment=standin"), cwd=folder)
    for name, model in (("MY_TARGET", "opt-2.6m"), ("MY_DRAFTER", "opt-25k")):
        shutil.copytree(MODELS / model, folder / name)
    rows = [{"question": f"What is package {i}?", "answer": f"It is tool {i}."} for i in range(3)]
    (folder / "MINE.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_there_are_blocks_to_run():
    assert len(BLOCK.findall(text("README.md"))) >= 4
    assert len(PAGES) >= 8


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.parent.relative_to(ROOT)))
def test_marked_blocks_run_as_they_stand(page, place, monkeypatch):
    for language, block in BLOCK.findall(page.read_text()):
        if language == "python":
            monkeypatch.chdir(place)
            exec(compile(block, str(page), "exec"), {})
        else:
            for line in block.replace("\\\n", " ").strip().splitlines():
                rsdbench(*words(line), cwd=place)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "run"])
def test_the_example_in_each_commands_help_works(command, place):
    out, _ = rsdbench(command, "--help")
    (example,) = re.findall(r"example:\n  (rsdbench .*)", out)
    rsdbench(*words(example), cwd=place)


def test_the_overviews_examples_are_commands():
    named = set(re.findall(r"^  (\w+) ", USAGE, re.MULTILINE))
    assert named == set(COMMANDS)
    assert "rsdbench run experiment=smoke" in rsdbench("run", "--help")[0]


def test_the_overviews_example_works(tmp_path):
    (example,) = re.findall(r"^Example: (.*)$", rsdbench("--help")[0], re.MULTILINE)
    for line in example.split(" && "):
        rsdbench(*words(line), cwd=tmp_path)


def anchors(page):
    """The anchors that a forge gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.parent.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            file = target / "README.md" if target.is_dir() else target
            assert anchor in anchors(file), link


def test_the_readme_is_short_and_names_this_version():
    assert len(text("README.md").splitlines()) <= 200
    assert f"{{{__version__}}}" in text("README.md")
    assert f"Version {__version__}:" in text("README.md")


def test_every_folder_of_the_package_is_in_the_readmes_tree():
    folders = {f.name for f in (ROOT / "rsdbench").iterdir() if f.is_dir() and f.name != "__pycache__"}
    assert folders == set(re.findall(r"^rsdbench/(\w+) ", text("README.md"), re.MULTILINE))
    modules = {f.stem for f in (ROOT / "tests").glob("test_*.py")}
    listed = re.findall(r"`(test_\w+\*?)`", text("tests/README.md"))
    assert {m for m in modules if not any(m == name or m.startswith(name.rstrip("*")) for name in listed)} <= {
        "test_configs", "test_estimate", "test_gpu_check", "test_pace", "test_phases", "test_scripts", "test_wheel"
    }  # fmt: skip


# what is quoted from results/


@pytest.fixture(scope="module")
def points():
    return pd.read_csv(RESULTS / "standin_full" / "points.csv")


def at(points, metric, budget, row=None):
    own = points[(points.metric == metric) & (points.budget == budget) & ((points.row == row) | (row is None))]
    return own.groupby("method").value.mean()


def test_the_findings_in_the_readme_are_the_grids(points):
    page = re.sub(r"\s+", " ", text("README.md"))
    most = at(points, "block efficiency", 30)
    assert (
        f"{most.rsd_s:.2f} tokens with RSD-S, {most.rsd_c:.2f} with RSD-C, {most.spectr:.2f} with SpecTr and "
        f"{most.sd:.2f} with SD"
    ) in page
    rates = [at(points, "token rate", budget).rsd_s for budget in (30, 6)]
    assert "does not pay at 30 tokens ({:.2f} of AR's speed for RSD-S), and pays at 6 ({:.2f})".format(*rates) in page


@pytest.mark.parametrize(
    ("metric", "row"),
    [
        ("block efficiency", None), ("MBSU", None), ("token rate", None),
        ("block efficiency", "OPT-25K-2.6M, De-En"), ("MBSU", "OPT-70K-6M, Synopsis"),
        ("token rate", "OPT-25K-13.2M, De-En"),
    ],
)  # fmt: skip
def test_the_table_of_the_published_grid_is_its_points(points, metric, row):
    ends = [at(points, metric, budget, row) for budget in (6, 30)]
    cells = " | ".join(f"{ends[0][m]:.2f} / {ends[1][m]:.2f}" for m in LABELS)
    assert f"| {metric}, {row or 'mean of the rows'} | here | {cells} |" in text("results/README.md")


def test_the_claims_in_the_guide_are_the_published_ones():
    frame = pd.read_csv(RESULTS / "standin_full" / "claims.csv")
    page = text("results/README.md")
    for claim, own in frame.groupby("claim", sort=False):
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {claim} |")]
        _, _, verdict, ratios, _ = (part.strip() for part in line.split("|"))
        assert verdict == own.verdict.iloc[0]
        quoted = [f"{q.quantity} {q.value:.2f} [{q.low:.2f}, {q.high:.2f}]" for q in own.itertuples()]
        assert set(ratios.split("; ")) <= set(quoted)


def test_the_first_looks_minutes_are_the_measured_ones():
    cold, warm = json.loads((RESULTS / "bench" / "first_run.json").read_text())["rows"]
    page = text("README.md")
    assert f"`reproduce.sh` takes {cold['minutes']:.1f} minutes on two idle cores" in page
    assert f"{cold['compiling_s'] / 60:.1f} compile" in page
    bench = text("results/bench/README.md")
    assert f"| minutes | {cold['minutes']:.1f} | {warm['minutes']:.1f} |" in bench
    assert f"| of these compiling | {cold['compiling_s'] / 60:.1f} | 0 |" in bench


def test_the_certificate_is_quoted_as_it_is():
    checks = pd.read_parquet(RESULTS / "certificate" / "certificate.parquet")
    page = text("results/README.md")
    honest = checks[~checks.mutant]
    joint = honest[honest.check == "joint law of three tokens"]
    assert f"{joint.samples.sum() / 1e6:.0f} million continuations, smallest p {joint.p_value.min():.2g}" in page
    models = honest[honest.level == 3]
    assert f"smallest p {models.p_value.min():.1g}, of {len(models)}" in page
    mutants = checks[checks.mutant]
    assert f"{(mutants.verdict == 'rejected').sum()} of {len(mutants)} rejected" in page
    double = honest[(honest.level == 1) & honest.setting.str.startswith("float64")]
    assert f"| {double.statistic.max():.0g} |" in page
    assert checks.code.iloc[0] in page


def test_speed_tables_are_the_measured_ones():
    page = text("results/bench/README.md")
    peers = json.loads((RESULTS / "bench" / "peers.json").read_text())
    numbers = set(re.findall(r"\d+\.\d\d", json.dumps(round_all(peers))))
    for quoted in re.findall(r"^\| (?:AR|SD 6) over .* \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE):
        assert set(quoted) <= numbers
    engine = set(
        re.findall(r"\d+\.\d+", json.dumps(round_all(json.loads((RESULTS / "bench/engine.json").read_text()))))
    )
    table = re.findall(r"^\| (?:6M|13.2M) \| [^|]*\|(.*)\|$", page, re.MULTILINE)
    assert len(table) == 12
    for line in table:
        assert {cell.strip() for cell in line.split("|")} <= engine, line


def round_all(value):
    """Numbers as guides print them, with two and with three decimals."""
    if isinstance(value, dict):
        return [round_all(v) for v in value.values()]
    if isinstance(value, list):
        return [round_all(v) for v in value]
    return [f"{value:.2f}", f"{value:.3f}"] if isinstance(value, float | int) else ""


def test_nothing_private_is_in_what_is_published():
    for file in [*PAGES, *Path(ROOT / "configs").rglob("*.yaml"), *Path(ROOT / "rsdbench").rglob("*.py")]:
        content = file.read_text()
        assert "/root/" not in content
        assert "TODO" not in content
