"""The certificate as users run it: every registered method passes, every mutant is rejected, bad input is refused.

The reduced certificate has a fixed seed; its p-values together fail by chance with probability 1e-3.
"""

import itertools
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
import scipy.stats
import torch

from rsdbench import methods
from rsdbench.backends.aot.library import compiler_at_hand
from rsdbench.backends.choice import COMPILED, EAGER
from rsdbench.certificate import certify, joint, shipped
from rsdbench.certificate import mutants as broken
from rsdbench.certificate.mutants import SHARP, STALE, T1, mutants
from rsdbench.cli.main import main
from rsdbench.decoding.strategies import Sequences
from rsdbench.methods import METHODS, Method
from rsdbench.runner.cells import RowJob
from rsdbench.runner.compose import row_configs
from rsdbench.sampling.distributions import Sampling
from rsdbench.sources import code_hash
from rsdbench.structures import SEQUENCES
from rsdbench.verification.recursive_rejection import recursive_rejection

from .commands import LONG_ENOUGH

SAMPLES = 20_000
SMALLEST = "OPT-25K-2.6M"
FEW, ALL = "two methods on two rows", "everything"
METHODS_OF = {FEW: ["spectr", "rsd_s"], ALL: list(METHODS)}
COMPILED_ROW = "OPT-25K-2.6M, De-En"


@pytest.fixture(scope="module", params=[FEW, pytest.param(ALL, marks=pytest.mark.slow)])
def certificate(request, tmp_path_factory, compiled_cache):
    """The folder that `rsdbench certify --samples 20000 --out` leaves, its checks, and its methods.

    All methods on all rows and backends take many minutes (-m slow); otherwise level 2 compiles nothing, and of two
    rows one is decoded by compiled code, one eagerly.
    """
    folder, methods = tmp_path_factory.mktemp("certificate"), METHODS_OF[request.param]
    with pytest.MonkeyPatch.context() as patch:
        if request.param == FEW:
            for module in (certify, broken):
                patch.setattr(module, "compiler_at_hand", lambda: False)
            patch.setattr(shipped, "row_configs", lambda overrides: two_rows(row_configs(overrides)))
        main(["certify", *methods, "--samples", str(SAMPLES), "--out", str(folder)])
    return folder, pd.read_parquet(folder / "certificate.parquet"), methods


def two_rows(configs):
    found = {RowJob(config).label: config for config in configs}
    eager = found["OPT-70K-2.6M, Synopsis"]
    eager.compile = False
    return [found[COMPILED_ROW], eager]


def test_every_method_passes_every_level(certificate):
    _, checks, methods = certificate
    honest = checks[~checks.mutant]
    assert (honest.verdict == "pass").all()
    for level in (1, 2):
        assert set(honest[honest.level == level].method) == set(methods)
    rows, drafting = (12 if len(methods) == len(METHODS) else 2), [m for m in methods if METHODS[m].drafts]
    assert set(honest[honest.level == 3].method) == set(drafting)
    assert len(honest[honest.level == 3]) == rows * len(drafting) * 2  # beginnings and scores


def test_the_shipped_models_are_checked_as_runs_decode_them(certificate):
    _, checks, methods = certificate
    forward = COMPILED if compiler_at_hand() else EAGER
    settings = checks[checks.level == 3].setting
    compiled = settings.str.startswith(COMPILED_ROW) | (len(methods) == len(METHODS))
    assert compiled.any()
    assert settings[compiled].str.endswith(f", T = 0.3, {forward}").all()
    assert settings[~compiled].str.endswith(f", T = 0.3, {EAGER}").all()


def test_the_engine_is_checked_for_all_structures_and_samplings(certificate):
    _, checks, methods = certificate
    tested = checks[(checks.level == 2) & ~checks.mutant & checks.p_value.notna()]
    structures = {(m, s or "-") for m in methods for s in joint.structures(m)}
    for setting in ("T = 1", "T = 0.3, top-p 0.9"):
        own = tested[tested.setting == setting]
        assert set(zip(own.method, own.structure, strict=True)) == structures
        assert (own.samples == SAMPLES).all()
        assert (own.freedom > 40).all()
    exact = checks[(checks.level == 2) & checks.p_value.isna()]
    for name in ("prompts that differ from greedy decoding", "prompts that differ at the same seed"):
        own = exact[exact.check == name]
        assert set(zip(own.method, own.structure, strict=True)) == structures
        assert (own.statistic == 0).all()


