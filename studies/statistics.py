"""95 % intervals: of means over seeds by Student's t, of ratios of medians by the bootstrap."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

# Student's t, two-sided 95 %, by degrees of freedom; beyond the table the normal distribution is close enough.
_T95 = dict(
    enumerate(
        (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
        + (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)
        + (2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
        start=1,
    )
)


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and the half width of its 95 % interval (Student's t); nan for a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, _T95.get(len(values) - 1, 1.96) * math.sqrt(variance / len(values))


def shown(values: Sequence[float], digits: int = 3) -> str:
    """``mean ± half width``; the value alone where all are equal or there is one, a dash where there is none."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "–"
    mean, half = mean_and_interval(known)
    is_sure = len(set(known)) == 1
    return f"{mean:.{digits}f}" if is_sure else f"{mean:.{digits}f} ± {half:.{digits}f}"


def in_percent(values: Sequence[float] | None) -> str:
    """The study's accuracies, client by client, as it gave them."""
    return "–" if values is None else ", ".join(f"{value:g} %" for value in values)


def changed(before: Sequence[float], after: Sequence[float], digits: int = 3) -> str:
    """How much larger the second mean is, paired seed by seed: ``+0.012 ± 0.003``, and whether that says anything."""
    mean, half = mean_and_interval([b - a for a, b in zip(before, after, strict=False)])
    if math.isnan(half):
        return f"{mean:+.{digits}f} (one seed)"
    bears = (
        "bears no conclusion: the interval holds 0" if abs(mean) <= half else "the interval does not hold 0"
    )
    return f"{mean:+.{digits}f} ± {half:.{digits}f} over seeds, paired ({bears})"


def overlaps(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the two means' intervals overlap, so that the runs do not tell them apart."""
    (a, da), (b, db) = mean_and_interval(first), mean_and_interval(second)
    return not abs(a - b) > da + db  # nan: one run each tells nothing apart


def ratio_interval(ours: Sequence[float], theirs: Sequence[float], draws: int = 2000) -> list[float]:
    """95% interval of the ratio of medians, by the percentile bootstrap (Efron and Tibshirani 1993)."""
    chance = random.Random(0)
    ratios = sorted(
        statistics.median(chance.choices(ours, k=len(ours)))
        / statistics.median(chance.choices(theirs, k=len(theirs)))
        for _ in range(draws)
    )
    return [ratios[int(0.025 * draws)], ratios[int(0.975 * draws) - 1]]
