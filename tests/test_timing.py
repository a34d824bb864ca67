"""Token rates that a stall cannot bend: times of blocks, turns that are taken again, intervals over turns."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from omegaconf import OmegaConf

from rsdbench.backends import clock
from rsdbench.results import metrics
from rsdbench.results.results import COLUMNS, with_steady_times
from rsdbench.results.stalls import without_stalls
from rsdbench.runner.plan import planned_rows
from rsdbench.runner.run import RowRunner, place
from rsdbench.runner.timing import OFF, RETAKES, Reference, Turn, take

STALL_US = 2_000_000


def rate_of(frame):
    return metrics.TOKEN_RATE.estimate(metrics.Sample(frame))


def test_without_stalls_nothing_changes():
    random = np.random.default_rng(0)
    blocks, prompts = random.uniform(1, 2.5, 500), random.integers(8, size=500)
    assert (without_stalls(blocks, prompts) == blocks).all()
    assert len(without_stalls(np.array([]), np.array([]))) == 0


def test_a_stalled_block_counts_like_a_quick_one_of_its_prompt():
    blocks = np.array([1.0, 9.0, 1.2, 20.0, 21.0, 59.9, 7.0])
    prompts = np.array([3, 3, 3, 1, 1, 1, 2])
    assert without_stalls(blocks, prompts).tolist() == [1.0, 1.0, 1.2, 20.0, 21.0, 59.9, 7.0]
    assert without_stalls(np.array([500.0, 1.0]), np.zeros(2, int)).tolist() == [1.0, 1.0], "of two the lower one"


def test_a_turn_that_is_disturbed_all_along_moves_nothing():
    """As by another program's threads: every block of one of the method's turns takes 300 times as long."""
    own, ar, tokens = quiet_cell()
    quiet = rate_of(frame_of(own, ar, tokens)).value
    for turn in range(len(own)):
        disturbed = [[300 * b for b in blocks] if i == turn else blocks for i, blocks in enumerate(own)]
        if len(own[turn]) <= 0.75 * (len(own[turn]) + len(own[turn ^ 1])):
            assert rate_of(frame_of(disturbed, ar, tokens)).value == pytest.approx(quiet, rel=0.02)


def frame_of(own, ar, tokens, stalled=None):
    """Records of a cell's turns: lists of blocks, us, by prompt and turn. stalled: who, which turn, which block."""
    own, ar = ([blocks and list(blocks) for blocks in turns] for turns in (own, ar))
    if stalled:
        who, turn, block = stalled
        (own, ar)[who][turn][block] += STALL_US
    n = len(own)
    columns = {
        "cell_id": ["c"] * n, "prompt_id": [f"p{i // 2}" for i in range(n)], "turn": [i % 2 for i in range(n)],
        "phase": ["speed"] * n, "new_tokens": tokens, "ar_new_tokens": [len(x or ()) for x in ar], "steady": [True] * n,
        "block_us": own, "ar_block_us": ar, "decode_s": [sum(x) / 1e6 if x else 7.0 for x in own],
        "ar_decode_s": [sum(x) / 1e6 if x else 7.0 for x in ar],
    }  # fmt: skip
    rest = {name: [None] * n for name in COLUMNS if name not in columns}
    return with_steady_times(pa.table({**columns, **rest}))


def test_records_without_times_of_blocks_count_with_all_their_seconds():
    frame = frame_of([[900] * 5, None], [[500] * 5, None], [9, 9])
    assert frame.steady_s.tolist() == [0.0045, 7.0]
    assert frame.ar_steady_s.tolist() == [0.0025, 7.0]


def quiet_cell(seed=0, prompts=4):
    """Times of blocks as on a quiet machine: a slower first block, a slow growth, some noise."""
    random = np.random.default_rng(seed)

    def blocks(count, base):
        times = base * (1 + 0.002 * np.arange(count)) * random.gamma(400, 1 / 400, count)
        times[0] *= 1.5
        return times.round().astype(int).tolist()

    counts = random.integers(5, 20, 2 * prompts)
    return [blocks(n, 900) for n in counts], [blocks(32, 500) for _ in counts], [round(1.7 * n) for n in counts]


def test_on_a_quiet_machine_the_rate_is_the_plain_ratio():
    for seed in range(5):
        frame = frame_of(*quiet_cell(seed))
        assert rate_of(frame).value == pytest.approx(metrics.plain_token_rate(frame), rel=1e-2)


def test_a_stall_in_any_one_block_moves_nothing():
    """Every block of every turn in turn, of the method and of AR; the plain ratio is bent beyond use."""
    own, ar, tokens = quiet_cell()
    quiet, bent = rate_of(frame_of(own, ar, tokens)), []
    for who, turns in enumerate((own, ar)):
        for turn, blocks in enumerate(turns):
            for block in range(len(blocks)):
                frame = frame_of(own, ar, tokens, (who, turn, block))
                value, *ends = rate_of(frame)
                assert value == pytest.approx(quiet.value, rel=0.01)
                assert ends == pytest.approx(quiet[1:], rel=0.03)
                bent.append(metrics.plain_token_rate(frame) / quiet.value)
    assert min(bent) < 0.1
    assert max(bent) > 10


class StalledClock:
    """Stands for the module `time`: each look takes a millisecond, and one of them two seconds more."""

    def __init__(self, at):
        self.at, self.looks = at, 0

    def perf_counter(self):
        self.looks += 1
        return 1e-3 * self.looks + 2.0 * (self.looks > self.at)


