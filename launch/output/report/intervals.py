"""How sure a score on n test images is: 95 % intervals from the score and the counts alone.

Both take the images as independent; several images of one patient make the true interval wider.
"""

from __future__ import annotations

import math

_Z = 1.959963984540054
_HALVINGS = 60


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Interval of a share, by Wilson's score method without continuity correction.

    Args:
        successes: how many of ``n``, in 0..n.
        n: at least 1.

    References:
        Wilson: Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
        Newcombe: Two-sided confidence intervals for the single proportion, Stat. Med. 17, 1998 (method 3).
    """
    share = successes / n
    scale = 1 + _Z**2 / n
    centre = (share + _Z**2 / (2 * n)) / scale
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def auroc_interval(area: float, one: int, other: int) -> tuple[float, float]:
    """Interval of an area under the ROC curve of two classes with ``one`` and ``other`` images.

    Newcombe's method 5: the ends are the areas that differ from the measured one by 1.96 standard errors of their
    own, with Hanley and McNeil's variance in which both counts are replaced by their mean. So it does not matter
    which class counts as positive, and an area of 1 has an interval, too.

    Args:
        area: measured, in 0..1.
        one: images of one class, at least 1.
        other: images of the other class, at least 1.

    References:
        Newcombe: Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2,
        Stat. Med. 25, 2006.
    """
    return _end(area, 0.0, one, other), _end(area, 1.0, one, other)


def _end(area: float, bound: float, one: int, other: int) -> float:
    """The area between the measured one and ``bound`` that is 1.96 of its own standard errors away; by halving."""
    near, far = area, bound
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        if abs(middle - area) < _Z * _mean_count_error(middle, one, other):
            near = middle
        else:
            far = middle
    return (near + far) / 2


def _mean_count_error(area: float, one: int, other: int) -> float:
    count = (one + other) / 2 - 1
    spread = 1 + count * (1 - area) / (2 - area) + count * area / (1 + area)
    return math.sqrt(area * (1 - area) * spread / (one * other))
