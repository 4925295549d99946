"""Curves and calibration of one class against the others, and intervals by the bootstrap: plain numpy.

Shape legend: N images; y_N whether an image is of the class, p_N its probability.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
_DRAWS = 1000
_NUM_BINS = 10


@dataclass(frozen=True)
class Counts:
    """At each threshold, from the highest down, how many images of the class and of the others lie at or above it."""

    thresholds: Floats
    hits: Floats
    false_alarms: Floats


def counts(y_N: Bools, p_N: Floats) -> Counts:
    """One entry a distinct probability; both classes are present."""
    order = np.argsort(-p_N, kind="stable")
    falling, positive = p_N[order], y_N[order]
    last = np.r_[np.flatnonzero(np.diff(falling)), len(falling) - 1]
    hits = np.cumsum(positive)[last].astype(np.float64)
    return Counts(falling[last], hits, last + 1 - hits)


def roc(y_N: Bools, p_N: Floats) -> tuple[Floats, Floats]:
    """False positive rate and sensitivity, from (0, 0) to (1, 1)."""
    found = counts(y_N, p_N)
    return np.r_[0, found.false_alarms / (~y_N).sum()], np.r_[0, found.hits / y_N.sum()]


def auroc(y_N: Bools, p_N: Floats) -> float:
    """Area under `roc`."""
    false_alarms, sensitivity = roc(y_N, p_N)
    return float(np.trapezoid(sensitivity, false_alarms))


def precision_recall(y_N: Bools, p_N: Floats) -> tuple[Floats, Floats]:
    """Recall and precision, from the highest threshold down."""
    found = counts(y_N, p_N)
    return found.hits / y_N.sum(), found.hits / (found.hits + found.false_alarms)


def average_precision(y_N: Bools, p_N: Floats) -> float:
    """Mean precision, each weighted by the recall that it adds."""
    recall, precision = precision_recall(y_N, p_N)
    return float((np.diff(np.r_[0, recall]) * precision).sum())


def youden(y_N: Bools, p_N: Floats) -> float:
    """The threshold with the largest sensitivity plus specificity; the highest of several (Youden, Cancer 1950)."""
    found = counts(y_N, p_N)
    index = found.hits / y_N.sum() - found.false_alarms / (~y_N).sum()
    return float(found.thresholds[int(index.argmax())])


def threshold_for(y_N: Bools, p_N: Floats, sensitivity: float) -> float:
    """The highest threshold that reaches a sensitivity."""
    found = counts(y_N, p_N)
    return float(found.thresholds[int(np.argmax(found.hits / y_N.sum() >= sensitivity - 1e-12))])


@dataclass(frozen=True)
class Bin:
    """Images whose probability lies in one tenth: their mean probability, and the share that is of the class."""

    probability: float
    share: float
    num_images: int


def calibration(y_N: Bools, p_N: Floats) -> list[Bin]:
    """The tenths that hold images, in order."""
    tenth = np.minimum((p_N * _NUM_BINS).astype(int), _NUM_BINS - 1)
    return [
        Bin(float(p_N[tenth == k].mean()), float(y_N[tenth == k].mean()), int((tenth == k).sum()))
        for k in np.unique(tenth)
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: the mean gap, weighted by images (Naeini et al., AAAI 2015)."""
    total = sum(one.num_images for one in bins)
    return sum(one.num_images * abs(one.probability - one.share) for one in bins) / total


def draws(groups: Bools, seed: int = 0) -> NDArray[np.int64]:
    """(draws, N) rows of a bootstrap that keeps the number of images of either group."""
    rng, rows = np.random.default_rng(seed), [np.flatnonzero(groups), np.flatnonzero(~groups)]
    return np.concatenate([rng.choice(own, (_DRAWS, len(own))) for own in rows if len(own)], axis=1)


def interval(statistic: Callable[[NDArray[np.int64]], float], groups: Bools) -> tuple[float, float]:
    """95 % interval of a statistic of rows, by the percentile bootstrap over images (Efron and Tibshirani 1993)."""
    found = np.percentile([statistic(rows) for rows in draws(groups)], [2.5, 97.5])
    return float(found[0]), float(found[1])
