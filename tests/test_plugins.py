"""A user's own modules: each kind on a tiny grid, certified where it is a rule, refused in one line where it is bad."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from .commands import SMALL, cells, rsdbench

PLUGINS = Path(__file__).parent / "plugins"
EXAMPLES = sorted(PLUGINS.glob("*.py"))
RULES = [("node_rule", "specinfer", 6), ("tree_rule", "sd_whole", 6)]


def plugin(name, folder):
    """A copy in a folder of the user's, where it is named as a module."""
    shutil.copy(PLUGINS / f"{name}.py", folder / f"my_{name}.py")
    return f"my_{name}"


def run(folder, *overrides, **more):
    return rsdbench("run", *SMALL, f"results={folder}/r", *overrides, cwd=folder, **more)


def records(folder):
    return pd.concat([pd.read_parquet(file) for file in cells(folder / "r")])


def metadata(folder, key):
    return [pq.read_schema(file).metadata[f"rsdbench.{key}".encode()].decode() for file in cells(folder / "r")]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_examples_are_short(file):
    assert len(file.read_text().splitlines()) <= 60


@pytest.mark.parametrize(("name", "method", "budget"), RULES)
def test_a_rule_goes_through_run_table_and_figure(tmp_path, name, method, budget):
    module = plugin(name, tmp_path)
    run(tmp_path, f"plugins=[{module}]", f"methods=[{method}]", f"budgets=[{budget}]", "compile=false")
    assert set(records(tmp_path).method) == {"ar", method}
    for cell in metadata(tmp_path, "cell"):
        ((known, digest),) = json.loads(cell)["plugins"].items()
        assert known == module
        assert len(digest) == 16
    out, _ = rsdbench("table", tmp_path / "r", "--plugin", module, cwd=tmp_path)
    assert method in out
    figure = tmp_path / "f.svg"
    rsdbench("figure", tmp_path / "r", f"--plugin={module}", "--out", figure, cwd=tmp_path)
    assert figure.stat().st_size > 1000
    out, _ = rsdbench("table", tmp_path / "r", cwd=tmp_path)
    assert method in out, "what is recorded can be read without the rule"


def test_another_version_of_a_plugin_makes_other_cells_and_a_comment_does_not(tmp_path):
    module = plugin("node_rule", tmp_path)
    settings = f"plugins=[{module}]", "methods=[specinfer]", "budgets=[6]", "max_structures=1", "compile=false"
    run(tmp_path, *settings)
    before = {file.name for file in cells(tmp_path / "r")}
    source = tmp_path / f"{module}.py"
    source.write_text(source.read_text() + "\n# a comment\n")
    out, _ = run(tmp_path, *settings)
    assert "are done already" in out
    source.write_text(source.read_text().replace("1e-30", "1e-31"))
    _, err = run(tmp_path, *settings, code=2)
    assert "plugins" in err
    assert {file.name for file in cells(tmp_path / "r")} == before


def test_a_drafter_of_ones_own(tmp_path):
    module = plugin("drafter", tmp_path)
    run(tmp_path, f"plugins=[{module}]", "drafter=lookup", "drafter.path=unigrams", "drafter.name=unigrams",
        "methods=[sd,rsd_c]", "budgets=[6]", "compile=false")  # fmt: skip
    found = records(tmp_path)
    assert set(found.drafter) == {"unigrams"}
    assert set(found.drafter_params) == {0}
    assert set(found.method) == {"ar", "sd", "rsd_c"}


