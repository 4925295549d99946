"""docs/benchmarks.md and docs/benchmarks.json, from what ``launch.bench.train`` measured."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from launch.tables import megabytes
from runtime.checkpoint import write_atomically
from runtime.errors import ConfigError

RATIO_AIM, RATIO_AIM_SIZE, IDLE_AIM = 1.05, 128, 0.02


def machine() -> dict[str, Any]:
    """Where and when, and how busy the machine was before the benchmark added its own load."""
    memory = psutil.virtual_memory().total
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_before": list(os.getloadavg()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write(out: Path, command: str, where: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    """Writes OUT/benchmarks.md and OUT/benchmarks.json.

    Raises:
        ConfigError: the folder cannot be written.
    """
    content = {"command": command, "machine": dict(where), **measured}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "benchmarks.json", (json.dumps(content, indent=1) + "\n").encode())
        write_atomically(out / "benchmarks.md", page(command, where, measured).encode())
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}; give another --out") from None


def page(command: str, where: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """The page, in Markdown."""
    rows, idle = measured["rows"], measured["idle"]
    load = ", ".join(f"{value:.2f}" for value in where["load_before"])
    lines = [
        "# Benchmarks",
        "",
        f"Measured with `{command}` on {where['date']}: {where['processor']}, {where['cores']} cores, "
        f"{where['memory_bytes'] / 2**30:.0f} GiB, {where['system']}, Python {where['python']}, "
        f"torch {where['torch']}, no GPU used. Load average before it began (1, 5, 15 minutes): {load}.",
        "",
        "Time of one training step: split (one server and one client, two processes, RPC, in the sandbox) in both "
        "exchanges, over the time of the same net unsplit in one process. All are alive at once and take turns by "
        f"blocks of steps; medians of {len(rows[0]['unsplit_seconds'])} steps each, all cores for whoever "
        "computes. In brackets the 95% bootstrap interval of the ratio: the machine's noise. CPU seconds a "
        "step are of all processes that take part, and hardly feel other programs. OMP_WAIT_POLICY is PASSIVE on all "
        "sides. Images are noise; memory is that of fused; "
        "every number is in [benchmarks.json](benchmarks.json).",
        "",
        "| net | pixels | batch | cut | unsplit, s | fused | autograd | CPU seconds: unsplit, fused, autograd "
        "| up a step | down a step | peak memory: server, client, unsplit |",
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
    return "\n".join(lines) + "\n"


def verdicts(rows: list[dict[str, Any]], idle: Mapping[str, float]) -> list[str]:
    """Whether the aims are met, said plainly."""
    said = []
    large = [row for row in rows if row["image_size"] == RATIO_AIM_SIZE]
    for model in dict.fromkeys(row["model"] for row in large):
        over = [row for row in large if row["model"] == model and row["fused_ratio"] > RATIO_AIM]
        aim = f"ratio at most {RATIO_AIM} at {RATIO_AIM_SIZE} px, {model}, fused"
        worst = max(
            (row for row in large if row["model"] == model), key=lambda row: float(row["fused_ratio"])
        )
        if over:
            cuts = ", ".join(f"cut {row['cut']} ({row['fused_ratio']:.3f})" for row in over)
            said.append(f"{aim}: **not met** at {cuts}.")
        else:
            said.append(f"{aim}: met; the largest is {worst['fused_ratio']:.3f} at cut {worst['cut']}.")
    most = max(idle.values())
    met = "met" if most < IDLE_AIM else "**not met**"
    said.append(f"idle rank below {IDLE_AIM:.0%} of a core: {met}; the largest is {most:.2%}.")
    return said


def _line(row: Mapping[str, Any]) -> str:
    memory = row["peak_memory_bytes"]
    peaks = ", ".join(megabytes(memory[role]) for role in ("server", "client0", "unsplit"))
    net = row["model"] if row["width"] is None else f"{row['model']}, width {row['width']}"
    ratios = " | ".join(_ratio(row, exchange) for exchange in ("fused", "autograd"))
    cpu = ", ".join(f"{row[f'{name}_cpu_seconds']:.2f}" for name in ("unsplit", "fused", "autograd"))
    return (
        f"| {net} | {row['image_size']} | {row['batch_size']} | {row['cut']} | {row['unsplit_median']:.3f} "
        f"| {ratios} | {cpu} | {megabytes(row['bytes_up'])} | {megabytes(row['bytes_down'])} | {peaks} |"
    )


def _ratio(row: Mapping[str, Any], exchange: str) -> str:
    low, high = row[f"{exchange}_ratio_interval"]
    return f"{row[f'{exchange}_ratio']:.3f} ({low:.2f} to {high:.2f})"