def test_the_structures_of_level_2_are_those_of_the_smallest_budget_and_one_of_the_largest():
    assert {m: joint.structures(m) for m in ("ar", "sd", "spectr", "rsd_c")} == {
        "ar": [None], "sd": ["6", "30"], "spectr": ["2x3", "3x2", "5x6"], "rsd_c": ["2-1-1", "2-2", "3-1", "2-2-2-2"],
    }  # fmt: skip


def test_bounds_are_shared_by_all_p_values(certificate):
    _, checks, _ = certificate
    tested = checks[checks.p_value.notna() & ~checks.mutant]
    assert tested.bound.to_numpy() == pytest.approx(certify.ALPHA / len(tested))
    assert set(tested.level) == {2, 3}
    assert (checks[checks.mutant].bound == 1e-9).all()


def test_every_mutant_is_rejected(certificate):
    _, checks, methods = certificate
    own = checks[checks.mutant]
    expected = [m for m in mutants(methods) if m.backend == EAGER or len(methods) == len(METHODS)]
    assert sorted(zip(own.check, own.method, strict=True)) == sorted((m.description, m.method) for m in expected)
    assert set(own.method) == set(methods)
    assert (own.p_value < 1e-9).all()
    assert (own.verdict == "rejected").all()


def test_the_report_says_what_each_check_would_have_found(certificate):
    folder, checks, _ = certificate
    honest = checks[~checks.mutant]
    assert honest.finds.between(0, 100).all()
    engine = honest[(honest.level == 2) & (honest.setting == "T = 1")].dropna(subset="p_value")
    assert engine.finds.between(0.02, 0.06).all(), "of 20,000 continuations and some 430 outcomes"
    first = honest[(honest.level == 3) & honest.freedom.notna() & (honest.freedom > 0)]
    assert first.finds.between(0.15, 1).all(), "40 beginnings a row say little, and that is printed"
    page = (folder / "certificate.md").read_text()
    assert "would find" in page
    assert f"TV {engine.finds.max():.2g}" in page


def test_deviations_of_the_stated_size_are_found_as_often_as_is_said():
    """Laws that differ by the stated total variation, 400 times 20,000 draws: binomial, false alarm 1e-3."""
    rng, outcomes, samples, bound = np.random.default_rng(3), 100, 20_000, 1e-5
    check = pd.Series({"mutant": False, "p_value": 0.5, "freedom": outcomes - 1, "bound": bound, "level": 2,
                       "samples": samples})  # fmt: skip
    size = 2 * certify.found_from(check)
    law = np.full(outcomes, 1 / outcomes)
    other = law * (1 + size * np.where(np.arange(outcomes) % 2, 1, -1))
    assert 0.5 * np.abs(other - law).sum() == pytest.approx(size / 2)
    p_values = [scipy.stats.chisquare(rng.multinomial(samples, other), samples * law).pvalue for _ in range(400)]
    assert scipy.stats.binom.cdf(sum(p < bound for p in p_values), 400, certify.POWER) > 1e-3


def test_level_1_alone_takes_seconds_and_claims_no_power(capsys):
    main(["certify", "--levels", "1"])
    page = capsys.readouterr().out
    assert "no mutants were tried" in page
    assert "## Level 2" not in page


def test_files_say_where_they_come_from(certificate):
    folder, checks, _ = certificate
    assert sorted(f.name for f in folder.iterdir()) == ["certificate.md", "certificate.parquet"]
    metadata = pq.read_schema(folder / "certificate.parquet").metadata
    assert metadata[b"rsdbench.code"].decode() == code_hash() == checks.code[0]
    assert checks.torch[0] == torch.__version__
    page = (folder / "certificate.md").read_text()
    assert page.startswith("# Certificate of losslessness\n\n**Passed**: ")
    for text in ("RSD-S", "SpecTr", "5x6", "## Power", "rejected", torch.__version__, code_hash()):
        assert text in page
    assert len(page.splitlines()) < 150