def test_a_dataset_with_a_score_of_its_own(tmp_path):
    module = plugin("score", tmp_path)
    lines = [{"q": f"package {i} that does things", "a": "a tool"} for i in range(4)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run(tmp_path, f"plugins=[{module}]", "dataset=custom", "dataset.path=mine.jsonl", "dataset.source=q",
        "dataset.reference=a", "dataset.template='{source}: '", "dataset.metric=word_recall",
        "compile=false")  # fmt: skip
    assert set(records(tmp_path).metric) == {"word_recall"}
    rsdbench("table", tmp_path / "r", "--plugin", module, cwd=tmp_path)
    _, err = rsdbench("table", tmp_path / "r", cwd=tmp_path, code=2)
    assert "word_recall" in err
    assert "--plugin" in err


def test_a_metric_is_a_column_of_table_and_figure(tmp_path):
    module = plugin("metric", tmp_path)
    run(tmp_path, "compile=false")
    out, _ = rsdbench("table", tmp_path / "r", "--plugin", module, cwd=tmp_path)
    assert "drafted" in out
    rsdbench("table", tmp_path / "r", "--plugin", module, "--out", tmp_path / "t.csv", cwd=tmp_path)
    table = pd.read_csv(tmp_path / "t.csv")
    values = table.set_index("metric").value
    assert values["drafted"] == pytest.approx(1 - 1 / values["block efficiency"])
    out, _ = rsdbench("figure", tmp_path / "r", "--plugin", module, "--out", tmp_path / "f.svg", cwd=tmp_path)
    assert "5 charts" in out


def test_a_backend_is_named_by_the_records(tmp_path):
    module = plugin("backend", tmp_path)
    run(tmp_path, f"plugins=[{module}]", "backend=counting")
    assert set(metadata(tmp_path, "backend")) == {"counting"}
    _, err = run(tmp_path, "backend=counting", code=2)
    assert "unknown backend 'counting': choose from eager" in err


@pytest.mark.parametrize("suffix", ["", ".py"])
def test_a_manifest_works_from_another_folder(tmp_path, suffix):
    module = plugin("node_rule", tmp_path) + suffix
    rsdbench("plan", *SMALL, f"results={tmp_path}/r", f"plugins=[{module}]", "methods=[specinfer]", "budgets=[6]",
             "compile=false", "--manifest", tmp_path / "m.jsonl", cwd=tmp_path)  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    rsdbench("run", "--manifest", tmp_path / "m.jsonl", "--task", "0", cwd=tmp_path / "elsewhere")
    assert "specinfer" in set(records(tmp_path).method)


def test_its_rule_is_compiled_in_worker_processes(tmp_path, compiled_cache):
    module = plugin("node_rule", tmp_path)
    _, err = run(tmp_path, f"plugins=[{module}]", "methods=[specinfer]", "budgets=[6]", "max_structures=1",
                 "compile=true", XDG_CACHE_HOME=str(compiled_cache))  # fmt: skip
    assert "not compiled" not in err
    assert set(metadata(tmp_path, "backend")) == {"compiled"}


@pytest.mark.parametrize(("name", "method", "budget"), RULES)
def test_a_rule_is_certified(tmp_path, name, method, budget):
    module = plugin(name, tmp_path)
    out, _ = rsdbench("certify", method, "--plugin", module, "--levels", 1, cwd=tmp_path)
    assert " 0 failed" in out
    assert "| pass" in out


WRONG = """
import torch, rsdbench
from rsdbench.structures import BRANCHING
from rsdbench.verification.recursive_rejection import recursive_rejection

def by_probability(p, q, drafts, present):
    order = q.gather(1, drafts).argsort(1, descending=True)
    verdict = recursive_rejection(p, q, drafts.gather(1, order), present.gather(1, order))
    return verdict._replace(accept=torch.zeros_like(verdict.accept).scatter(1, order, verdict.accept))

rsdbench.register_method("sorted", rsdbench.Method(
    "Sorted", BRANCHING, {6: ("3-1",)}, "rsdbench.decoding.strategies:Branching", by_probability))
"""


def test_a_rule_that_sorts_siblings_is_rejected(tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    out, _ = rsdbench("certify", "sorted", "--plugin", "wrong.py", "--levels", 1, cwd=tmp_path, code=1)
    assert "**FAILED**" in out


BAD = {
    "import nothing_like_this": "plugin 'bad' cannot be imported (ModuleNotFoundError: No module named",
    "1 / 0": "plugin 'bad' cannot be imported (ZeroDivisionError: division by zero)",
    "import rsdbench; rsdbench.register_method('sd', rsdbench.methods.METHODS['sd'])":
        "plugin 'bad': the method 'sd' is registered already",
    "import rsdbench; from rsdbench.results.metrics import MBSU; rsdbench.register_metric(MBSU)":
        "plugin 'bad': the metric 'MBSU' is registered already",
    "import rsdbench; rsdbench.register_drafter('a b', rsdbench.DrafterKind(object))":
        "plugin 'bad': a drafter needs a name such as my_drafter, not 'a b'",
}  # fmt: skip


@pytest.mark.parametrize("source", BAD)
def test_a_plugin_that_cannot_be_used_is_one_line(tmp_path, source):
    (tmp_path / "bad.py").write_text(source)
    for arguments in (("run", *SMALL, f"results={tmp_path}/r", "plugins=[bad]"), ("certify", "--plugin", "bad")):
        _, err = rsdbench(*arguments, cwd=tmp_path, code=2)
        assert BAD[source] in err
        assert len(err.strip().splitlines()) == 1


METHOD = """
import torch, rsdbench
from rsdbench.structures import BRANCHING
from rsdbench.verification import Verdict
from rsdbench.verification.recursive_rejection import recursive_rejection

def rule(p, q, drafts, present):
    verdict = recursive_rejection(p, q, drafts, present)
    return {answer}

rsdbench.register_method("mine", rsdbench.Method(
    "Mine", BRANCHING, {{6: ("3-1",)}}, "rsdbench.decoding.strategies:Branching", rule))
"""
ANSWERS = {
    "verdict._replace(accept=verdict.accept[:, :1])": "accept",
    "verdict._replace(residual=verdict.residual[:, 1:])": "residual",
    "verdict._replace(residual=verdict.residual * 2)": "add up to 1",
    "verdict._replace(residual=verdict.residual * float('nan'))": "NaN",
    "verdict._replace(accept=verdict.accept * 2)": "between 0 and 1",
    "verdict.accept": "Verdict",
    "None": "Verdict",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_rule_that_answers_wrongly_is_one_line(tmp_path, answer):
    (tmp_path / "bad.py").write_text(METHOD.format(answer=answer))
    _, err = run(tmp_path, "plugins=[bad]", "methods=[mine]", "compile=false", code=2)
    line = err.strip().splitlines()[-1]
    assert "plugin 'bad': " in line
    assert "'mine'" in line
    assert ANSWERS[answer] in line


DRAFTER = """
import torch, rsdbench
from rsdbench.decoding.drafter import Drafts

class Mine:
    name, vocabulary, parameters, certain = "mine", {vocabulary}, 0, {certain}
    def draft(self, sequences, shape, vocabulary, generator):
        batch = len(sequences)
        tokens, valid = torch.zeros(batch, shape.budget, dtype=torch.long), torch.ones(batch, shape.budget).bool()
        return {answer}

rsdbench.register_drafter("mine", rsdbench.DrafterKind(Mine, certain={certain}))
"""
DRAFTERS = [
    (
        "None",
        "True",
        "Drafts(tokens.repeat(1, 2), valid)",
        "gave tokens (1, 12), and a tree of this shape needs (1, 6)",
    ),
    ("None", "True", "Drafts(tokens + 10**6, valid)", "token ids outside the target's vocabulary of 1024"),
    ("None", "True", "None", "gave tokens NoneType"),
    ("None", "False", "Drafts(tokens, valid)", "gave log_q NoneType"),
    ("None", "False", "Drafts(tokens, valid, torch.zeros(batch, 6, vocabulary))", "do not add up to 1"),
    ("77", "True", "Drafts(tokens, valid)", "target has a vocabulary of 1024 tokens and drafter one of 77"),
]


@pytest.mark.parametrize(("vocabulary", "certain", "answer", "reason"), DRAFTERS)
def test_a_drafter_that_answers_wrongly_is_one_line(tmp_path, vocabulary, certain, answer, reason):
    (tmp_path / "bad.py").write_text(DRAFTER.format(vocabulary=vocabulary, certain=certain, answer=answer))
    settings = "quality.batch_size=1", "dataset.num_prompts=2", "compile=false"
    _, err = run(tmp_path, "plugins=[bad]", "drafter=lookup", "drafter.path=mine", *settings, code=2)
    assert reason in err.strip().splitlines()[-1]


def test_plugins_must_be_a_list(tmp_path):
    _, err = run(tmp_path, "plugins=my_module", code=2)
    assert "plugins must be a list of modules or .py files such as [my_module], not 'my_module'" in err
    _, err = rsdbench("table", tmp_path, "--plugin", code=2)
    assert "--plugin needs a module or a .py file" in err


UNCOMPILED = """
import rsdbench
from rsdbench.structures import CHAIN
from rsdbench.verification.recursive_rejection import recursive_rejection

def looks(p, q, drafts, present):
    assert p.numpy().sum() > 0
    return recursive_rejection(p, q, drafts, present)

rsdbench.register_method("looks", rsdbench.Method(
    "Looks", CHAIN, {6: ("6",)}, "rsdbench.decoding.strategies:Sequences", looks))
"""


def test_a_method_that_falls_back_is_not_drawn_beside_others(tmp_path, compiled_cache):
    (tmp_path / "mine.py").write_text(UNCOMPILED)
    _, err = run(tmp_path, "plugins=[mine]", "methods=[sd,looks]", "compile=true", XDG_CACHE_HOME=str(compiled_cache))
    assert "verify by looks" in err
    backends = dict(zip(metadata(tmp_path, "backend"), metadata(tmp_path, "fallbacks"), strict=True))
    assert backends == {"compiled": "", "eager": "verify"}
    figure = "figure", tmp_path / "r", "--plugin", "mine", "--out", tmp_path / "f.svg"
    _, err = rsdbench(*figure, cwd=tmp_path, code=2)
    assert "Looks (for its verify step) fell back to the eager backend beside others that did not" in err
    for more in (["--allow-mixed"], ["--methods", "sd"], ["--columns", "mbsu"]):
        rsdbench(*figure, *more, cwd=tmp_path)
    out, _ = rsdbench("table", tmp_path / "r", "--plugin", "mine", cwd=tmp_path)
    assert "fallback: Looks (for its verify step) fell back to the eager backend" in out
