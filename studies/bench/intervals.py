"""How sure a benchmark is of a number: 95% intervals."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

_T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23}
"""Student's t by degrees of freedom; more of them take the last one, which is a little wide for them."""


def ratio_interval(ours: Sequence[float], theirs: Sequence[float], draws: int = 2000) -> list[float]:
    """95% interval of the ratio of medians, by the percentile bootstrap (Efron and Tibshirani 1993)."""
    chance = random.Random(0)
    ratios = sorted(
        statistics.median(chance.choices(ours, k=len(ours)))
        / statistics.median(chance.choices(theirs, k=len(theirs)))
        for _ in range(draws)
    )
    return [ratios[int(0.025 * draws)], ratios[int(0.975 * draws) - 1]]


def mean_interval(values: Sequence[float]) -> float:
    """Half the 95% interval of a mean (Student); infinite for fewer than two values."""
    if len(values) < 2:
        return float("inf")
    return float(_T_95[min(len(values) - 1, 10)] * statistics.stdev(values) / math.sqrt(len(values)))
