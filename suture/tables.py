"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from suture.launch.output.table import Table
from suture.models.cuts import CutRow
from suture.studies.cut_advice import Advice

_KINDS = {"held_out": "held-out images", "train": "training images", "test": "test images"}


def print_cuts(model: str, image_size: int, batch_size: int, rows: Sequence[CutRow]) -> None:
    """One line a cut: what crosses the wire in a step and what the client carries."""
    Table(
        [
            {
                "cut": "" if row.index is None else row.index,
                "after": row.name,
                "smashed": "×".join(map(str, row.smashed_shape)),
                "MB up": f"{row.bytes_up / 1e6:,.2f}",
                "MB down": f"{row.bytes_down / 1e6:,.2f}",
                "parameters": f"{row.client_params:,}",
                "": f"{row.client_params / row.total_params:.1%}",
                "FLOPs": f"{row.client_flop_share:.1%}",
            }
            for row in rows
        ],
        f"{model} at {image_size} px, batch {batch_size}: MB a step, and the client's share",
    ).print()


def print_advice(title: str, found: Sequence[Advice], words: Sequence[str]) -> None:
    """One line a cut: milliseconds a step, measured here and predicted for the line."""
    rows = []
    for advice, word in zip(found, words, strict=True):
        row = advice.row
        times = {
            "client half\n(measured)": advice.client,
            "server half\n(measured)": advice.server,
            "both in one\n(measured)": advice.measured,
            "line\n(predicted)": advice.line,
            "step\n(predicted)": advice.predicted,
        }
        rows.append(
            {
                "cut": "" if row.index is None else row.index,
                "after": row.name,
                "MB a step": f"{(row.bytes_up + row.bytes_down) / 1e6:,.2f}",
                **{heading: f"{seconds * 1e3:,.1f}" for heading, seconds in times.items()},
                "": word,
            }
        )
    Table(rows, title).print()


def print_verdict(found: Mapping[str, Any]) -> None:
    """The judge's table: the attack beside what needs no attack, for each kind of image."""
    if found.get("target") == "label":
        _print_guesses(found)
        return
    table = []
    for kind, rows in found["scores"].items():
        base = rows["mean image"]["mse"]
        for number, (name, values) in enumerate(rows.items()):
            mse = values.get("mse")
            table.append(
                {
                    "images": "" if number else f"{_KINDS[kind]} ({int(rows['attack']['num_images'])})",
                    "row": name,
                    "MSE": _digits(mse, 4),
                    "of mean": _digits(mse / base if mse is not None and base > 0 else None, 2),
                    "PSNR": _digits(values.get("psnr"), 1),
                    "SSIM": _digits(values.get("ssim"), 3),
                    "re-identified": _share(values, "reidentified"),
                    "median": _digits(values.get("mse_median"), 4),
                    "worst tenth": _digits(values.get("mse_worst_tenth"), 4),
                    "read": _share(values, "read"),
                }
            )
    utility = ", ".join(
        f"{name.replace('_', ' ')} {value:.3f}" for name, value in found.get("utility", {}).items()
    )
    learning = found.get("learning", {"ended": "not said", "budget": ""})
    budget = f" ({learning['budget']})" if learning["budget"] else ""
    images = found.get("auxiliary", {}).get("images", 0)
    stopped = f"; the attack stopped: {found['stopped']}" if found.get("stopped") else ""
    chance = min(rows["attack"]["chance"] for rows in found["scores"].values())
    note = (
        f"clients: {utility or 'no scores'}; attack: {found.get('steps', 0)} steps, {found['cpu_seconds']:.0f} CPU "
        f"seconds, {images} auxiliary images, ended: {learning['ended']}{budget}; re-identified by chance: "
        f"{chance:.1%}{stopped}"
    )
    title = f"{found['spec']} ({found['threat_model']}), round {found['chosen_round']}"
    Table(table, title, [note]).print()


def _print_guesses(found: Mapping[str, Any]) -> None:
    names = ("attack", "commonest class", "shuffled")
    rows = [
        {"images": kind.replace("_", "-"), **{name: _share(rows[name], "guessed") for name in names}}
        for kind, rows in found["scores"].items()
    ]
    Table(rows, f"{found['spec']}, round {found['chosen_round']}: labels guessed").print()


def _digits(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _share(values: Mapping[str, Any], name: str) -> str:
    """A share with its interval, where the verdict has one: ``95.0% (83.5 to 98.6)``."""
    value, ends = values.get(name), values.get(f"{name}_interval")
    if value is None:
        return ""
    interval = "" if ends is None else f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"
    return f"{100 * value:.1f}%{interval}"