@pytest.fixture(scope="module")
def row():
    overrides = [
        "experiment=smoke", "drafter=opt-25k", "target=opt-2.6m", "dataset=wmt", "methods=[rsd_s]", "budgets=[6]",
        "speed.num_prompts=2", "dataset.num_prompts=6", "decode.max_new_tokens=8", "results=unused",
    ]  # fmt: skip
    (planned,) = planned_rows(overrides)
    runner = RowRunner(planned.row)
    return runner, planned.row.cells[-1]


def timed(row, monkeypatch, at):
    """The cell's token rate by a clock that stalls at a look, and how often that clock was looked at."""
    runner, cell = row
    runner.reference = Reference()
    stalled = StalledClock(at)
    monkeypatch.setattr(clock, "time", stalled)
    rows = {(r["prompt_id"], r["turn"]): r for batch in runner.speed(cell, {}) for r in batch}
    table = pa.table({name: [r.get(name) for r in rows.values()] for name in [*COLUMNS, "block_us", "ar_block_us"]})
    return rate_of(with_steady_times(table)), stalled.looks


def test_a_clock_that_stalls_in_a_run_moves_no_point(row, monkeypatch):
    quiet, looks = timed(row, monkeypatch, at=10**9)
    random = np.random.default_rng(0)
    for at in random.integers(1, looks, 12):
        rate, _ = timed(row, monkeypatch, at)
        assert rate.value == pytest.approx(quiet.value, rel=0.02), at


@pytest.mark.parametrize(("asked", "prompts"), [(None, 6), (100.0, 2), (1e-9, 6)])
def test_timing_ends_when_the_interval_is_as_narrow_as_asked(row, monkeypatch, asked, prompts):
    runner, cell = row
    monkeypatch.setattr("rsdbench.runner.run.PROMPTS_AT_ONCE", 2)
    monkeypatch.setattr(
        runner, "config", OmegaConf.merge(runner.config, {"speed": {"num_prompts": 6, "half_width": asked}})
    )
    rows = {}
    for batch in runner.speed(cell, rows):
        rows |= {place(record): record for record in batch}
    assert len({prompt for _, prompt, _ in rows}) == prompts
    assert len(rows) == prompts * runner.config.speed.turns
    again = dict(rows)
    assert not list(runner.speed(cell, again)), "what was kept is not timed again"


def turns_of(ar_seconds):
    """Takes turns of one prompt each whose AR blocks take so long, then 1 s; returns the last record of each turn."""
    left, counts = {turn: list(s) for turn, s in ar_seconds.items()}, {}

    def one(turn):
        counts[turn] = counts.get(turn, 0) + 1
        seconds = left[turn].pop(0) if left[turn] else 1.0
        return {"turn": turn, "try": counts[turn]}, [seconds] * 5

    last = {record["turn"]: record for record in take(list(left), one, Reference())}
    return last, counts


def test_turns_out_of_step_are_taken_again_a_bounded_number_of_times():
    turns = [Turn(0, i) for i in range(6)]
    last, counts = turns_of({turn: [] for turn in turns})
    assert set(counts.values()) == {1}
    assert all(record["steady"] for record in last.values())

    last, counts = turns_of({turn: [1.5] if turn.number == 2 else [] for turn in turns})
    assert counts == {turn: 2 if turn.number == 2 else 1 for turn in turns}
    assert last[turns[2]] == {"turn": turns[2], "try": 2, "steady": True}, "the later try counts"

    last, counts = turns_of({turn: [1 + 1.1 * OFF] * 9 if turn.number == 2 else [] for turn in turns})
    assert counts[turns[2]] == 1 + RETAKES
    assert [last[turn]["steady"] for turn in turns] == [True, True, False, True, True, True]


def test_what_a_method_took_never_decides_a_retake():
    """A method whose turns are wildly different is left alone while AR is in step."""
    random, counts = np.random.default_rng(0), []

    def one(turn):
        counts.append(turn)
        return {"decode_s": float(random.exponential())}, [1.0] * 4

    assert all(record["steady"] for record in take([Turn(0, i) for i in range(20)], one, Reference()))
    assert len(counts) == 20


def test_a_cell_is_unsteady_from_a_tenth_of_its_turns_on():
    steady = pd.DataFrame({"steady": [True] * 9 + [False]})
    assert metrics.is_steady(steady)
    assert not metrics.is_steady(pd.concat([steady, pd.DataFrame({"steady": [False]})]))


def test_the_interval_covers_the_spread_of_turns_and_prompts():
    """Of 200 cells whose turns differ by 10 % and whose prompts by 10 %, about 95 % cover; chance of < 85 %: < 1e-6."""
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        prompt = np.repeat(np.exp(0.1 * random.normal(size=24)), 2)
        seconds = prompt * np.exp(0.1 * random.normal(size=48))
        frame = pd.DataFrame({
            "prompt_id": np.repeat(np.arange(24), 2), "new_tokens": 20.0, "steady_s": seconds, "ar_new_tokens": 20.0,
            "ar_steady_s": 1.0,
        })  # fmt: skip
        _, low, high = rate_of(frame)
        covered += low <= np.exp(-0.01) <= high  # the mean of a product of two such factors
    assert 0.85 * 200 <= covered < 200


def test_blocks_add_up_to_the_decoding_time(monkeypatch):
    ticks = iter(np.cumsum([1.0] * 100))
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    import torch

    watch = clock.Clock(torch.device("cpu"))
    for _ in range(3):
        for phase in clock.PHASES:
            watch.mark(phase)
    total = watch.stop()
    assert watch.blocks == [4.0] * 3
    assert watch.seconds == dict.fromkeys(clock.PHASES, 3.0)
    assert total == 14.0, "with the looks before the first block and behind the last one"
