"""The table of scores at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from suture.launch.output.scores import SHOWN

NOTHING = "-"
COLUMNS = {str(task): shown.in_table() for task, shown in SHOWN.items()}


def final_table(summary: Mapping[str, Any]) -> Table:
    """Scores of every client at the end of a run, and their mean.

    Args:
        summary: content of RUN/summary.json; a client whose evaluation was missed has dashes.
    """
    columns = COLUMNS[summary["task"]]
    table = Table(title=f"{summary['model']} cut at {summary['cut']}: {summary['task']}, test images")
    table.add_column("client", no_wrap=True)
    for name in ("train loss", *columns.values()):
        table.add_column(name, justify="right")
    rows = []
    for client, phases in summary["clients"].items():
        test = phases.get("test") or {}
        rows.append([(phases.get("train") or {}).get("loss"), *(test.get(key) for key in columns)])
        table.add_row(Text(client), *map(shown, rows[-1]))
    if len(rows) > 1:
        table.add_section()
        table.add_row("mean", *(shown(_mean(column)) for column in zip(*rows, strict=True)), style="bold")
    return table


def print_final_table(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print ``final_table`` on stdout (or on ``console``)."""
    (console or Console()).print(final_table(summary))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def shown(value: float | None, digits: int = 3) -> str:
    """A score or loss in a table, a dash where there is none."""
    return NOTHING if value is None else f"{value:.{digits}f}"
