"""The page's section on starting a run, from what ``suture.studies.bench.startup`` measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture.launch.output.table import Table, bullets
from suture.studies.bench.page.bars import bars, spread, told

_MILESTONES = ("images read", "all joined", "first step")
_PROCESSOR = "processor seconds until then, all processes"


def fill(found: Mapping[str, Any]) -> dict[str, object]:
    """What the section's text leaves open."""
    starts = found["starts"]
    before, after = (statistics.median(_seconds(each, "first step")) for each in starts.values())
    rows = []
    for way, each in starts.items():
        reached = {what: told(_seconds(each, what), 1) for what in _MILESTONES}
        rows.append({"started with": f"`{way}`", **reached, _PROCESSOR: told(_seconds(each, "processor"), 1)})
    return {
        "num_clients": found["ranks"] - 1,
        "repeats": len(next(iter(starts.values()))),
        "ways": Table(rows),
        "over": f"{after / before:.2f}",
        "total": sum(found["imports"].values()),
        "packages": bullets([f"{package}: {seconds:.2f} s" for package, seconds in found["imports"].items()]),
    }


def draw(found: Mapping[str, Any], path: Path) -> None:
    """A panel a milestone, a bar a way."""
    ways = found["starts"].items()
    panels = {what: {way: spread(_seconds(each, what)) for way, each in ways} for what in _MILESTONES}
    bars(panels, path, "seconds from the command")


def _seconds(starts: list[dict[str, float]], what: str) -> list[float]:
    return [found[what] for found in starts]
