"""The page's section on step times, from what ``suture.studies.bench.train`` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.launch.output.table import Table, bullets, megabytes
from suture.studies.bench.page.bars import Spread, bars, verdict

IDLE_AIM = 0.02
_SMALL_AIM, _LARGE_AIM, _LARGE = 1.10, 1.02, 128


def aim(image_size: int) -> float:
    """What the ratio should not be above."""
    return _LARGE_AIM if image_size >= _LARGE else _SMALL_AIM


def fill(found: Mapping[str, Any]) -> dict[str, object]:
    """What the section's text leaves open."""
    rows, idle = found["rows"], found["idle"]
    return {
        "least": min(len(row["unsplit_seconds"]) for row in rows),
        "steps": Table([_cells(row) for row in rows]),
        "waiting": bullets([f"{who}: {share:.2%}" for who, share in idle.items()]),
        "aims": bullets(verdicts(rows, idle)),
    }


def _cells(row: Mapping[str, Any]) -> dict[str, object]:
    memory = row["peak_memory_bytes"]
    cpu = (f"{row[f'{name}_cpu_seconds']:.2f}" for name in ("unsplit", "fused", "autograd"))
    return {
        "net": _net(row),
        "pixels": row["image_size"],
        "batch": row["batch_size"],
        "cut": row["cut"],
        "unsplit, s": f"{row['unsplit_median']:.3f}",
        "fused": _ratio(row, "fused"),
        "autograd": _ratio(row, "autograd"),
        "CPU seconds: unsplit, fused, autograd": ", ".join(cpu),
        "up, down a step": f"{megabytes(row['bytes_up'])}, {megabytes(row['bytes_down'])}",
        "peak memory: server, client, unsplit": ", ".join(
            megabytes(memory[role]) for role in ("server", "client0", "unsplit")
        ),
    }


def _net(row: Mapping[str, Any]) -> str:
    return str(row["model"]) if row["width"] is None else f"{row['model']}, width {row['width']}"


def _ratio(row: Mapping[str, Any], exchange: str) -> str:
    low, high = row[f"{exchange}_ratio_interval"]
    return f"{row[f'{exchange}_ratio']:.3f} ({low:.2f} to {high:.2f})"


def verdicts(rows: Sequence[Mapping[str, Any]], idle: Mapping[str, float]) -> list[str]:
    """Whether the aims are met, a sentence each."""
    said = []
    for model, pixels in dict.fromkeys((str(row["model"]), int(row["image_size"])) for row in rows):
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
    largest = max(idle.values())
    what = f"idle rank below {IDLE_AIM:.0%} of a core"
    return [*said, verdict(what, largest < IDLE_AIM, f"the largest is {largest:.2%}.")]


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Ratios with their intervals; the line is the unsplit step."""
    panels: dict[str, dict[str, Spread]] = {}
    for exchange in ("fused", "autograd"):
        panels[exchange] = {}
        for row in found["rows"]:
            low, high = row[f"{exchange}_ratio_interval"]
            name = f"{_net(row)}, {row['image_size']} px, cut {row['cut']}"
            panels[exchange][name] = (low, row[f"{exchange}_ratio"], high)
    bars(panels, path, "times the unsplit step", aim=1.0)
