"""``suture bench all``: the five sections of docs/benchmarks.md, one after the other, with an estimate before."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from launch.bench import clients, line, page, profile, startup, train
from launch.bench.plan import check_sizes, say

# Minutes of each section in each size, on two quiet cores of the machine that docs/benchmarks.md names.
_MINUTES = {
    "standard": {"train": 6, "clients": 8, "line": 8, "startup": 2, "profile": 1},
    "full": {"train": 150, "clients": 60, "line": 45, "startup": 9, "profile": 2},
    "quick": {"train": 1, "clients": 1, "line": 1, "startup": 1, "profile": 1},
}


def run_command(*, full: bool, quick: bool, out: Path | None) -> None:
    """``suture bench all``.

    Raises:
        SutureError: a section failed; those before it have been written.
    """
    check_sizes(full, quick)
    size = "full" if full else "quick" if quick else "standard"
    minutes = _MINUTES[size]
    parts: dict[str, Callable[[], None]] = {
        "train": lambda: train.run_command(full=full, quick=quick, only=None, out=out),
        "clients": lambda: clients.run_command(full=full, quick=quick, out=out),
        "line": lambda: line.run_command(full=full, quick=quick, data=None, out=out),
        "startup": lambda: startup.run_command(full=full, quick=quick, out=out),
        "profile": lambda: profile.run_command(full=full, quick=quick, out=out),
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
