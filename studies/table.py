"""A table of an experiment: for markdown, for HTML, and the runs behind it as CSV."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: says the scale.
        headings: of the columns.
        rows: cells as they are shown.
        notes: sentences below it.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)

    def to_markdown(self) -> str:
        """With title and notes."""
        lines = [f"## {self.title}", "", _line(self.headings), "|" + "---|" * len(self.headings)]
        lines += [_line(row) for row in self.rows]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """As a figure that scrolls sideways where it is wider than the page."""
        head = "".join(f"<th>{html.escape(text)}</th>" for text in self.headings)
        body = "".join(
            f"<tr><th>{_breakable(first)}</th>{''.join(map(_cell, rest))}</tr>" for first, *rest in self.rows
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f"<h3>{html.escape(self.title)}</h3>"
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
            + (f"<ul>{notes}</ul>" if notes else "")
        )


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """A line a run; columns that a row lacks are empty. Floats keep six digits."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = [row.get(column, "") for column in columns]
        writer.writerow([f"{value:.6f}" if isinstance(value, float) else value for value in values])
    return text.getvalue()


def _cell(text: str) -> str:
    return f"<td class=number>{html.escape(text)}</td>" if "±" in text else f"<td>{_breakable(text)}</td>"


def _breakable(text: str) -> str:
    """With places where a long SPEC may go on in the next line."""
    return html.escape(text).replace(",", ",<wbr>").replace(":", ":<wbr>")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def megabytes(count: int) -> str:
    """Bytes for people: 25.69 MB is 25,690,000 bytes."""
    return f"{count / 1e6:,.2f} MB"
