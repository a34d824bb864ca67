"""The check for GPUs, run on the CPU: whole, on tiny shapes, and with traced graphs in place of CUDA graphs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rsdbench.backends.choice import EAGER, GRAPHED
from rsdbench.backends.cuda_graphs import graphs
from rsdbench.backends.cuda_graphs.engine import CudaGraphsBackend
from rsdbench.pair import Pair, parameters

from .recordings import graphed, traced

SCRIPTS = Path(__file__).parents[1] / "scripts"
CPU = torch.device("cpu")
ABSENT = ("hydra", "omegaconf", "datasets", "pandas", "pyarrow", "rich", "accelerate", "sacrebleu", "matplotlib")


@pytest.fixture(scope="module")
def gpu():
    """The scripts `gpu_check`, `gpu_measure` and `gpu_report`, imported as the script itself imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        import gpu_check
        import gpu_measure
        import gpu_report

        yield type("Scripts", (), {"check": gpu_check, "measure": gpu_measure, "report": gpu_report})


def tiny(gpu, width=16, **changes):
    return gpu.measure.opt(width, 1, 2, 2 * width, vocab_size=64, max_position_embeddings=64, init_std=0.3, **changes)


def settings_of(gpu, **changes):
    drafters = {"D": tiny(gpu, 8), "E": tiny(gpu, 8, word_embed_proj_dim=4, do_layer_norm_before=False)}
    own = {
        "device": CPU, "dtype": torch.bfloat16, "forwards": (EAGER,), "targets": {"T": tiny(gpu)}, "drafters": drafters,
        "small": tiny(gpu), "budgets": (6, 10, 14), "prompt": 8, "new_tokens": 2, "compared_tokens": 6, "rounds": 1,
        "calls": 1, "copied_bytes": 2**16, "seconds": 300.0,
    }  # fmt: skip
    return gpu.measure.Settings(**{**own, **changes})


def run(gpu, folder, settings):
    """Exit code, and what the file holds at the end."""
    report = gpu.report.Report(folder / gpu.check.file_name(CPU), gpu.check.origin(settings, ["gpu_check.py", "OUT"]))
    gpu.check.check(report, settings)
    code = report.finish()
    return code, json.loads((folder / "gpu_cpu.json").read_text())


@pytest.fixture(scope="module")
def whole(gpu, tmp_path_factory):
    return run(gpu, tmp_path_factory.mktemp("gpu"), settings_of(gpu))


def test_a_whole_check(whole):
    code, data = whole
    assert code == 0
    assert data["failed"] == data["skipped"] == []
    assert data["state"] == "finished"
    assert data["argv"] == ["gpu_check.py", "OUT"]
    assert data["torch"] == torch.__version__
    assert data["dtype"] == "bfloat16"
    assert not {"host", "job"} & set(data)
    assert data["same_tokens"] == {"decoded": 2 * 9, "differing": []}
    assert all(d["step_ms"][EAGER] > 0 for d in data["drafters"].values())
    target = data["targets"]["T"]
    assert list(target["forward_ms"][EAGER]) == ["1", "7", "11", "15"]
    ar = target["ar"][EAGER]
    assert ar["gb_per_s"] == pytest.approx(target["weights_gib"] * 2**30 / ar["ms_per_token"] / 1e6)
    assert ar["share_of_copy"] > 0


def test_every_method_at_every_budget_and_the_outer_ones_with_the_second_drafter(whole):
    _, data = whole
    found = {(c["drafter"], c["method"], c["budget"]) for c in data["cases"]}
    methods = ("sd", "spectr", "rsd_c", "rsd_s")
    assert found == {("D", m, b) for m in methods for b in (6, 10, 14)} | {
        ("E", m, b) for m in methods for b in (6, 14)
    }
    assert len(found) == len(data["cases"])
    for case in data["cases"]:
        assert case["token_rate"] == pytest.approx(case["block_efficiency"] * case["ar_over_block"])
        assert case["outside"] < 1
        assert case["bare_ms"] > 0


def test_block_efficiency_is_the_papers_and_lies_on_a_line_between_its_readings(gpu, whole):
    assert gpu.report.given_block_efficiency("sd", 18) == 1.45
    rates = {(c["method"], c["budget"]): c["paper_token_rate"] for c in whole[1]["cases"]}
    assert rates["sd", 6] == 0.5
    assert rates["rsd_s", 14] is None


