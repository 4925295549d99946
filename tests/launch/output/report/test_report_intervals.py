"""Intervals of scores: published values, their own equations, and how often they hold the truth."""

import math
import random

import pytest

from suture.launch.output.report.intervals import auroc_interval, wilson
from suture.launch.output.report.tables import area_interval, share_interval


def hanley_mcneil_error(area, positive, negative):
    """Hanley, McNeil: The meaning and use of the area under a ROC curve, Radiology 143, 1982."""
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (positive - 1) * (q1 - area**2) + (negative - 1) * (q2 - area**2)
    return math.sqrt(max(0.0, variance) / (positive * negative))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_a_shares_interval_is_the_published_one(successes, n, low, high):
    """Oracle: Newcombe 1998, table I, method 3."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_an_areas_error_is_the_published_one():
    """Oracle: Hanley and McNeil 1982, whose example (0.893, 51 abnormal and 58 normal images) has an error of 0.032."""
    assert hanley_mcneil_error(0.893, 51, 58) == pytest.approx(0.032, abs=6e-4)


@pytest.mark.parametrize("area", [0.5, 0.75, 0.893, 0.99])
def test_an_areas_interval_ends_where_its_own_error_says(area):
    """Oracle: the equation that defines the ends; with equal counts the variance is Hanley and McNeil's own."""
    for end in auroc_interval(area, 40, 40):
        assert abs(end - area) == pytest.approx(1.959964 * hanley_mcneil_error(end, 40, 40), rel=1e-4)


def test_an_areas_interval_does_not_ask_which_class_is_positive_and_exists_at_the_ends():
    """Oracle: symmetry; an area of 1 on few images is not sure, where its plain error is 0."""
    assert auroc_interval(0.8, 12, 30) == pytest.approx(auroc_interval(0.8, 30, 12))
    low, high = auroc_interval(0.8, 12, 30)
    mirrored = auroc_interval(0.2, 12, 30)
    assert mirrored == pytest.approx((1 - high, 1 - low))
    low, high = auroc_interval(1.0, 10, 10)
    assert high == pytest.approx(1.0) and 0.6 < low < 0.9 and hanley_mcneil_error(1.0, 10, 10) == 0


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Oracle: 1500 drawn experiments each of known truth; scores of both classes are normal, a distance apart."""
    chance = random.Random(3)
    holds_share = holds_area = 0
    distance = 1.2
    truth = 0.5 * (1 + math.erf(distance / 2))  # of two normals of variance 1
    for _ in range(1500):
        low, high = wilson(sum(chance.random() < 0.8 for _ in range(40)), 40)
        holds_share += low <= 0.8 <= high
        ill = [chance.gauss(distance, 1) for _ in range(25)]
        well = [chance.gauss(0, 1) for _ in range(15)]
        area = sum(a > b for a in ill for b in well) / (25 * 15)
        low, high = auroc_interval(area, 25, 15)
        holds_area += low <= truth <= high
    assert 0.93 < holds_share / 1500 < 0.98 and 0.93 < holds_area / 1500 < 0.99


def test_where_the_counts_are_not_known_there_is_no_interval():
    """Oracle: by hand: an area of three classes, of unknown classes, of one class, of no images; a share of none."""
    assert area_interval(0.8, 20, 0.6, 2) == auroc_interval(0.8, 12, 8)
    for classes, n, majority in ((3, 20, 0.6), (None, 20, 0.6), (2, 20, 1.0), (2, None, 0.6), (2, 20, None)):
        assert area_interval(0.8, n, majority, classes) is None
    assert share_interval(0.5, 0) is None and share_interval(1.5, 10) is None
