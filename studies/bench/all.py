"""``suture bench all``: the six sections of docs/benchmarks.md, one after the other, with an estimate before."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from suture.studies.bench import clients, line, sites, startup, step_profile, train
from suture.studies.bench.page import page
from suture.studies.bench.plan import say

# Minutes of each section, on two quiet cores of the machine that docs/benchmarks.md names.
_MINUTES = {"train": 6, "clients": 11, "line": 21, "sites": 18, "startup": 2, "profile": 1}


def run_command(*, quick: bool, out: Path | None) -> None:
    """``suture bench all``.

    Raises:
        SutureError: a section failed; those before it have been written.
    """
    minutes = dict.fromkeys(_MINUTES, 1) if quick else _MINUTES
    parts: dict[str, Callable[[], None]] = {
        "train": lambda: train.run_command(full=False, quick=quick, only=None, out=out),
        "clients": lambda: clients.run_command(quick=quick, out=out),
        "line": lambda: line.run_command(quick=quick, data=None, out=out),
        "sites": lambda: sites.run_command(quick=quick, out=out),
        "startup": lambda: startup.run_command(quick=quick, out=out),
        "profile": lambda: step_profile.run_command(quick=quick, out=out),
    }
    assert tuple(parts) == page.SECTIONS
    listed = ", ".join(f"{name} {minutes[name]}" for name in parts)
    say(f"Estimate, on two quiet cores: {sum(minutes.values())} minutes ({listed})")
    begun = time.monotonic()
    for name, run in parts.items():
        since = time.monotonic()
        run()
        took, so_far = (time.monotonic() - since) / 60, (time.monotonic() - begun) / 60
        say(f"{name}: {took:.1f} minutes of an estimated {minutes[name]}; {so_far:.1f} so far")
