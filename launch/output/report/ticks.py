"""Where the numbers of an axis and the names at the ends of lines stand."""

from __future__ import annotations

import math
from collections.abc import Sequence


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, in ``most`` steps or fewer of 1, 2 or 5 times a power of ten."""
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def whole_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most ``most`` + 1 whole numbers from ``low`` to ``high``."""
    ticks = nice_ticks(low, high, most) if high - low > most else range(math.ceil(low), math.floor(high) + 1)
    return [float(tick) for tick in ticks if tick == round(tick)]


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places in 0..100 at least ``gap`` apart, near the ascending ``wanted`` ones, as far as there is room."""
    gap = min(gap, 100 / max(1, len(wanted) - 1))
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + gap) if places else place)
    limit = 100.0
    for index in range(len(places) - 1, -1, -1):
        places[index] = limit = min(places[index], limit)
        limit -= gap
    return places
