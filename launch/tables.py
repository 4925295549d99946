"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from models.cuts import CutRow


def print_cuts(model: str, image_size: int, batch_size: int, rows: Sequence[CutRow]) -> None:
    """One line a cut: what crosses the wire and what the client carries."""
    table = Table(title=f"{model} at {image_size} px, batch {batch_size}", title_justify="left")
    for heading in (
        "cut",
        "after",
        "smashed",
        "up a step",
        "down a step",
        "client parameters",
        "client FLOPs",
    ):
        table.add_column(heading, justify="left" if heading in ("after", "smashed") else "right")
    for row in rows:
        table.add_row(
            "" if row.index is None else str(row.index),
            row.name,
            " x ".join(map(str, row.smashed_shape)),
            megabytes(row.bytes_up),
            megabytes(row.bytes_down),
            f"{row.client_params:,} ({row.client_params / row.total_params:.1%})",
            f"{row.client_flop_share:.1%}",
        )
    Console().print(table)


def megabytes(count: int) -> str:
    """Bytes for people: 25.69 MB is 25,690,000 bytes."""
    return f"{count / 1e6:,.2f} MB"
