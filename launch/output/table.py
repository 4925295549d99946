"""The one table: in Markdown (and so on a page of it), in HTML, as CSV, and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import rich.table
from rich.console import Console
from rich.text import Text

from suture.launch.output.text import text
from suture.runtime.data.text import csv_text

_NUMERIC = tuple("0123456789+-–")
_LOG_WIDTH = 130  # a log file has room


class Html(str):
    """A cell that is HTML already."""


@dataclass(frozen=True)
class Table:
    """Rows of cells by heading; the columns are the headings of all rows, and a cell that a row lacks is empty.

    Attributes:
        rows: cells by heading, as they are shown.
        title: stands above; in an experiment it says the scale.
        notes: sentences below; empty ones are left out.
    """

    rows: Sequence[Mapping[str, object]]
    title: str = ""
    notes: Sequence[str] = ()

    @property
    def headings(self) -> list[str]:
        """Of the columns, in the order in which rows name them."""
        return list(dict.fromkeys(heading for row in self.rows for heading in row))

    def cells(self) -> list[list[str]]:
        """Row by row, as text."""
        return [[str(row.get(heading, "")) for heading in self.headings] for row in self.rows]

    def to_markdown(self, level: int = 2) -> str:
        """With title, as a heading of ``level``, and notes."""
        parts = [f"{'#' * level} {self.title}"] if self.title else []
        if self.rows:
            lines = [_line(self.headings), "|" + "---|" * len(self.headings), *map(_line, self.cells())]
            parts.append("\n".join(lines))
        if notes := bullets(self.notes):
            parts.append(notes)
        return "\n\n".join(parts) + "\n"

    def to_html(self, *, head: str = "", cards: bool = False, total: bool = False) -> str:
        """In a box that scrolls sideways by itself, by keyboard as well; the title is the caption.

        A row's cells say their heading, which a card shows, and their role, which a card would lose.

        Args:
            head: the rows of headings, where one line of them is not enough.
            cards: on a phone a card a row.
            total: the last row is of all the others.
        """
        caption, (first, *labels) = text(self.title), self.headings
        rows = []
        for number, row in enumerate(self.rows, 1):
            kind = ' class="all"' if total and number == len(self.rows) else ""
            cells = "".join(
                f'<td role="cell" data-label="{text(label)}">{_html(row.get(label, ""))}</td>'
                for label in labels
            )
            rows.append(
                f'<tr role="row"{kind}><th role="rowheader" scope="row">{_html(row[first])}</th>{cells}</tr>'
            )
        return (
            f'<div class="box{" cards" if cards else ""}" tabindex="0" role="region" aria-label="{caption}">'
            f'<table role="table"><caption class="unseen">{caption}</caption>'
            f"<thead>{head or f'<tr>{column_heads(self.headings)}</tr>'}</thead>"
            f'<tbody role="rowgroup">{"".join(rows)}</tbody></table></div>'
        )

    def to_csv(self) -> str:
        """Without title and notes; floats keep six digits."""
        values = ([row.get(heading, "") for heading in self.headings] for row in self.rows)
        cells = ([f"{v:.6f}" if isinstance(v, float) else str(v) for v in row] for row in values)
        return csv_text([self.headings, *cells])

    def print(self) -> None:
        """Shows it on the terminal, columns of numbers flush right."""
        table = rich.table.Table(title=Text(self.title) if self.title else None, title_justify="left")
        cells = self.cells()
        for heading, *column in zip(self.headings, *cells, strict=True):
            is_numeric = all(not cell or cell.startswith(_NUMERIC) for cell in column)
            table.add_column(heading, justify="right" if is_numeric else "left", overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))
        console = Console()
        (console if console.is_terminal else Console(width=_LOG_WIDTH)).print(table)
        for note in filter(None, self.notes):
            console.print(note, markup=False, highlight=False)


def column_heads(names: Sequence[str]) -> str:
    """Headings in HTML."""
    return "".join(f'<th scope="col">{text(name)}</th>' for name in names)


def bullets(sentences: Sequence[str]) -> str:
    """A Markdown list of those that are not empty."""
    return "\n".join(f"- {sentence}" for sentence in sentences if sentence)


def megabytes(count: float) -> str:
    """Bytes for people: 25.69 MB is 25,690,000 bytes."""
    return f"{count / 1e6:,.2f} MB"


def _html(cell: object) -> str:
    return cell if isinstance(cell, Html) else text(cell)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
