"""The page's section on many clients, from what ``suture.studies.bench.clients`` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.launch.output.table import Table, bullets, megabytes
from suture.studies.bench.page.bars import Spread, bars, spread, verdict

AIM, AIM_CLIENTS = 0.95, 8
_FLAT = 1.25


def fill(found: Mapping[str, Any]) -> dict[str, object]:
    """What the section's text leaves open."""
    rows = found["rows"]
    left_out = [f"left out: {reason}" for reason in found["left_out"]]
    return {
        "num_rounds": found["plan"]["blocks"] * found["plan"]["rounds"],
        "counts": Table([_cells(row) for row in rows]),
        "aims": bullets([*left_out, *verdicts(rows)]),
    }


def _cells(row: Mapping[str, Any]) -> dict[str, object]:
    memory = [row[f"{whose}_memory_bytes"] for whose in ("server", "client", "client_own")]
    server, client, own = map(megabytes, memory)
    return {
        "clients": row["clients"],
        "steps a turn": row["turn_steps"],
        "schedule": row["schedule"],
        "images/s": f"{row['images_per_second']:.1f}",
        "over unsplit": f"{row['over_unsplit']:.3f}",
        "server, CPU s a step": f"{row['server_cpu_seconds_a_step']:.4f}",
        "peak memory: server, a client": f"{server}, {client}",
        "a client's own memory": own,
    }


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether the aims are met, a sentence each."""
    said = []
    few = [row for row in rows if row["schedule"] == "parallel" and row["clients"] <= AIM_CLIENTS]
    if few:
        worst = min(few, key=lambda row: float(row["over_unsplit"]))
        what = f"parallel at least {AIM:.2f} of unsplit with 1 to {AIM_CLIENTS} clients"
        smallest = f"the smallest is {worst['over_unsplit']:.3f} with {worst['clients']}."
        said.append(verdict(what, worst["over_unsplit"] >= AIM, smallest))
    for schedule in dict.fromkeys(row["schedule"] for row in rows):
        ours = [row for row in rows if row["schedule"] == schedule]
        first, last = ours[0], ours[-1]
        grown = last["server_cpu_seconds_a_step"] / max(first["server_cpu_seconds_a_step"], 1e-9)
        met = "flat" if grown <= _FLAT else "**not flat**"
        said.append(
            f"server's seconds a step, {schedule}: {met}; with {last['clients']} clients, turns of "
            f"{last['turn_steps']}, {grown:.2f} times those with {first['clients']}, turns of {first['turn_steps']}."
        )
    return said


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Images a second over the unsplit net's, a panel a schedule; the line is the aim for parallel."""
    panels: dict[str, dict[str, Spread]] = {}
    for row in found["rows"]:
        panels.setdefault(row["schedule"], {})[f"clients: {row['clients']}"] = spread([row["over_unsplit"]])
    bars(panels, path, "times unsplit", aim=AIM)
