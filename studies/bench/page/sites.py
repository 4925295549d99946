"""The page's section on what runs between sites, from what ``suture.studies.bench.sites`` measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.launch.output.table import Table, bullets, megabytes
from suture.studies.bench.page.bars import bars, spread, told, verdict
from suture.studies.bench.page.line import shape_names
from suture.studies.statistics import ratio_interval

STEP_AIM, HANDOFF_AIM, MEMORY_AIM = 1.05, 0.9, 350_000_000
SLOW = 100.0
"""Mbit/s up to which the first two aims hold."""


def fill(found: Mapping[str, Any]) -> dict[str, object]:
    """What the section's text leaves open."""
    real = found["consortium"]
    crowd, alone, reconnects = real["crowd"], real["alone"], real["reconnects"]
    memory = {
        f"one of {crowd['sites']} sites, median": crowd["memory"],
        "a site alone, small U-Net": alone["memory"],
        f"the server of {crowd['sites']}": [crowd["server"]],
    }
    return {
        "num_steps": min(len(steps["grpc"]) for steps in found["steps"]),
        "handoff": megabytes(found["handed"][0]["grpc"][0][1]),
        "num_joins": len(found["joins"][0]),
        "lines": Table(_by_line(found)),
        "crowd": crowd,
        "alone": alone,
        "seated": told(reconnects["seated"], 2),
        "stepped": told(reconnects["stepped"], 2),
        "num_reconnects": len(reconnects["seated"]),
        "memory": Table([_memory(who, seen) for who, seen in memory.items()]),
        "aims": bullets(verdicts(found)),
    }


def _by_line(found: Mapping[str, Any]) -> list[dict[str, object]]:
    """A row a quantity, a column a line."""
    lines, steps = found["plan"]["lines"], found["steps"]
    shapes = shape_names(lines)

    def row(name: str, cells: Iterable[str]) -> dict[str, object]:
        return {"": name, **dict(zip(shapes, cells, strict=True))}

    rows = [
        row("step over gRPC, s", (f"{statistics.median(times['grpc']):.3f}" for times in steps)),
        row("over the same by torch RPC", (_ratio(times["grpc"], times["rpc"]) for times in steps)),
        row("means instead of medians", (f"{_mean_over(times):.3f}" for times in steps)),
    ]
    for carrier, name in (("grpc", "gRPC"), ("rpc", "torch RPC")):
        for direction in ("up", "down"):
            handed = zip(found["handed"], lines, strict=True)
            shares = (share_of_line(each[carrier], direction, megabits) for each, (megabits, _) in handed)
            rows.append(
                row(f"hand-off {direction}, {name}, of the line", (f"{share:.0%}" for share in shares))
            )
    rows.append(row("handshake, ms", map(_ms, found["handshakes"])))
    rows.append(row("joining, ms", map(_ms, found["joins"])))
    return rows


def _memory(who: str, seen: Sequence[Mapping[str, int]]) -> dict[str, object]:
    peak, own = (megabytes(round(statistics.median(one[what] for one in seen))) for what in ("peak", "own"))
    return {"": who, "peak resident": peak, "own, shared with no other process": own}


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """Whether the aims are met."""
    measured = zip(found["plan"]["lines"], found["steps"], found["handed"], strict=True)
    slow = {rate: (steps, handed["grpc"]) for (rate, _), steps, handed in measured if rate <= SLOW}
    ratios = {rate: _over(steps["grpc"], steps["rpc"]) for rate, (steps, _) in slow.items()}
    shares = {
        f"{direction} at {rate:g} Mbit/s": share_of_line(handed, direction, rate)
        for rate, (_, handed) in slow.items()
        for direction in ("up", "down")
    }
    worst, least = max(ratios, key=lambda rate: ratios[rate]), min(shares, key=lambda way: shares[way])
    low, _ = ratio_interval(slow[worst][0]["grpc"], slow[worst][0]["rpc"])
    means = ", ".join(f"{_mean_over(steps):.3f} at {rate:g}" for rate, (steps, _) in slow.items())
    noise = "" if ratios[worst] <= STEP_AIM or low > STEP_AIM else "; its interval holds the aim"
    alone = found["consortium"]["alone"]["memory"][0]["own"]
    return [
        verdict(
            f"a step at most {STEP_AIM} of torch RPC's at {SLOW:g} Mbit/s and below",
            ratios[worst] <= STEP_AIM,
            f"the largest is {ratios[worst]:.3f}, at {worst:g} Mbit/s{noise}. Means instead of medians: {means}.",
        ),
        verdict(
            f"hand-offs at {HANDOFF_AIM:.0%} of the line",
            shares[least] >= HANDOFF_AIM,
            f"the least is {shares[least]:.0%}, {least}.",
        ),
        verdict(f"a site in {megabytes(MEMORY_AIM)}", alone <= MEMORY_AIM, f"{megabytes(alone)}."),
    ]


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Seconds a step over each carrier, a panel a line."""
    steps = zip(shape_names(found["plan"]["lines"]), found["steps"], strict=True)
    panels = {
        shape: {"torch RPC": spread(times["rpc"]), "gRPC, TLS": spread(times["grpc"])}
        for shape, times in steps
    }
    bars(panels, path, "seconds a step")


def share_of_line(handed: Sequence[Sequence[Any]], direction: str, megabits: float) -> float:
    """Median bit rate of the hand-offs ``up`` or ``down``, over the line's."""
    rates = [size * 8 / seconds for way, size, seconds in handed if way == direction]
    return float(statistics.median(rates) / (megabits * 1e6))


def _ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.1f}"


def _over(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return float(statistics.median(ours) / statistics.median(theirs))


def _mean_over(steps: Mapping[str, Sequence[float]]) -> float:
    return float(statistics.mean(steps["grpc"]) / statistics.mean(steps["rpc"]))


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    low, high = ratio_interval(ours, theirs)
    return f"{_over(ours, theirs):.3f} ({low:.2f} to {high:.2f})"
