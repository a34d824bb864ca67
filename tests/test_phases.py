"""`decode.profile=true` and `rsdbench table --phases`: where a block's time goes."""

import pandas as pd
import pytest

from rsdbench.backends import clock
from rsdbench.results.phases import OTHER, PHASES
from rsdbench.runner.cells import RowJob
from rsdbench.runner.compose import row_configs

from .commands import SMALL, cells, rsdbench

PROFILED = [
    *SMALL, "methods=[sd,rsd_s]", "budgets=[6,10]", "max_structures=null",
    "dataset.num_prompts=3", "speed.num_prompts=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiled")
    rsdbench("run", *PROFILED, "decode.profile=true", f"results={folder}")
    return folder


def test_phases_are_the_engines():
    assert clock.PHASES == PHASES


def test_the_profile_is_a_pass_of_its_own(profiled):
    for file in cells(profiled):
        frame = pd.read_parquet(file)
        assert frame.groupby("phase").prompt_id.nunique().to_dict() == {"quality": 3, "speed": 2, "profile": 2}
        own = frame[frame.phase == "profile"]
        assert own.prompt_id.tolist() == frame[frame.phase == "speed"].prompt_id.unique().tolist()
        assert own.ar_decode_s.isna().all()


def test_the_table_divides_a_block_into_phases(profiled, tmp_path):
    rsdbench("table", profiled, "--phases", "--all", "--out", tmp_path / "all.csv")
    times = pd.read_csv(tmp_path / "all.csv")
    assert list(times) == ["row", "method", "budget", "structure", "blocks", "tokens", "ms", *PHASES, OTHER]
    assert times.method.tolist() == ["ar", "sd", "sd", *["rsd_s"] * 4]
    assert (times[[*PHASES, OTHER]] >= 0).all(axis=None)
    assert times[[*PHASES, OTHER]].sum(axis=1).to_numpy() == pytest.approx(times.ms.to_numpy())
    records = pd.concat([pd.read_parquet(file) for file in cells(profiled)])
    for time in times.itertuples():
        own = records[(records.method == time.method) & (records.structure == time.structure)]
        own = own[own.phase == "profile"]
        assert time.blocks == own.blocks.sum()
        assert time.tokens == pytest.approx(own.new_tokens.sum() / own.blocks.sum())
        assert time.draft == pytest.approx(1e3 * own.draft_s.sum() / own.blocks.sum())


def test_each_method_and_budget_shows_its_fastest_structure(profiled, tmp_path):
    for name, options in {"all": ["--all"], "best": []}.items():
        rsdbench("table", profiled, "--phases", *options, "--out", tmp_path / f"{name}.csv")
    every, shown = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("all", "best"))
    assert len(shown) == 5
    every["each"] = every.ms / every.tokens
    fastest = every.loc[every.groupby(["method", "budget"], sort=False).each.idxmin()]
    assert shown.structure.tolist() == fastest.structure.tolist()


def test_the_screen_shows_milliseconds_and_shares(profiled):
    out, _ = rsdbench("table", profiled, "--phases")
    assert "OPT-25K-2.6M, De-En: milliseconds of a block" in out
    assert all(f" {phase} " in out for phase in (*PHASES, OTHER))
    assert out.count("%") == 5 * 5


def test_a_figure_does_not_see_the_profile(profiled, tmp_path):
    rsdbench("table", profiled, "--out", tmp_path / "points.csv")
    points = pd.read_csv(tmp_path / "points.csv")
    assert points.value_counts("metric").to_dict() == dict.fromkeys(points.metric.unique(), 4)


def test_without_a_profile_there_is_one_line(tmp_path):
    rsdbench("run", *SMALL, f"results={tmp_path}")
    _, err = rsdbench("table", tmp_path, "--phases", code=2)
    assert "no block of these results was profiled: run them with decode.profile=true" in err
    assert err.count("\n") == 1


def test_cells_without_a_profile_keep_their_names():
    (plain,), (asked,) = (row_configs([*SMALL, *more]) for more in ([], ["decode.profile=true"]))
    assert "profile" not in RowJob(plain).content["decode"]
    assert [c.id for c in RowJob(plain).cells] != [c.id for c in RowJob(asked).cells]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["decode.profile=often"], "unknown decode.profile 'often': choose true or false"),
        (["decode.profile=true", "speed.num_prompts=0"], "decode.profile=true needs speed.num_prompts of at least 1"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(tmp_path, overrides, message):
    _, err = rsdbench("run", *SMALL, *overrides, f"results={tmp_path}", code=2)
    assert message in err
