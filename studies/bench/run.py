"""``suture bench NAME`` for the sections of docs/benchmarks.md, and ``all`` of them with an estimate before."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from suture.studies.bench import clients, line, sites, train
from suture.studies.bench.page import page
from suture.studies.bench.plan import say
from suture.studies.bench.rigs import shaped
from suture.studies.machine import machine

_MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "train": train.measure,
    "clients": clients.measure,
    "line": line.measure,
    "sites": sites.measure,
}
_MINUTES = {"train": 6, "clients": 11, "line": 21, "sites": 18}
"""Of each section, on two quiet cores of the machine that docs/benchmarks.md names."""
_OVER_A_LINE = ("line", "sites")


def run_section(name: str, *, quick: bool, out: Path | None, **asked: Any) -> None:
    """Measures one section and puts it into docs/benchmarks.md, or into OUT; what is not a whole one is shown.

    Args:
        name: of `page.SECTIONS`.
        quick: seconds that show that it works.
        out: where to write; None for docs, or for nowhere if ``quick`` or only a part was measured.
        asked: further options of this section, see its ``measure``.

    Raises:
        SutureError: an option that cannot work, or a process failed.
    """
    shown = {"quick": quick, **asked, "data": None}  # where data lie is for nobody's page
    flags = "".join(f" --{o}" + ("" if v is True else f" {v}") for o, v in shown.items() if v)
    where = machine()
    if name in _OVER_A_LINE and (reason := shaped.why_not()):
        say(f"{name}: not measured: {reason}")
        measured: dict[str, Any] = {"skipped": reason}
    else:
        measured = _MEASURES[name](quick=quick, **asked)
    if out is None and not quick and not asked.get("only"):
        out = page.FULL if asked.get("full") else page.DOCS
    page.finish(out, name, page.content(f"suture bench {name}{flags}", where, measured))


def run_all(*, quick: bool, out: Path | None) -> None:
    """``suture bench all``.

    Raises:
        SutureError: a section failed; those before it have been written.
    """
    minutes = dict.fromkeys(_MINUTES, 1) if quick else _MINUTES
    listed = ", ".join(f"{name} {count}" for name, count in minutes.items())
    say(f"Estimate, on two quiet cores: {sum(minutes.values())} minutes ({listed})")
    begun = time.monotonic()
    for name in page.SECTIONS:
        since = time.monotonic()
        run_section(name, quick=quick, out=out)
        took, so_far = (time.monotonic() - since) / 60, (time.monotonic() - begun) / 60
        say(f"{name}: {took:.1f} minutes of an estimated {minutes[name]}; {so_far:.1f} so far")
