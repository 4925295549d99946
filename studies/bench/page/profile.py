"""The page's section on where a step's time goes, from what ``suture.studies.bench.step_profile`` measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture.launch.output.figures.step_times import stacked_steps
from suture.launch.output.table import Table


def fill(found: Mapping[str, Any]) -> dict[str, object]:
    """What the section's text leaves open."""
    medians = found["medians"]
    shown = [part for part in found["parts"] if any(times.get(part, 0.0) > 0 for times in medians.values())]
    rows = []
    for client, times in medians.items():
        parts = {part: f"{1e3 * times.get(part, 0.0):.1f}" for part in shown}
        rows.append({"client": client, **parts, "together": f"{1e3 * sum(times.values()):.1f}"})
    return {"microseconds": 1e6 * found["stopwatch_seconds"], "clients": Table(rows)}


def draw(found: Mapping[str, Any], path: Path) -> None:
    """The run's own picture."""
    stacked_steps(found["medians"], found["parts"], path)