def test_tables_are_for_people(gpu, whole, tmp_path, capsys):
    printed = gpu.report.text(whole[1])
    for word in (
        "1 rows ms",
        "15/1",
        "RSD-S",
        "2-1-1-1-1-1-1",
        "BE given",
        "D, ms per drafter step",
        "< 0.6",
        "not met",
    ):
        assert word in printed
    assert max(map(len, printed.splitlines())) < 200


@pytest.mark.parametrize(
    ("name", "count"),
    [("OPT-125M", 125_239_296), ("OPT-350M", 331_196_416), ("OPT-13B", 12_853_473_280), ("OPT-30B", 29_974_540_288),
     ("OPT-66B", 65_719_701_504)],
)  # fmt: skip
def test_shapes_are_the_papers(gpu, name, count):
    config = {**gpu.measure.TARGETS, **gpu.measure.DRAFTERS}[name]
    model = gpu.measure.random_model(config, torch.device("meta"), torch.bfloat16)
    assert parameters(model) == count
    assert gpu.measure.weight_bytes(model) == 2 * count


def test_models_are_made_in_their_type_and_the_same_again(gpu):
    one, two = (gpu.measure.random_model(tiny(gpu), CPU, torch.bfloat16) for _ in range(2))
    assert {p.dtype for p in one.parameters()} == {torch.bfloat16}
    assert not one.training
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def graphs_on_the_cpu(gpu, monkeypatch, method):
    """Traced graphs for CUDA graphs, and a single method: tracing is slow."""
    for module in (gpu.check, gpu.measure):
        monkeypatch.setattr(
            module, "cases", lambda budgets, real=module.cases: [c for c in real(budgets) if c[0] == method]
        )
    monkeypatch.setattr(graphs, "record", lambda *recorded: traced(*recorded))
    monkeypatch.setattr(Pair, "compile", graphed)


def test_with_graphs_and_without(gpu, tmp_path, monkeypatch):
    graphs_on_the_cpu(gpu, monkeypatch, "rsd_s")
    settings = settings_of(gpu, forwards=(GRAPHED, EAGER), budgets=(6,), drafters={"D": tiny(gpu, 8)})
    code, data = run(gpu, tmp_path, settings)
    assert (code, data["failed"]) == (0, [])
    assert data["same_tokens"] == {"decoded": 2 * 2 * 2, "differing": []}
    assert [c["forwards"] for c in data["cases"]] == [GRAPHED]
    assert set(data["targets"]["T"]["ar"]) == set(data["drafters"]["D"]["step_ms"]) == {GRAPHED, EAGER}


def test_other_tokens_with_graphs_are_a_failure(gpu, tmp_path, monkeypatch):
    graphs_on_the_cpu(gpu, monkeypatch, "sd")
    real = CudaGraphsBackend.score
    monkeypatch.setattr(CudaGraphsBackend, "score", lambda backend, tree: real(backend, tree).flip(-1))
    settings = settings_of(gpu, forwards=(GRAPHED, EAGER), budgets=(6,), drafters={}, targets={})
    code, data = run(gpu, tmp_path, settings)
    assert code == 1
    assert len(data["same_tokens"]["differing"]) == 2 * 2
    assert data["failed"][0]["part"] == "same tokens"
    assert "sd 6, CUDA graphs, 8 tokens of prompt" in data["failed"][0]["error"]


def test_a_part_that_fails_leaves_the_others(gpu, tmp_path, monkeypatch):
    real = gpu.check.block_times

    def failing(pair, method, *rest):
        if method == "spectr":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return real(pair, method, *rest)

    monkeypatch.setattr(gpu.check, "block_times", failing)
    code, data = run(gpu, tmp_path, settings_of(gpu, budgets=(6,), drafters={"D": tiny(gpu, 8)}))
    assert code == 1
    assert data["failed"] == [{"part": "T, D, SpecTr 2x3", "error": "CUDA out of memory."}]
    assert [c["method"] for c in data["cases"]] == ["sd", "rsd_c", "rsd_s"]
    assert data["state"] == "finished"


