"""What the judge found in an attacked run, as columns of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from suture.studies.statistics import shown, shown_share

LEAKS = {
    "mse": ("MSE", 4),
    "of_mean": ("of the mean image's", 2),
    "ssim": ("SSIM", 3),
    "reidentified": ("re-identified", 2),
    "read": ("read", 2),
}
"""Heading and digits of each leakage column; all of held-out images. Read: the share that a classifier of the
attacker's images names rightly."""
_SHARES = ("reidentified", "read")
UNREAD = tuple(name for name in LEAKS if name != "read")


def verdict(result: Mapping[str, Any], attack: str) -> Mapping[str, Any] | None:
    """The judge's of one attack ("live", or the name of one afterwards); None where there was none."""
    summary = result["summary"]
    found: Mapping[str, Any] | None = (
        summary["attack"] if attack == "live" else summary.get("attacks_afterwards", {}).get(attack)
    )
    return found or None


def leak_facts(result: Mapping[str, Any], attack: str, prefix: str = "") -> dict[str, float]:
    """The columns' values for one run, and what knowing nothing gives; empty where the attack was not judged."""
    found = verdict(result, attack)
    if found is None:
        return {}
    rows = found["scores"]["held_out"]
    own, mean = rows["attack"], rows["mean image"]
    values = {
        "mse": own["mse"],
        "of_mean": own["mse"] / mean["mse"],
        "ssim": own["ssim"],
        "reidentified": own["reidentified"],
        "read": own.get("read", math.nan),
        "mean_image_ssim": mean["ssim"],
        "chance": own["chance"],
        "num_images": own["num_images"],
    }
    return {f"{prefix}{name}": float(value) for name, value in values.items() if not math.isnan(value)}


def leak_cells(
    found: Sequence[Mapping[str, Any]], attack: str, columns: Sequence[str] = tuple(LEAKS)
) -> dict[str, str]:
    """Means and intervals over the seeds, by heading."""
    facts = [leak_facts(result, attack) for result in found]
    num_images = min((int(fact["num_images"]) for fact in facts if fact), default=1)
    cells = {}
    for name in columns:
        heading, digits = LEAKS[name]
        values = [fact[name] for fact in facts if name in fact]
        cells[heading] = shown_share(values, digits, num_images) if name in _SHARES else shown(values, digits)
    return cells


def nothing_known(found: Sequence[Mapping[str, Any]], attack: str) -> str:
    """A sentence on what an attacker without smashed data reaches on the same images."""
    facts = [fact for result in found if (fact := leak_facts(result, attack))]
    if not facts:
        return ""
    ssim, chance = (sum(f[name] for f in facts) / len(facts) for name in ("mean_image_ssim", "chance"))
    told = [verdict(result, attack) for result in found]
    cut_short = sum(own["learning"]["ended"] == "still learning" for own in told if own and "learning" in own)
    warning = (
        f" **Still learning** when the budget ended: {cut_short} of {len(facts)} attackers; their figures are no bound."
        if cut_short
        else ""
    )
    return f"Knowing nothing gives the mean image: SSIM {ssim:.3f}; {chance:.1%} are re-identified by chance.{warning}"
