"""The page's section on step times, from what ``suture.studies.bench.train`` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.launch.output.figures.canvas import COLOURS, drawn
from suture.studies.table import megabytes

TITLE = "A split step over an unsplit one"
IDLE_AIM = 0.02
_SMALL_AIM, _LARGE_AIM, _LARGE = 1.10, 1.02, 128


def aim(image_size: int) -> float:
    """What the ratio should not be above."""
    return _LARGE_AIM if image_size >= _LARGE else _SMALL_AIM


def lines(found: Mapping[str, Any]) -> list[str]:
    """The section's text."""
    rows, idle = found["rows"], found["idle"]
    return [
        "Split training (one server and one client, two processes, RPC, in the sandbox) in both exchanges, over the "
        "same net unsplit in one process. All take turns by blocks of steps, of half a second or more; medians of at "
        f"least {min(len(row['unsplit_seconds']) for row in rows)} steps each, all cores for whoever computes. In "
        "brackets the 95% "
        "bootstrap interval of the ratio: the machine's noise. CPU seconds a step are of all processes that take "
        "part, and hardly feel other programs. The floors, taken in the same run: copying a step's bytes within "
        "memory, and sending them up and down through a loopback TCP socket to another process.",
        "",
        "| net | pixels | batch | cut | unsplit, s | fused | autograd | CPU seconds: unsplit, fused, autograd "
        "| up, down a step | floors, ms: copy, socket | peak memory: server, client, unsplit |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
        "Share of one core that a rank uses while it waits:",
        "",
        *(f"- {who}: {share:.2%}" for who, share in idle.items()),
        "",
        "Aims:",
        "",
        *(f"- {verdict}" for verdict in verdicts(rows, idle)),
    ]


def verdicts(rows: Sequence[Mapping[str, Any]], idle: Mapping[str, float]) -> list[str]:
    """Whether the aims are met, a sentence each."""
    said = []
    nets = dict.fromkeys((str(row["model"]), int(row["image_size"])) for row in rows)
    for model, pixels in nets:
        here = [row for row in rows if (row["model"], row["image_size"]) == (model, pixels)]
        most = aim(pixels)
        over = [row for row in here if row["fused_ratio"] > most]
        what = f"ratio at most {most:.2f}, {model} at {pixels} px, fused"
        worst = max(here, key=lambda row: float(row["fused_ratio"]))
        if not over:
            said.append(f"{what}: met; the largest is {worst['fused_ratio']:.3f} at cut {worst['cut']}.")
            continue
        cuts = ", ".join(f"cut {row['cut']} ({row['fused_ratio']:.3f})" for row in over)
        noise = all(row["fused_ratio_interval"][0] <= most for row in over)
        tail = "; each interval holds the aim, which this run cannot tell from the noise" if noise else ""
        said.append(f"{what}: **not met** at {cuts}{tail}.")
    most = max(idle.values())
    met = "met" if most < IDLE_AIM else "**not met**"
    said.append(f"idle rank below {IDLE_AIM:.0%} of a core: {met}; the largest is {most:.2%}.")
    return said


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Ratios with their intervals, a group of bars a row, and the aim."""
    rows = found["rows"]
    with drawn(path, 9.0, 4.2) as figure:
        axes = figure.add_subplot()
        for number, exchange in enumerate(("fused", "autograd")):
            places = [index + 0.18 * (2 * number - 1) for index in range(len(rows))]
            ratios = [row[f"{exchange}_ratio"] for row in rows]
            spread = [
                [
                    max(0.0, ratio - row[f"{exchange}_ratio_interval"][0])
                    for ratio, row in zip(ratios, rows, strict=True)
                ],
                [
                    max(0.0, row[f"{exchange}_ratio_interval"][1] - ratio)
                    for ratio, row in zip(ratios, rows, strict=True)
                ],
            ]
            axes.errorbar(
                places, ratios, yerr=spread, fmt="o", ms=4, capsize=2, color=COLOURS[number], label=exchange
            )
        for index, row in enumerate(rows):
            label = "aim" if index == 0 else None
            axes.plot(
                [index - 0.4, index + 0.4],
                [aim(row["image_size"])] * 2,
                color=COLOURS[2],
                lw=1.5,
                label=label,
            )
        axes.axhline(1.0, color="#404040", lw=0.8)
        names = [f"{row['model']} {row['image_size']} px\ncut {row['cut']}" for row in rows]
        axes.set_xticks(range(len(rows)), names, rotation=60, ha="right", fontsize=7)
        axes.set_ylabel("step time over unsplit")
        axes.set_title("A split step over an unsplit one (95% intervals)")
        axes.legend()


def _line(row: Mapping[str, Any]) -> str:
    memory = row["peak_memory_bytes"]
    peaks = ", ".join(megabytes(memory[role]) for role in ("server", "client0", "unsplit"))
    net = row["model"] if row["width"] is None else f"{row['model']}, width {row['width']}"
    ratios = " | ".join(_ratio(row, exchange) for exchange in ("fused", "autograd"))
    cpu = ", ".join(f"{row[f'{name}_cpu_seconds']:.2f}" for name in ("unsplit", "fused", "autograd"))
    floors = ", ".join(f"{1e3 * row['floors'][name]:.1f}" for name in ("copy", "socket"))
    return (
        f"| {net} | {row['image_size']} | {row['batch_size']} | {row['cut']} | {row['unsplit_median']:.3f} "
        f"| {ratios} | {cpu} | {megabytes(row['bytes_up'])}, {megabytes(row['bytes_down'])} | {floors} | {peaks} |"
    )


def _ratio(row: Mapping[str, Any], exchange: str) -> str:
    low, high = row[f"{exchange}_ratio_interval"]
    return f"{row[f'{exchange}_ratio']:.3f} ({low:.2f} to {high:.2f})"
