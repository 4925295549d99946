"""The page's section on a shaped line, from what ``suture.studies.bench.line`` measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.launch.output.table import Table, bullets, megabytes
from suture.studies.bench.page.bars import bars, spread
from suture.studies.statistics import mean_and_interval, shown_share

AIM, AIM_RATE = 5.0, "100"
PLAIN = "autograd fp32"
"""What all ways are compared with."""


def fill(found: Mapping[str, Any]) -> dict[str, object]:
    """What the section's text leaves open."""
    plan, rows, metric = found["plan"], found["rows"], found["metric"]
    shapes = dict(zip(rows[0]["seconds"], shape_names(plan["lines"]), strict=True))
    formats = [
        {
            "format": name,
            "test metric": shown_share(values),
            "less fp32": _difference(_differences(values, metric["values"]["fp32"])),
        }
        for name, values in metric["values"].items()
    ]
    return {
        "least": min(len(times) for row in rows for times in row["seconds"].values()),
        "plain": rows[0]["way"],
        "ways": Table([_cells(row, rows[0], shapes) for row in rows]),
        "metric_name": metric["name"].upper(),
        "metrics": Table(formats),
        "aims": bullets(verdicts(found)),
    }


def shape_names(lines: Sequence[Sequence[float]]) -> list[str]:
    """What a line is called in a table's head."""
    return [f"{megabits:g} Mbit/s" + (f", {latency:g} ms" if latency else "") for megabits, latency in lines]


def _cells(row: Mapping[str, Any], plain: Mapping[str, Any], shapes: Mapping[str, str]) -> dict[str, object]:
    return {
        "way": row["way"],
        "up, down a step": f"{megabytes(row['bytes_up'])}, {megabytes(row['bytes_down'])}",
        **{
            shapes[rate]: f"{statistics.median(times):.3f} ({speed_up(row, plain, rate):.1f})"
            for rate, times in row["seconds"].items()
        },
    }


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """Whether the aim is met, and by what."""
    rows, metric = found["rows"], found["metric"]["values"]
    if AIM_RATE not in rows[0]["seconds"]:
        return []
    factors = {row["way"]: speed_up(row, rows[0], AIM_RATE) for row in rows if AIM_RATE in row["seconds"]}
    fast = {way: factor for way, factor in factors.items() if factor >= AIM}
    equal = [way for way in fast if _is_equal(metric.get(kind(way), []), metric["fp32"])]
    what = f"{AIM:g} times faster than {rows[0]['way']} at {AIM_RATE} Mbit/s with the same final metric"
    if equal:
        named = ", ".join(f"{way} ({fast[way]:.1f} times)" for way in equal)
        return [f"{what}: met by {named}; the interval of the metric's difference holds zero."]
    best = max(factors, key=lambda way: factors[way])
    why = "the metric differs beyond seed noise, or too few seeds tell" if fast else "none is fast enough"
    return [f"{what}: **not met**: the fastest is {best} ({factors[best]:.1f} times); {why}."]


def speed_up(row: Mapping[str, Any], plain: Mapping[str, Any], rate: str) -> float:
    """How many times faster than ``plain``."""
    return float(statistics.median(plain["seconds"][rate]) / statistics.median(row["seconds"][rate]))


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Seconds a step by way, a panel a rate."""
    rows = found["rows"]
    panels = {
        f"{rate} Mbit/s": {row["way"]: spread(row["seconds"][rate]) for row in rows if rate in row["seconds"]}
        for rate in rows[0]["seconds"]
    }
    bars(panels, path, "seconds a step")


def _differences(values: Sequence[float], plain: Sequence[float]) -> list[float]:
    return [ours - theirs for ours, theirs in zip(values, plain, strict=False)]


def _is_equal(values: Sequence[float], plain: Sequence[float]) -> bool:
    """Whether the difference could be none: its interval holds zero; one run alone tells nothing."""
    found = _differences(values, plain)
    if not found:
        return False
    mean, half = mean_and_interval(found)
    return abs(mean) <= half


def kind(way: str) -> str:
    """What two ways that end with the same weights share: all but the exchange."""
    return way.removeprefix("autograd ").removeprefix("fused ").removeprefix("gRPC ")


def _difference(values: Sequence[float]) -> str:
    mean, half = mean_and_interval(values)
    return f"{mean:+.3f}" if math.isnan(half) else f"{mean:+.3f} ± {half:.3f}"
