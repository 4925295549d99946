"""What the judge found in an attacked run, as columns of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from launch.experiments.statistics import shown

LEAKS = {
    "mse": ("MSE", 4),
    "of_mean": ("MSE / mean image's", 2),
    "ssim": ("SSIM", 3),
    "mean_ssim": ("mean image's SSIM", 3),
    "reidentified": ("re-identified", 2),
    "chance": ("by chance", 3),
    "read": ("read", 2),
}
"""Heading and digits of each leakage column; all of held-out images. Read: the share that a classifier of the attacker's
images names rightly."""


def leak_headings(of: str = "") -> list[str]:
    """Of the columns of `leak_cells`."""
    return [f"{heading} {of}".strip() for heading, _ in LEAKS.values()]


def verdict(result: Mapping[str, Any], attack: str) -> Mapping[str, Any] | None:
    """The judge's of one attack ("live", or the name of one afterwards); None where there was none."""
    summary = result["summary"]
    found: Mapping[str, Any] | None = (
        summary["attack"] if attack == "live" else summary.get("attacks_afterwards", {}).get(attack)
    )
    return found or None


def leak_facts(result: Mapping[str, Any], attack: str, prefix: str = "") -> dict[str, float]:
    """The columns' values for one run; empty where the attack was not judged."""
    found = verdict(result, attack)
    if found is None:
        return {}
    rows = found["scores"]["held_out"]
    own, mean = rows["attack"], rows["mean image"]
    values = {
        "mse": own["mse"],
        "of_mean": own["mse"] / mean["mse"],
        "ssim": own["ssim"],
        "mean_ssim": mean["ssim"],
        "reidentified": own["reidentified"],
        "chance": own["chance"],
        "read": own.get("read", math.nan),
    }
    return {f"{prefix}{name}": float(value) for name, value in values.items()}


def leak_cells(found: Sequence[Mapping[str, Any]], attack: str) -> list[str]:
    """Means and intervals over the seeds."""
    facts = [leak_facts(result, attack) for result in found]
    cells = []
    for name, (_, digits) in LEAKS.items():
        values = [fact[name] for fact in facts if name in fact]
        cells.append(shown(values, digits) if values else "–")
    return cells
