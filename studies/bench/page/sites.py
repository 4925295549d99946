"""The page's section on what runs between sites, from what ``suture.studies.bench.sites`` measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.launch.output.figures.canvas import COLOURS, drawn
from suture.studies.bench.intervals import ratio_interval
from suture.studies.bench.page.line import shape_names
from suture.studies.table import megabytes

TITLE = "Between sites"
STEP_AIM, HANDOFF_AIM, LOOPBACK_AIM, MEMORY_AIM = 1.05, 0.9, 8e-3, 350_000_000
SLOW = 100.0
"""Mbit/s up to which the first two aims hold."""


def lines(found: Mapping[str, Any]) -> list[str]:
    """The section's text."""
    shapes, rates = shape_names(found["plan"]["lines"]), [megabits for megabits, _ in found["plan"]["lines"]]
    loopback, real = found["loopback"], found["consortium"]
    crowd, alone, reconnects = real["crowd"], real["alone"], real["reconnects"]
    times, floors = loopback["seconds"], loopback["floors"]
    table = [
        ("step over gRPC, s", [f"{statistics.median(steps['grpc']):.3f}" for steps in found["steps"]]),
        ("over the same by torch RPC", [_ratio(steps["grpc"], steps["rpc"]) for steps in found["steps"]]),
        ("means instead of medians", [f"{_mean_over(steps):.3f}" for steps in found["steps"]]),
    ]
    for carrier, name in (("grpc", "gRPC"), ("rpc", "torch RPC")):
        for direction in ("up", "down"):
            shares = [
                share_of_line(handed[carrier], direction, rate)
                for handed, rate in zip(found["handed"], rates, strict=True)
            ]
            table.append((f"hand-off {direction}, {name}, of the line", [f"{share:.0%}" for share in shares]))
    table.append(("handshake, ms", [_ms(seconds) for seconds in found["handshakes"]]))
    table.append(("joining, ms", [_ms(seconds) for seconds in found["joins"]]))
    return [
        "Server and client in network namespaces of their own, joined by a line of so many Mbit/s each way (tbf) and "
        "so many ms one way (a relay in user space). Steps: ResNet-18 at 96 px, cut 2, batch 8, 4.7 MB each way, the "
        "same step over gRPC with mutual TLS 1.3 and over torch RPC in clear, in turn; medians of "
        f"{min(len(steps['grpc']) for steps in found['steps'])}; the ratio's 95% bootstrap interval in brackets. "
        f"Hand-offs of {megabytes(found['handed'][0]['grpc'][0][1])}, from one site by the server to the next: bytes "
        "over seconds as a share of the line's rate, the server's checks and its answer included. A handshake is of "
        "TCP and TLS; joining is from dialling until the site has its seat; medians of "
        f"{len(found['joins'][0])}.",
        "",
        f"| | {' | '.join(shapes)} |",
        f"|---|{'---|' * len(shapes)}",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in table),
        "",
        f"On loopback, a step that computes next to nothing and carries {megabytes(loopback['bytes_up'])} up and as "
        f"much down, medians of {len(times['grpc'])} in turn: {_ms(times['grpc'])} ms over gRPC and TLS, "
        f"{_ms(times['rpc'])} ms over torch RPC, {_ms(times['unsplit'])} ms in one process; the bytes alone through a "
        f"bare TCP socket, {_ms([floors['socket']])} ms.",
        "",
        f"Real processes on this machine: {crowd['sites']} sites of ResNet-18 at 32 px had all joined "
        f"{crowd['joined']:.0f} s after the first command and were done, two rounds and each with its model, after "
        f"{crowd['done']:.0f} s. A site alone (U-Net of width 4 at 64 px) had joined after {alone['joined']:.1f} s. "
        "A site whose line is broken in the middle of its training has its seat again after "
        f"{_spread(reconnects['seated'])} s and its next step has counted after {_spread(reconnects['stepped'])} s "
        f"(median, fastest and slowest of {len(reconnects['seated'])}).",
        "",
        "| | peak resident | own, shared with no other process |",
        "|---|---|---|",
        _memory(f"one of {crowd['sites']} sites, median", crowd["memory"]),
        _memory("a site alone, small U-Net", alone["memory"]),
        _memory(f"the server of {crowd['sites']}", [crowd["server"]]),
        "",
        *(f"- {verdict}" for verdict in verdicts(found)),
    ]


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """Whether the aims are met."""
    places = [place for place, (megabits, _) in enumerate(found["plan"]["lines"]) if megabits <= SLOW]
    rates = {place: found["plan"]["lines"][place][0] for place in places}
    steps = {place: found["steps"][place] for place in places}
    ratios = {place: _over(times["grpc"], times["rpc"]) for place, times in steps.items()}
    shares = {
        f"{direction} at {rates[place]:g} Mbit/s": share_of_line(
            found["handed"][place]["grpc"], direction, rates[place]
        )
        for place in places
        for direction in ("up", "down")
    }
    worst, least = max(ratios, key=lambda place: ratios[place]), min(shares, key=lambda way: shares[way])
    low, _ = ratio_interval(steps[worst]["grpc"], steps[worst]["rpc"])
    means = ", ".join(f"{_mean_over(steps[place]):.3f} at {rates[place]:g}" for place in places)
    noise = "" if ratios[worst] <= STEP_AIM or low > STEP_AIM else "; its interval holds the aim"
    times = found["loopback"]["seconds"]
    added = statistics.median(times["grpc"]) - statistics.median(times["unsplit"])
    alone = found["consortium"]["alone"]["memory"][0]["own"]
    return [
        f"a step at most {STEP_AIM} of torch RPC's at {SLOW:g} Mbit/s and below: {_met(ratios[worst] <= STEP_AIM)}; "
        f"the largest is {ratios[worst]:.3f}, at {rates[worst]:g} Mbit/s{noise}. Means instead of medians: {means}.",
        f"hand-offs at {HANDOFF_AIM:.0%} of the line: {_met(shares[least] >= HANDOFF_AIM)}; the least is "
        f"{shares[least]:.0%}, {least}.",
        f"2.1 MB each way on loopback in {LOOPBACK_AIM * 1e3:g} ms: {_met(added <= LOOPBACK_AIM)}; "
        f"{added * 1e3:.1f} ms more than the step in one process.",
        f"a site in {megabytes(MEMORY_AIM)}: {_met(alone <= MEMORY_AIM)}; {megabytes(alone)}.",
    ]


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Seconds a step over each carrier, a panel a line."""
    shapes = shape_names(found["plan"]["lines"])
    with drawn(path, 9.0, 2.2) as figure:
        panels = figure.subplots(1, len(shapes), squeeze=False)[0]
        for number, (axes, shape, steps) in enumerate(zip(panels, shapes, found["steps"], strict=True)):
            for place, carrier in enumerate(("rpc", "grpc")):
                seconds = steps[carrier]
                axes.barh(place, statistics.median(seconds), color=COLOURS[number], height=0.6)
                axes.plot(seconds, [place] * len(seconds), "|", color="black", markersize=8)
            axes.set_title(shape)
            axes.set_xlabel("seconds a step")
            axes.set_xlim(left=0)
            axes.grid(axis="y", visible=False)
            axes.set_yticks((0, 1), ("torch RPC", "gRPC, TLS") if number == 0 else ("", ""))
            axes.invert_yaxis()


def share_of_line(handed: Sequence[Sequence[Any]], direction: str, megabits: float) -> float:
    """Median bit rate of the hand-offs ``up`` or ``down``, over the line's."""
    rates = [size * 8 / seconds for way, size, seconds in handed if way == direction]
    return float(statistics.median(rates) / (megabits * 1e6))


def _met(is_met: bool) -> str:
    return "met" if is_met else "**not met**"


def _ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.1f}"


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def _over(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return float(statistics.median(ours) / statistics.median(theirs))


def _mean_over(steps: Mapping[str, Sequence[float]]) -> float:
    return float(statistics.mean(steps["grpc"]) / statistics.mean(steps["rpc"]))


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    low, high = ratio_interval(ours, theirs)
    return f"{_over(ours, theirs):.3f} ({low:.2f} to {high:.2f})"


def _memory(name: str, seen: Sequence[Mapping[str, int]]) -> str:
    cells = [megabytes(round(statistics.median(one[what] for one in seen))) for what in ("peak", "own")]
    return f"| {name} | {' | '.join(cells)} |"
