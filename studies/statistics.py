"""95 % intervals: of means by Student's t, of shares by t on logits, of ratios of medians by the bootstrap."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

from suture.launch.output.report.intervals import wilson

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


def share_interval(shares: Sequence[float], num_images: int | None = None) -> tuple[float, float, float]:
    """Mean of shares, one a seed, and the ends of its interval, which lie in [0, 1].

    Student's t on the logits. Seeds and images are crossed: where the shares are of ``num_images`` images, the spread
    that another draw of as many images would bring, not made smaller by more seeds on the same images, is added in
    quadrature; where the seeds have images of their own that counts it twice, on the safe side. A single share has
    Wilson's interval.

    Args:
        shares: in 0..1, at least one.
        num_images: that each is a share of; None for a score in 0..1 that is no share, such as an area or a Dice: its
            spread over images is not known, and one value has no interval (nan).
    """
    mean = sum(shares) / len(shares)
    if len(shares) < 2:
        ends = (math.nan, math.nan) if num_images is None else wilson(mean * num_images, num_images)
        return mean, *ends
    # Half an image keeps the logits of none and of all finite (Haldane 1956; Anscombe 1956).
    count = _COUNT_OF_A_SCORE if num_images is None else num_images
    logits = [math.log((count * share + 0.5) / (count - count * share + 0.5)) for share in shares]
    centre, over_seeds = mean_and_interval(logits)
    over_images = 0.0
    if num_images is not None:
        over_images = 1.96 * math.sqrt(1 / (count * mean + 0.5) + 1 / (count - count * mean + 0.5))
    half = math.hypot(over_seeds, over_images)
    low, high = (1 / (1 + math.exp(-max(-700.0, min(700.0, end)))) for end in (centre - half, centre + half))
    return mean, min(low, mean), max(high, mean)


_COUNT_OF_A_SCORE = 1000  # keeps the logit of a score of exactly 0 or 1 finite


def shown_share(shares: Sequence[float], digits: int = 3, num_images: int | None = None) -> str:
    """``mean (low to high)`` by `share_interval`; the value alone where that has no interval or no width, else as
    `shown`.
    """
    known = [share for share in shares if not math.isnan(share)]
    if not known:
        return "–"
    mean, low, high = share_interval(known, num_images)
    if math.isnan(low) or (num_images is None and len(set(known)) == 1):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


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
    """Whether the intervals of two scores in [0, 1] overlap, so that the runs do not tell them apart."""
    (_, low, high), (_, other_low, other_high) = share_interval(first), share_interval(second)
    return not (low > other_high or other_low > high)  # nan: one run each tells nothing apart


def ratio_interval(ours: Sequence[float], theirs: Sequence[float], draws: int = 2000) -> list[float]:
    """95% interval of the ratio of medians, by the percentile bootstrap (Efron and Tibshirani 1993)."""
    chance = random.Random(0)
    ratios = sorted(
        statistics.median(chance.choices(ours, k=len(ours)))
        / statistics.median(chance.choices(theirs, k=len(theirs)))
        for _ in range(draws)
    )
    return [ratios[int(0.025 * draws)], ratios[int(0.975 * draws) - 1]]
