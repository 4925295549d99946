"""Charts: what is drawn where, and what is not."""

import itertools
import re

import numpy as np
import pytest

from suture.launch.output.report.svg import Chart, Series, line_chart, look
from suture.launch.output.report.ticks import nice_ticks, spread, whole_ticks


def _chart(*series: Series, **more: object) -> str:
    return line_chart(Chart(name="c", title="T", x_label="round", series=series, **more))


def _series(points: list[tuple[float, float]], **more: object) -> Series:
    return Series(
        **({"label": "a", "look": 0, "points": np.array(points, dtype=float).reshape(-1, 2)} | more)
    )


def test_a_line_goes_through_its_points():
    """Oracle: by hand: x from 1 to 3 with 1.5 % margin, y from 0 to 1 downwards, in thousandths."""
    drawn = _chart(_series([(1, 0.0), (2, 0.5), (3, 1.0)]), y_range=(0.0, 1.0))
    path = re.search(r'class="line s0" d="([^"]*)"', drawn)
    assert path and path[1] == "M15 1000L500 500L985 0"


def test_a_missing_value_breaks_the_line_and_nothing_else():
    """Oracle: by hand."""
    drawn = _chart(_series([(1, 0.5), (2, np.nan), (3, 0.5), (4, 0.5)]), y_range=(0.0, 1.0))
    path = re.search(r'class="line s0" d="([^"]*)"', drawn)
    assert path and re.sub(r"[\d ]+", "", path[1]) == "MML" and "nan" not in drawn
    assert len(re.findall("h0", drawn)) == 3


@pytest.mark.parametrize("points", [[], [(1, np.nan)]])
def test_nothing_measured_is_said(points):
    """Oracle: by hand: no axis, no line."""
    drawn = _chart(_series(points))
    assert "nothing measured yet" in drawn and "<svg" not in drawn


def test_one_round_is_a_dot_with_one_number_below():
    """Oracle: by hand."""
    drawn = _chart(_series([(1, 0.4)]))
    assert re.findall(r'<span style="left:[^"]*">([^<]*)</span>', drawn) == ["1"] and drawn.count("h0") == 1


def test_a_best_round_that_is_not_drawn_has_no_mark():
    """Oracle: by hand."""
    points = [(1.0, 0.5), (2.0, 0.6)]
    assert "best" in _chart(_series(points), mark=(2, "best"))
    assert "best" not in _chart(_series(points), mark=(9, "best"))


def test_an_outlier_does_not_flatten_the_curves():
    """Oracle: the highest number of the axis: near the smoothed line's, not near the spike's."""
    raw = np.array([(i, 500.0 if i % 20 == 0 else 0.5) for i in range(200)])
    drawn = _chart(_series([(0, 0.6), (199, 0.4)], raw=raw))
    numbers = [float(n) for n in re.findall(r'<span style="top:[^"]*">([\d.]+)</span>', drawn)]
    assert 0.6 < max(numbers) < 2


def test_every_letter_of_a_name_is_escaped():
    """Oracle: no tag but ours."""
    drawn = _chart(_series([(1, 0.5)], label='<script>"&'), mark=(1, "<b>"), summary="<i>")
    assert "<script>" not in drawn and "<b></span>" not in drawn and "<i>" not in drawn
    assert "&lt;script&gt;&quot;&amp;" in drawn


def test_more_sites_than_colours_are_told_apart_by_dashes():
    """Oracle: all looks of 32 sites differ."""
    assert len({look(index) for index in range(32)}) == 32


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.037, [0, 0.01, 0.02, 0.03]),
        (0.38, 1.02, [0.4, 0.6, 0.8, 1]),
        (0, 2600, [0, 500, 1000, 1500, 2000, 2500]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(low, high, expected):
    """Oracle: by hand."""
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_rounds_have_whole_numbers():
    """Oracle: by hand."""
    assert whole_ticks(0.98, 4.02) == [1, 2, 3, 4] and whole_ticks(1, 40) == [10, 20, 30, 40]


def test_names_at_line_ends_do_not_lie_over_each_other():
    """Oracle: distances and bounds, for places drawn at random and all at one end; in their order."""
    for wanted in (sorted(np.random.default_rng(0).uniform(0, 100, 12)), [100.0] * 14, [0.0] * 5, [], [40.0]):
        places = spread(wanted, 6.4)
        assert all(b - a >= 6.39 for a, b in itertools.pairwise(places))
        assert all(-1e-9 <= place <= 100 for place in places)
    assert spread([10.0, 50.0], 6.4) == [10.0, 50.0]
