"""How long a run will take: said before the first cell is decoded, and better with each."""

import pytest

from rsdbench.cli.progress import about
from rsdbench.runner import pace
from rsdbench.runner.plan import planned_rows

ROW = ["experiment=standin", "drafter=opt-25k", "target=opt-6m", "dataset=xsum", "results=unused"]


@pytest.fixture
def cells():
    return [cell for planned in planned_rows(ROW) for cell in planned.cells]


def test_larger_trees_and_targets_take_longer(cells):
    seconds = {(c.method, c.structure): pace.seconds_of(c, 1e11) for c in cells}
    assert seconds["ar", "0"] < seconds["sd", "6"] < seconds["sd", "30"]
    assert seconds["rsd_s", "2x3"] < seconds["rsd_s", "5x6"]
    (larger,) = planned_rows([*ROW, "target=opt-13.2m"])
    assert pace.seconds_of(larger.cells[-1], 1e11) > 1.5 * seconds["rsd_s", "6x5"]


@pytest.mark.parametrize("factor", [0.1, 1.0, 8.0])
def test_the_cells_that_were_decoded_correct_the_arithmetic(cells, monkeypatch, factor):
    """After a tenth of the cells it is right within a factor of two, however fast the machine is."""
    monkeypatch.setattr(pace, "multiplications", lambda: 1e11)
    monkeypatch.setattr(pace, "PRIOR", 1e-3 * sum(pace.seconds_of(c, 1e11) for c in cells))
    left = pace.Pace(cells)
    truth = {cell: factor * seconds for cell, seconds in left.left.items()}
    for cell in cells[: len(cells) // 10]:
        left.finished(cell, truth.pop(cell))
    assert 0.5 < left.seconds / sum(truth.values()) < 2
    for cell, seconds in list(truth.items()):
        left.finished(cell, seconds)
    assert left.seconds == 0


def test_the_machines_rate_is_measured():
    assert 1e8 < pace.multiplications() < 1e14
    assert pace.multiplications() == pace.multiplications(), "once"


@pytest.mark.parametrize(("seconds", "text"), [(41, "41 s"), (200, "3.3 min"), (9000, "2.5 h")])
def test_time_left_is_said_in_people_units(seconds, text):
    assert about(seconds) == f"about {text} left"
