"""The grid of charts: what is drawn where, at the edges too."""

import numpy as np
import pandas as pd
import pytest

from rsdbench.plotting.chart import ACCURACY, WIDTH, Wishes, draw, limits_of
from rsdbench.results.metrics import metric_labels
from rsdbench.results.points import POINT

METRICS = metric_labels()

LABELS = {"sd": "SD", "rsd_s": "RSD-S", "newcomer": "Newcomer"}
ROWS = {"A, X": "a", "B, X": "a", "C, X": "c"}


def points(**changes):
    """Of all rows and methods at two budgets. changes: values by metric, of the first row's sd at 6."""
    made = []
    for i, row in enumerate(ROWS):
        for metric in METRICS:
            for method in LABELS:
                for budget in (6, 30):
                    value = 1.0 + 0.1 * i + 0.01 * budget * (metric != "accuracy")
                    if (row, method, budget) == ("A, X", "sd", 6):
                        value = changes.get(metric.replace(" ", "_"), value)
                    made.append((row, metric, method, budget, value, value - 0.02, value + 0.02, "6", True))
    return pd.DataFrame(made, columns=POINT)


def chart(figure, row, metric):
    return figure.axes[len(METRICS) * row + METRICS.index(metric)]


def marks(axes, kind):
    return [line for line in axes.get_lines() if line.get_gid() == kind and len(line.get_xdata())]


@pytest.mark.parametrize(("value", "marker"), [(0.0, "v"), (2.0, "^")])
def test_accuracy_has_the_papers_axis_and_what_is_beyond_is_a_triangle_at_its_edge(value, marker):
    figure = draw(points(accuracy=value), ROWS, LABELS)
    for row in range(3):
        assert chart(figure, row, "accuracy").get_ylim() == ACCURACY
        assert len(marks(chart(figure, row, "accuracy"), "outside")) == (row == 0)
    (triangle,) = marks(chart(figure, 0, "accuracy"), "outside")
    assert (triangle.get_marker(), triangle.get_color()) == (marker, "tab:orange")
    assert list(triangle.get_xdata()) == [6]
    assert triangle.get_ydata()[0] == ACCURACY[value > 1]


def test_one_outlier_leaves_the_axis_of_the_token_rate_alone():
    quiet, bent = (limits_of(p[(p.metric == "token rate") & (p.row == "A, X")], "token rate")
                   for p in (points(), points(token_rate=53.0)))  # fmt: skip
    assert bent == pytest.approx(quiet, abs=0.15)
    figure = draw(points(token_rate=53.0), ROWS, LABELS)
    (triangle,) = marks(chart(figure, 0, "token rate"), "outside")
    assert triangle.get_ydata()[0] == chart(figure, 0, "token rate").get_ylim()[1] < 2


def test_points_inside_are_all_inside():
    """Whatever the spread: of 200 random charts no point within three quartile distances is cut."""
    random = np.random.default_rng(0)
    for _ in range(200):
        values = np.sort(random.uniform(0.2, 1.5, 20))
        own = pd.DataFrame({"value": values, "low": values - 0.02, "high": values + 0.02})
        low, high = limits_of(own, "token rate")
        assert low <= values[0]
        assert values[-1] <= high


def test_unsteady_times_have_hollow_markers():
    data = points()
    data.loc[(data.row == "B, X") & (data.metric == "token rate") & (data.method == "rsd_s"), "steady"] = False
    figure = draw(data, ROWS, LABELS)
    (hollow,) = marks(chart(figure, 1, "token rate"), "unsteady")
    assert hollow.get_markerfacecolor() == "white"
    assert hollow.get_markeredgecolor() == "tab:blue"
    assert list(hollow.get_xdata()) == [6, 30]
    assert not any(marks(axes, "unsteady") for axes in figure.axes if axes is not chart(figure, 1, "token rate"))


def test_charts_of_a_drafter_share_their_axis_if_asked():
    alone, shared = (draw(points(), ROWS, LABELS, wishes=Wishes(share_y=share)) for share in (False, True))
    for metric in METRICS[:3]:
        limits = [chart(shared, row, metric).get_ylim() for row in range(3)]
        assert limits[0] == limits[1] != limits[2]
        assert chart(alone, 0, metric).get_ylim() != chart(alone, 1, metric).get_ylim()
        values = points()[lambda p, m=metric: (p.metric == m) & (p.row != "C, X")].value
        assert limits[0][0] <= values.min()
        assert values.max() <= limits[0][1]


def test_bands_can_be_left_out():
    with_band, without = (draw(points(), ROWS, LABELS, wishes=Wishes(band=band)) for band in (True, False))
    assert all(len(axes.collections) == len(LABELS) for axes in with_band.axes)
    assert not any(axes.collections for axes in without.axes)


def test_a_part_of_a_grid_is_drawn():
    """One budget, a method in one row only, a metric that nobody has."""
    data = points()
    data = data[(data.budget == 6) & (data.metric != "token rate") & ((data.method != "sd") | (data.row == "A, X"))]
    figure = draw(data, ROWS, LABELS)
    assert len(figure.axes) == 12
    assert not chart(figure, 0, "token rate").get_lines()[:-1], "nothing but AR's line"
    assert {line.get_label() for line in chart(figure, 1, "MBSU").get_lines() if line.get_label()[0] != "_"} == {
        "RSD-S", "Newcomer"
    }  # fmt: skip
    assert list(chart(figure, 2, "MBSU").get_xticks()) == [6]


def test_text_is_readable_in_print():
    figure = draw(points(), ROWS, LABELS, note="of 32 prompts")
    assert figure.get_figwidth() == pytest.approx(17 / 2.54) == pytest.approx(WIDTH)
    figure.canvas.draw()
    texts = [t for axes in figure.axes for t in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title)]
    texts += [*figure.texts, *figure.legends[0].get_texts(), *(axes.yaxis.label for axes in figure.axes)]
    assert min(t.get_fontsize() for t in texts) >= 5.5
    assert [t.get_text() for t in figure.texts] == ["of 32 prompts"]


def test_fonts_are_embedded_as_truetype(tmp_path):
    figure = draw(points(), ROWS, LABELS)
    figure.savefig(tmp_path / "figure.pdf")
    content = (tmp_path / "figure.pdf").read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content
