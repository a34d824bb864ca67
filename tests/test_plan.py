"""`rsdbench plan` for another machine: what needs neither models nor data here."""

import json
import subprocess
import sys

import pytest
import yaml
from huggingface_hub import constants

from rsdbench.cli.main import main
from rsdbench.runner.compose import CONFIGS, row_configs
from rsdbench.runner.estimate import estimate
from rsdbench.runner.footprint import Workload
from rsdbench.runner.plan import planned_rows
from rsdbench.selection import points_of

from .commands import ROOT, SMALL

HARDWARE = ("a100-40gb", "a100-80gb", "cpu", "h100-80gb", "h200-141gb", "l40s-48gb", "rtx4090-24gb")
PAPER_ROW = ["experiment=paper", "drafter=opt-125m", "target=opt-66b", "dataset=wmt"]
PARAMETERS = {
    "125M": 125_239_296, "350M": 331_196_416, "13B": 12_853_473_280, "30B": 29_974_540_288, "66B": 65_719_701_504,
}  # fmt: skip


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """A machine whose hub cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def plan(capsys, *arguments):
    main(["plan", *arguments])
    return capsys.readouterr().out


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_papers_grid_is_planned_where_nothing_of_it_is(capsys, no_hub, tmp_path):
    out = plan(capsys, "experiment=paper", "hardware=h100-80gb", "--json", str(tmp_path / "plan.json"))
    found = json.loads((tmp_path / "plan.json").read_text())
    labels = [f"OPT-{d}-{t}, {s}" for d in ("125M", "350M") for t in ("13B", "30B", "66B") for s in ("WMT", "XSum")]
    assert [row["label"] for row in found["rows"]] == labels
    assert all(label in out for label in labels)
    assert "12 row jobs, 492 cells, 492 of them to run" in out
    for row in found["rows"]:
        drafter, target = row["label"].split(",")[0].split("-")[1:]
        assert row["memory_gib"]["drafter"] == pytest.approx(2 * PARAMETERS[drafter] / 2**30)
        assert row["memory_gib"]["target"] == pytest.approx(2 * PARAMETERS[target] / 2**30)
        assert (row["cells"], row["done"]) == (41, 0)
        assert row["fit"]["text"] in out
        assert row["hardware"]["name"] == "h100-80gb"
    fits = {row["label"].partition("-")[2]: row["fit"]["text"] for row in found["rows"]}
    own = {label: text for label, text in fits.items() if "66B" not in label}
    assert set(own.values()) == {"fits one card"}, "and the others do as int4"
    assert {text for label, text in fits.items() if label not in own} == {"fits one card as int4"}
    for name in ("hours", "gpu_hours"):
        sums = {end: sum(row[name][end] for row in found["rows"] if row[name]) for end in ("low", "high")}
        assert found["total"]["h100-80gb"][name] == pytest.approx(sums)
    assert f"{found['total']['h100-80gb']['hours']['low']:.2f}-" in out
    assert all(line in out.replace("\n", " ") for line in found["assumptions"])


def test_json_on_standard_output_is_all_there_is(capsys, no_hub):
    found = json.loads(plan(capsys, "--json", "-", *PAPER_ROW, "hardware=h100-80gb,h200-141gb"))
    assert [row["hardware"]["name"] for row in found["rows"]] == ["h100-80gb", "h200-141gb"]
    assert [row["fit"]["text"] for row in found["rows"]] == ["fits one card as int4", "fits one card as int8"]
    assert list(found["total"]) == ["h100-80gb", "h200-141gb"]


def test_a_plan_without_hardware_is_for_this_machine(capsys, no_hub):
    line = refused(capsys, *PAPER_ROW)
    assert line.startswith("rsdbench: model 'facebook/opt-125m' is not on disk and HF_HUB_OFFLINE is set")
    (row,) = json.loads(plan(capsys, *SMALL, "--json", "-"))["rows"]
    assert "memory_gib" not in row
    assert "1 row jobs, 2 cells, 2 of them to run" in plan(capsys, *SMALL)


def test_a_manifest_is_of_what_can_run_here(capsys, no_hub):
    line = refused(capsys, *PAPER_ROW, "hardware=h100-80gb", "--manifest", "m.jsonl")
    assert "is not on disk" in line
    out = plan(capsys, *SMALL, "hardware=cpu", "--manifest", "m.jsonl")
    assert "1 tasks. On this machine: rsdbench run --manifest m.jsonl --task N" in out
    assert "fits" in out


def test_bad_hardware_is_one_line(capsys, no_hub):
    line = refused(capsys, *PAPER_ROW, "hardware=tpu")
    assert line == f"rsdbench: unknown hardware 'tpu': choose from {', '.join(HARDWARE)}"
    assert "hardware.cards" in refused(capsys, *PAPER_ROW, "hardware.cards=8")
    assert "hardware.cards must be" in refused(capsys, *PAPER_ROW, "hardware=cpu", "hardware.cards=x")
    line = refused(capsys, *PAPER_ROW, "hardware=cpu", "target.path=some/model")
    assert "nothing here says how large model 'some/model' is" in line


@pytest.mark.parametrize("name", HARDWARE)
def test_every_hardware_composes_and_estimates(name):
    assert {file.stem for file in (CONFIGS / "hardware").glob("*.yaml")} == set(HARDWARE)
    assert yaml.safe_load((CONFIGS / "hardware" / f"{name}.yaml").read_text())["name"] == name
    row = ["drafter=opt-25k", "target=opt-13.2m", "dataset=wmt", f"hardware={name}", "hardware.cards=8"]
    (config,) = row_configs(row)
    work = Workload.of(config, points_of(config))
    assert work.hardware.cards == 8
    assert work.memory(None, work.batch).target == pytest.approx((2 if name != "cpu" else 4) * 13.2e6 / 2**30, rel=0.02)
    found = estimate(work, work.points)
    assert found.fit.needed == 1
    assert 0 < found.hours.low < found.hours.high < 1
    assert found.gpu_hours.low == (0 if name == "cpu" else found.hours.low)


def test_hardware_is_no_part_of_a_cell():
    (plain,), (planned,) = planned_rows(SMALL), planned_rows([*SMALL, "hardware=h100-80gb"])
    assert [cell.id for cell in plain.cells] == [cell.id for cell in planned.cells]


def test_cells_that_are_done_are_not_counted_again(capsys, tmp_path):
    row = [*SMALL, "hardware=cpu", f"results={tmp_path}"]
    (before,) = json.loads(plan(capsys, *row, "--json", "-"))["rows"]
    (planned,) = planned_rows(row)
    path = planned.cells[0].path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1" + bytes(100) + b"PAR1")  # begins and ends as a record does
    (after,) = json.loads(plan(capsys, *row, "--json", "-"))["rows"]
    assert (before["done"], after["done"]) == (0, 1)
    assert after["hours"]["low"] < before["hours"]["low"]
    assert after["memory_gib"] == before["memory_gib"]


def test_a_plan_loads_no_model():
    code = """
import sys
from rsdbench.cli.main import main
main(["plan", "experiment=paper", "target=opt-66b", "dataset=wmt", "hardware=cpu", "--json", "-"])
import torch
print([n for n in sys.modules if n.startswith("transformers.models.") and "modeling" in n], file=sys.stderr)
print("transformers.modeling_utils" in sys.modules, torch.cuda.is_initialized(), file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert len(json.loads(ran.stdout)["rows"]) == 2
    assert ran.stderr.splitlines() == ["[]", "False False"]
