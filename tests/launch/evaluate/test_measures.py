"""Curves, calibration and intervals.

Oracle: scikit-learn, on probabilities with ties.
"""

from functools import partial

import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from suture.launch.evaluate import classification, measures


def drawn(seed: int, n: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities of two digits, so that many are equal."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.4
    return y, np.round(np.clip(0.35 * y + rng.random(n) * 0.7, 0, 1), 2)


@pytest.mark.parametrize("seed", range(5))
def test_areas_and_curves_are_scikit_learns(seed):
    """Oracle: roc_curve, roc_auc_score, precision_recall_curve, average_precision_score."""
    y, p = drawn(seed)
    assert measures.auroc(y, p) == pytest.approx(metrics.roc_auc_score(y, p), abs=1e-12)
    assert measures.average_precision(y, p) == pytest.approx(metrics.average_precision_score(y, p), abs=1e-12)
    theirs = metrics.roc_curve(y, p, drop_intermediate=False)
    for ours, expected in zip(measures.roc(y, p), theirs, strict=False):
        np.testing.assert_allclose(ours, expected, atol=1e-12)
    precision, recall, _ = metrics.precision_recall_curve(y, p)
    ours = measures.precision_recall(y, p)
    np.testing.assert_allclose(ours[0], recall[-2::-1], atol=1e-12)
    np.testing.assert_allclose(ours[1], precision[-2::-1], atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_calibration_is_scikit_learns(seed):
    """Oracle: calibration_curve with ten bins of equal width; the error by its definition."""
    y, p = drawn(seed)
    p = np.clip(p + 0.0013, 0, 1)  # off the bins' edges, which the two put on different sides
    bins = measures.calibration(y, p)
    share, probability = calibration_curve(y, p, n_bins=10)
    np.testing.assert_allclose([one.share for one in bins], share, atol=1e-12)
    np.testing.assert_allclose([one.probability for one in bins], probability, atol=1e-12)
    sizes = np.histogram(p, np.linspace(0, 1, 11))[0]
    error = (sizes[sizes > 0] * np.abs(share - probability)).sum() / len(y)
    assert measures.calibration_error(bins) == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (measures.average_precision, metrics.average_precision_score),
        (measures.auroc, metrics.roc_auc_score),
    ],
)
def test_an_interval_is_that_of_scikit_learns_score_over_the_same_draws(ours, theirs):
    """Oracle: percentiles of scikit-learn's score over the bootstrap's rows, which keep the classes' sizes."""
    y, p = drawn(7, 60)
    rows = measures.draws(y)
    assert set(y[rows].sum(axis=1)) == {y.sum()}
    expected = np.percentile([theirs(y[each], p[each]) for each in rows], [2.5, 97.5])
    assert measures.interval(lambda each: ours(y[each], p[each]), y) == pytest.approx(tuple(expected))


def test_kappa_and_its_interval_are_scikit_learns_over_the_same_draws():
    """Oracle: cohen_kappa_score with quadratic weights, of all images and of each draw's."""
    rng = np.random.default_rng(3)
    true = rng.integers(0, 5, 60)
    guess = np.clip(true + rng.integers(-1, 2, 60), 0, 4)
    found = classification.kappa(true, guess, 5)["quadratic_kappa"]
    score = partial(metrics.cohen_kappa_score, weights="quadratic", labels=range(5))
    assert found["value"] == pytest.approx(score(true, guess), abs=1e-9)
    rows = measures.draws(np.ones(60, dtype=bool))
    expected = np.percentile([score(true[each], guess[each]) for each in rows], [2.5, 97.5])
    assert found["interval"] == pytest.approx(list(expected), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_are_those_that_a_search_finds(seed):
    """Oracle: every probability tried as a threshold."""
    y, p = drawn(seed)
    sensitivity = {cut: (p[y] >= cut).mean() for cut in p}
    index = {cut: sensitivity[cut] + (p[~y] < cut).mean() for cut in p}
    assert index[measures.youden(y, p)] == pytest.approx(max(index.values()))
    enough = [cut for cut, value in sensitivity.items() if value >= 0.9]
    assert measures.threshold_for(y, p, 0.9) == max(enough)
