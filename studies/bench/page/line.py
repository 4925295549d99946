"""The page's section on a shaped line, from what ``suture.studies.bench.line`` measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.launch.output.figures.canvas import COLOURS, drawn
from suture.studies.bench.intervals import mean_interval
from suture.studies.table import megabytes

TITLE = "Over a line"
AIM, AIM_RATE = 5.0, "100"
PLAIN = "autograd fp32"
"""What all ways are compared with."""


def lines(found: Mapping[str, Any]) -> list[str]:
    """The section's text."""
    plan, rows, metric = found["plan"], found["rows"], found["metric"]
    plain = rows[0]
    rates, shapes = list(plain["seconds"]), shape_names(plan["lines"])
    steps = min(len(times) for row in rows for times in row["seconds"].values())
    said = [
        f"ResNet-18 at {plan['image_size']} px, cut 2, batch {plan['batch_size']}: server and client in network "
        "namespaces of their own, joined by a line of so many Mbit/s each way (tbf) and so many ms one way (a relay "
        f"in user space). Seconds a step, medians of {steps} at least; in brackets how many times faster than "
        f"{plain['way']}. The net and the cut are the same for all. autograd and fused are torch RPC, in clear; gRPC "
        "is what runs between sites, the fused step over mutual TLS 1.3.",
        "",
        f"| way | up, down a step | {' | '.join(shapes)} |",
        f"|---|---|{'---|' * len(rates)}",
        *(_line(row, plain, rates) for row in rows),
        "",
    ]
    if found["missing_ways"]:
        said += [f"Not in this version: {'; '.join(found['missing_ways'])}.", ""]
    said += [
        f"Test {metric['name'].upper()} after {plan['epochs']} rounds on {metric['data']} ({metric['images']} training "
        "images each of 2 clients), mean over the clients; the exchange changes no bit "
        f"of the weights. ± is the 95% interval over {plan['seeds']} seeds; the difference from fp32 is taken seed "
        "by seed.",
        "",
        "| format | test metric | less fp32 |",
        "|---|---|---|",
        *(_metric_line(name, values, metric["values"]["fp32"]) for name, values in metric["values"].items()),
        "",
        *(f"- {verdict}" for verdict in verdicts(found)),
    ]
    return said


def shape_names(lines: Sequence[Sequence[float]]) -> list[str]:
    """What a line is called in a table's head."""
    return [f"{megabits:g} Mbit/s" + (f", {latency:g} ms" if latency else "") for megabits, latency in lines]


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
    """Seconds a step by way, a panel a rate, on a common logarithmic axis."""
    rows = found["rows"]
    rates = list(rows[0]["seconds"])
    with drawn(path, 9.0, 1.6 + 0.25 * len(rows)) as figure:
        panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
        for number, (axes, rate) in enumerate(zip(panels, rates, strict=True)):
            timed = [(place, row) for place, row in enumerate(rows) if rate in row["seconds"]]
            for place, row in timed:
                median = statistics.median(row["seconds"][rate])
                axes.barh(place, median, color=COLOURS[number], height=0.6)
                axes.text(median, place, f" {speed_up(row, rows[0], rate):.1f}x", va="center", fontsize=7)
            axes.set_title(f"{rate} Mbit/s")
            axes.set_xlabel("seconds a step")
            axes.margins(x=0.2)
            axes.grid(axis="y", visible=False)
        panels[0].set_yticks(range(len(rows)), [row["way"] for row in rows])
        panels[0].invert_yaxis()


def _differences(values: Sequence[float], plain: Sequence[float]) -> list[float]:
    return [ours - theirs for ours, theirs in zip(values, plain, strict=False)]


def _is_equal(values: Sequence[float], plain: Sequence[float]) -> bool:
    """Whether the difference could be none: its interval holds zero; one run alone tells nothing."""
    found = _differences(values, plain)
    return len(found) >= 2 and abs(statistics.mean(found)) <= mean_interval(found)


def kind(way: str) -> str:
    """What two ways that end with the same weights share: all but the exchange."""
    return way.removeprefix("autograd ").removeprefix("fused ").removeprefix("gRPC ")


def _line(row: Mapping[str, Any], plain: Mapping[str, Any], rates: Sequence[str]) -> str:
    cells = [
        f"{statistics.median(row['seconds'][rate]):.3f} ({speed_up(row, plain, rate):.1f})"
        if rate in row["seconds"]
        else ""
        for rate in rates
    ]
    return f"| {row['way']} | {megabytes(row['bytes_up'])}, {megabytes(row['bytes_down'])} | {' | '.join(cells)} |"


def _metric_line(name: str, values: Sequence[float], plain: Sequence[float]) -> str:
    return f"| {name} | {_with_interval(values)} | {_with_interval(_differences(values, plain), sign='+')} |"


def _with_interval(values: Sequence[float], sign: str = "") -> str:
    shown = f"{statistics.mean(values):{sign}.3f}"
    return shown if len(values) < 2 else f"{shown} ± {mean_interval(values):.3f}"
