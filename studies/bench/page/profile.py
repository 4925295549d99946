"""The page's section on where a step's time goes, from what ``suture.studies.bench.step_profile`` measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture.launch.output.figures.step_times import stacked_steps

TITLE = "Where the time of a step goes"


def lines(found: Mapping[str, Any]) -> list[str]:
    """The section's text."""
    medians = found["medians"]
    shown = [part for part in found["parts"] if any(times.get(part, 0.0) > 0 for times in medians.values())]
    return [
        f"A run of real processes, `suture train {found['options']}`. Milliseconds, medians of {found['steps']} steps "
        "of each client, its first one left out. The client takes its own times and keeps them to itself; the "
        "server takes its own; on one machine they share a clock, so that what is up and what is down can be told "
        f"apart. Taking the times costs a client {1e6 * found['stopwatch_seconds']:.0f} microseconds a step.",
        "",
        f"| client | {' | '.join(shown)} | together |",
        f"|---|{'---|' * len(shown)}---|",
        *(
            f"| {client} | {' | '.join(f'{1e3 * times.get(part, 0.0):.1f}' for part in shown)} "
            f"| {1e3 * sum(times.values()):.1f} |"
            for client, times in medians.items()
        ),
    ]


def draw(found: Mapping[str, Any], path: Path) -> None:
    """The run's own picture."""
    stacked_steps(found["medians"], found["parts"], path)