def test_mutants_leave_the_engine_as_it_was():
    structure = {"ar": None, "sd": "6", "spectr": "3x2", "rsd_c": "3-1", "rsd_s": "3x2"}
    before = {m: joint.sampled(m, s, 5) for m, s in structure.items()}
    registry = dict(METHODS)
    for mutant in mutants(METHODS):
        with mutant.broken():
            joint.sampled(mutant.method, mutant.structure, 5)
    assert registry == METHODS
    assert {m: joint.sampled(m, s, 5) for m, s in structure.items()} == before


def test_stale_noise_shows_in_the_joint_law_alone():
    """Why level 2 looks at three tokens: the first one's law is right. False alarm 1e-3."""
    mutant = next(m for m in mutants(["rsd_s"]) if m.description == STALE)
    observed = joint.count_with(mutant, range(2), seed=1)
    assert joint.chi_square(observed, mutant.sampling)[2] < 1e-9
    for prompt, counts in zip(joint.PROMPTS, observed, strict=True):
        law = joint.exact_joint_law(prompt, mutant.sampling).view(joint.VOCABULARY, -1).sum(1)
        first = counts.view(joint.VOCABULARY, -1).sum(1)
        assert (first[law == 0] == 0).all()
        expected = (law * first.sum())[law > 0]
        assert scipy.stats.chisquare(first[law > 0].numpy(), expected.numpy()).pvalue > 1e-3 / len(joint.PROMPTS)


def test_a_method_registered_today_is_certified_and_a_wrong_one_fails(monkeypatch, tmp_path, capsys):
    """Recursive rejection is not lossless for independent drafts, which levels 1 and 2 must both see."""
    monkeypatch.setattr(shipped, "row_configs", lambda overrides: [])  # levels 1 and 2 are enough
    for module in (certify, broken):
        monkeypatch.setattr(module, "compiler_at_hand", lambda: False)
    monkeypatch.setitem(
        methods.METHODS,
        "new",
        Method("New", SEQUENCES, METHODS["spectr"].structures, Sequences, recursive_rejection, independent=True),
    )
    with pytest.raises(SystemExit) as stop:
        main(["certify", "new", "--samples", str(SAMPLES), "--out", str(tmp_path)])
    assert stop.value.code == 1
    checks = pd.read_parquet(tmp_path / "certificate.parquet")
    assert set(checks.method) == {"new"}
    assert set(checks[checks.verdict == "fail"].level) == {1, 2}
    assert (checks[(checks.level == 2) & (checks.setting == "T = 1")].p_value.dropna() < 1e-9).all()
    assert (checks[checks.setting == "T = 0"].verdict == "pass").all()
    assert checks.mutant.sum() == 3, "a method that nobody knows has mutants too"
    out = capsys.readouterr().out
    assert "**FAILED**" in out
    assert "| New" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["medusa"], "unknown method 'medusa': choose from ar, sd, "),
        (["--samples", "100"], "--samples must be at least 20,000, not 100"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--out", "/proc/nowhere"], "'/proc/nowhere' cannot be written"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["certify", *arguments])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_interrupt_is_one_line_and_leaves_no_worker(tmp_path):
    command = [sys.executable, "-m", "rsdbench", "certify", "--samples", "1000000", "--out", str(tmp_path / "out")]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background inherits "ignore"
    )  # fmt: skip
    main_process, workers = psutil.Process(running.pid), []
    try:
        deadline = time.monotonic() + LONG_ENOUGH
        while not workers or not (tmp_path / "out").is_dir():
            assert time.monotonic() < deadline
            time.sleep(0.2)
            workers = main_process.children()
        time.sleep(1)
        for process in (*workers, main_process):  # as a terminal does
            process.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=LONG_ENOUGH)
        assert (running.returncode, out, err) == (130, "", "rsdbench: interrupted\n")
        assert not psutil.wait_procs(workers, timeout=LONG_ENOUGH)[1]
    finally:
        for process in (*workers, main_process):
            if process.is_running():
                process.kill()
    assert list((tmp_path / "out").iterdir()) == []