def test_what_does_not_fit_is_skipped_with_its_size(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.check, "free_memory", lambda device: 7 * 2**30)
    code, data = run(gpu, tmp_path, settings_of(gpu, drafters={}))
    assert (code, data["targets"]) == (0, {})
    assert data["skipped"] == [{"part": "T", "reason": "needs 8.0 GiB, and 7.0 are free"}]


def test_nothing_is_begun_when_the_time_is_used_up(gpu, tmp_path, monkeypatch):
    code, data = run(gpu, tmp_path, settings_of(gpu, drafters={}, seconds=0.0))
    assert (code, data["skipped"]) == (0, [{"part": "T", "reason": "no time left"}])
    settings = settings_of(gpu, drafters={"D": tiny(gpu, 8)})
    report = gpu.report.Report(tmp_path / "late.json", gpu.check.origin(settings, []))
    report.data["drafters"]["D"] = {}
    drafter = gpu.measure.random_model(settings.drafters["D"], CPU, torch.bfloat16)
    gpu.check.check_target(report, settings, "T", {"D": drafter}, until=0.0)
    assert report.data["cases"] == []
    assert report.data["skipped"] == [{"part": "T, D, SD 14", "reason": "no time left for it and 11 more of this pair"}]
    assert report.data["targets"]["T"]["ar"], "the target alone comes first"


def test_the_file_says_where_it_comes_from_before_the_first_measurement(gpu, tmp_path, monkeypatch):
    seen = {}

    def measured(settings):
        seen.update(json.loads((tmp_path / "gpu_cpu.json").read_text()))
        raise RuntimeError("the card fell off")

    monkeypatch.setattr(gpu.check, "same_tokens", measured)
    code, data = run(gpu, tmp_path, settings_of(gpu, drafters={}, targets={}))
    assert (code, data["failed"][0]["error"]) == (1, "the card fell off")
    assert (seen["state"], seen["part"]) == ("running", "same tokens")
    assert {"torch", "transformers", "device", "argv", "code", "started"} <= set(seen)


def test_weights_that_give_nan_are_not_measured(gpu):
    target = gpu.measure.random_model(tiny(gpu), CPU, torch.bfloat16)
    with torch.no_grad():
        target.lm_head.weight[3] = float("nan")
    with pytest.raises(ArithmeticError, match="NaN"):
        gpu.measure.forward_times(Pair(target, target), settings_of(gpu))


def shell(*arguments, **environment):
    command = ["bash", str(SCRIPTS / "gpu_check.sh"), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd="/", env={**os.environ, **environment}
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_line(tmp_path):
    ran = shell(tmp_path / "out", PYTHON=sys.executable)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.splitlines() == ["gpu_check: no CUDA device here: run it on a machine that has one"]
    assert not (tmp_path / "out").exists()


def test_a_python_without_torch_is_one_line():
    ran = shell(PYTHON="/bin/false")
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == [
        "gpu_check: /bin/false has no torch and transformers: name a python that has both, PYTHON=/path/to/python"
    ]


def test_a_check_that_is_cut_off_says_where_the_rest_is(tmp_path):
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\n[ "$1" = -c ] || exit 124\n')  # as `timeout` answers
    stub.chmod(0o755)
    ran = shell("some/folder", PYTHON=str(stub))
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [
        "gpu_check: stopped after 530 seconds; what was measured before is in some/folder"
    ]


def test_the_shell_and_the_script_have_the_same_time(gpu):
    assert f'seconds="${{2:-{gpu.measure.Settings.seconds:.0f}}}"' in (SCRIPTS / "gpu_check.sh").read_text()


@pytest.mark.parametrize("seconds", ["0", "soon", "-5", "1.5"])
def test_a_time_that_is_no_number_is_one_line(seconds):
    ran = shell("some/folder", seconds, PYTHON=sys.executable)
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == [
        f"gpu_check: SECONDS must be a whole number of seconds such as 460, not '{seconds}'"
    ]


def test_torch_and_transformers_are_all_it_imports():
    code = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); sys.path.insert(0, {str(SCRIPTS)!r}); "
    code += "import gpu_check, rsdbench; rsdbench.generate, rsdbench.Pair"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (ran.returncode, ran.stderr) == (0, "")
