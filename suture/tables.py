"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from suture.models.cuts import CutRow
from suture.studies.cut_advice import Advice


def print_cuts(model: str, image_size: int, batch_size: int, rows: Sequence[CutRow]) -> None:
    """One line a cut: what crosses the wire in a step and what the client carries."""
    title = f"{model} at {image_size} px, batch {batch_size}: MB a step, and the client's share"
    table = Table(title=title, title_justify="left")
    for heading in ("cut", "after", "smashed", "MB up", "MB down", "parameters", "", "FLOPs"):
        is_name = heading == "after"  # of a net of others it can be long: folded, never cut off
        justify: Any = "left" if heading in ("after", "smashed") else "right"
        table.add_column(heading, justify=justify, no_wrap=not is_name, overflow="fold")
    for row in rows:
        table.add_row(
            "" if row.index is None else str(row.index),
            row.name,
            "×".join(map(str, row.smashed_shape)),
            f"{row.bytes_up / 1e6:,.2f}",
            f"{row.bytes_down / 1e6:,.2f}",
            f"{row.client_params:,}",
            f"{row.client_params / row.total_params:.1%}",
            f"{row.client_flop_share:.1%}",
        )
    _console().print(table)


def print_advice(title: str, found: Sequence[Advice], words: Sequence[str]) -> None:
    """One line a cut: milliseconds a step, measured here and predicted for the line."""
    table = Table(title=title, title_justify="left")
    columns = (
        ("cut", "after", "MB a step")
        + ("client half\n(measured)", "server half\n(measured)", "both in one\n(measured)")
        + ("line\n(predicted)", "step\n(predicted)", "")
    )
    for heading in columns:
        is_text = heading in ("after", "")
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    for advice, word in zip(found, words, strict=True):
        row = advice.row
        times = (advice.client, advice.server, advice.measured, advice.line, advice.predicted)
        table.add_row(
            "" if row.index is None else str(row.index),
            row.name,
            f"{(row.bytes_up + row.bytes_down) / 1e6:,.2f}",
            *(f"{seconds * 1e3:,.1f}" for seconds in times),
            word,
        )
    _console().print(table)


def print_verdict(found: Mapping[str, Any]) -> None:
    """The judge's table: the attack beside what needs no attack, for each kind of image."""
    if found.get("target") == "label":
        _print_guesses(found)
        return
    kinds = {"held_out": "held-out images", "train": "training images", "test": "test images"}
    table = Table(
        title=f"{found['spec']} ({found['threat_model']}), round {found['chosen_round']}",
        title_justify="left",
    )
    for heading in (
        "images",
        "row",
        "MSE",
        "of mean",
        "PSNR",
        "SSIM",
        "re-identified",
        "median",
        "worst tenth",
        "read",
    ):
        table.add_column(heading, justify="left" if heading in ("images", "row") else "right")
    for kind, rows in found["scores"].items():
        base = rows["mean image"]["mse"]
        for number, (name, values) in enumerate(rows.items()):
            table.add_row(
                f"{kinds[kind]} ({int(rows['attack']['num_images'])})" if number == 0 else "",
                name,
                _digits(values.get("mse"), 4),
                _digits(values["mse"] / base if "mse" in values and base > 0 else None, 2),
                _digits(values.get("psnr"), 1),
                _digits(values.get("ssim"), 3),
                _percent(values.get("reidentified")),
                _digits(values.get("mse_median"), 4),
                _digits(values.get("mse_worst_tenth"), 4),
                _percent(values.get("read")),
                end_section=number == len(rows) - 1,
            )
    console = _console()
    console.print(table)
    utility = ", ".join(
        f"{name.replace('_', ' ')} {value:.3f}" for name, value in found.get("utility", {}).items()
    )
    stopped = f"; the attack stopped: {found['stopped']}" if found.get("stopped") else ""
    chance = min(rows["attack"]["chance"] for rows in found["scores"].values())
    console.print(
        f"clients: {utility or 'no scores'}; attack: {found['cpu_seconds']:.0f} CPU seconds; re-identified by chance: "
        f"{chance:.1%}{stopped}"
    )


def _print_guesses(found: Mapping[str, Any]) -> None:
    table = Table(
        title=f"{found['spec']}, round {found['chosen_round']}: labels guessed", title_justify="left"
    )
    names = ("attack", "commonest class", "shuffled")
    for heading in ("images", *names):
        table.add_column(heading, justify="left" if heading == "images" else "right")
    for kind, rows in found["scores"].items():
        table.add_row(kind.replace("_", "-"), *(_percent(rows[name]["guessed"]) for name in names))
    Console().print(table)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=130)  # a log file has room


def _digits(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"