def test_the_tiny_laws_depend_on_context():
    """Otherwise level 2 would be blind to errors in cache, positions and masks."""
    laws = [joint.exact_joint_law(p, T1) for p in joint.PROMPTS]
    for first, second in itertools.combinations(laws, 2):
        assert 0.5 * (first - second).abs().sum() > 0.1
    for law in laws:
        cube = law.view((joint.VOCABULARY,) * 3)
        given_last = cube.sum(0) / cube.sum((0, 2)).unsqueeze(1)  # law of the third token given the second alone
        given_both = cube / cube.sum(2, keepdim=True)
        assert (given_both - given_last).abs().max() > 0.05


def test_the_exact_law_is_the_product_of_plain_forwards():
    target, prompt = joint.tiny_pair().target, joint.PROMPTS[0]
    law = joint.exact_joint_law(prompt, SHARP)
    assert float(law.sum()) == pytest.approx(1, abs=1e-9)
    for index in (0, 7, 101, 215):
        tokens = joint.continuations()[index].tolist()
        chance = 1.0
        for i, token in enumerate(tokens):
            with torch.no_grad():
                logits = target(input_ids=torch.tensor([[*prompt, *tokens[:i]]])).logits[0, -1]
            chance *= float(SHARP.probs(logits)[token])
        assert float(law[index]) == pytest.approx(chance, abs=1e-6)


@pytest.mark.parametrize("sampling", [T1, SHARP, Sampling.at(0.05)], ids=str)
def test_p_values_of_true_samples_are_uniform(sampling):
    """Counts drawn from the law itself: 300 p-values by Kolmogorov-Smirnov, false alarm 1e-3 each."""
    rng = np.random.default_rng(0)
    laws = [joint.exact_joint_law(p, sampling).numpy() for p in joint.PROMPTS]
    counts = (torch.from_numpy(np.stack([rng.multinomial(5000, law / law.sum()) for law in laws])) for _ in range(300))
    p_values = [joint.chi_square(c, sampling)[2] for c in counts]
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_a_token_that_the_target_cannot_emit_is_never_overlooked():
    laws = [joint.exact_joint_law(p, SHARP) for p in joint.PROMPTS]
    counts = torch.stack([(law * 1e6).round().long() for law in laws])
    assert joint.chi_square(counts, SHARP)[2] > 0.99
    counts[1, int((laws[1] == 0).nonzero()[0])] = 1
    assert joint.chi_square(counts, SHARP) == (float("inf"), 1, 0.0)


def test_two_samples_of_one_law_agree_and_of_two_laws_do_not():
    """300 p-values of equal laws by Kolmogorov-Smirnov, false alarm 1e-3; another law must be found at once."""
    rng = np.random.default_rng(1)

    def sample(law):
        return Counter({(i,): int(n) for i, n in enumerate(rng.multinomial(400, law)) if n})

    def p_value(first, second):
        return joint.upper_tail(*shipped.two_sample(sample(first), sample(second)))

    law = rng.dirichlet(np.full(12, 2.0))
    assert scipy.stats.kstest([p_value(law, law) for _ in range(300)], "uniform").pvalue > 1e-3
    assert p_value(law, law[::-1]) < 1e-9


@pytest.mark.parametrize("metric", ["bleu", "rouge2"])
def test_score_differences_are_found_and_not_invented(metric):
    """Texts of equal quality: p-values are not small more often than they should; worse texts are noticed."""
    rng = np.random.default_rng(2)
    words = [f"word{i}" for i in range(30)]

    def sample(references, errors):
        texts = [" ".join(w if rng.random() > errors else "oops" for w in r.split()) for r in references]
        return shipped.Sample([], texts, references, EAGER)

    p_values = []
    for _ in range(40):
        references = [" ".join(rng.choice(words, 12)) for _ in range(24)]
        p_values.append(shipped.score_difference(sample(references, 0.2), sample(references, 0.2), metric, 0).p_value)
    assert np.mean(np.array(p_values) < 0.05) < 0.2  # binomial tail of 40 at 0.05: 3e-4
    worse = shipped.score_difference(sample(references, 0.5), sample(references, 0.1), metric, 0)
    assert worse.value < worse.high < 0
    assert worse.p_value < 1e-3
    same = sample(references, 0.3)
    assert shipped.score_difference(same, same, metric, 0) == (0.0, 0.0, 0.0, 1.0)
