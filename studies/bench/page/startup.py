"""The page's section on starting a run, from what ``suture.studies.bench.startup`` measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture.launch.output.figures.canvas import COLOURS, drawn

TITLE = "Starting a run"
_MILESTONES = ("images read", "all joined", "first step")


def lines(found: Mapping[str, Any]) -> list[str]:
    """The section's text."""
    repeats = len(next(iter(found["starts"].values())))
    before, after = (_median(starts, "first step") for starts in found["starts"].values())
    total = sum(found["imports"].values())
    return [
        f"Seconds from the command to what the run has come to, one server and {found['ranks'] - 1} clients on this "
        f"machine; medians of {repeats} starts of each, in turn, fastest and slowest in brackets. Under `torchrun "
        "launch/run.py` every rank imports torch and the rest for itself; `suture train` forks its ranks from one "
        "process that has, and that imports while the command itself still does. Images are drawn (32 a client).",
        "",
        "| started with | images read | all joined | first step | processor seconds until then, all processes |",
        "|---|---|---|---|---|",
        *(
            f"| `{way}` | {' | '.join(_spread(starts, what) for what in (*_MILESTONES, 'processor'))} |"
            for way, starts in found["starts"].items()
        ),
        "",
        f"To the first step forking takes {after / before:.2f} times as long. What one rank's imports take "
        f"(`python -X importtime`, {total:.1f} s; it measures itself, too):",
        "",
        *(f"- {package}: {seconds:.2f} s" for package, seconds in found["imports"].items()),
    ]


def draw(found: Mapping[str, Any], path: Path) -> None:
    """A bar a way, its parts the time between milestones."""
    with drawn(path, 8.0, 2.4) as figure:
        axes = figure.add_subplot()
        for row, starts in enumerate(found["starts"].values()):
            before = 0.0
            for number, what in enumerate(_MILESTONES):
                until = _median(starts, what)
                axes.barh(
                    row,
                    until - before,
                    left=before,
                    color=COLOURS[number],
                    height=0.6,
                    label=what if row == 0 else None,
                )
                before = until
            axes.text(before, row, f" {before:.1f} s", va="center")
        axes.set_yticks(range(len(found["starts"])), list(found["starts"]))
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds from the command, medians")
        axes.set_title(f"Starting {found['ranks']} ranks: until ...")
        figure.legend(loc="outside lower center", ncols=3)


def _median(starts: list[dict[str, float]], what: str) -> float:
    return statistics.median(found[what] for found in starts)


def _spread(starts: list[dict[str, float]], what: str) -> str:
    seconds = [found[what] for found in starts]
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
