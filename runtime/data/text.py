"""Names of files and classes as text that can be written down: valid UTF-8, and no formula to a spreadsheet."""

import csv
import io
from collections.abc import Iterable

_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")


def plain_name(name: str) -> str:
    r"""A name that the system gave, with each byte that is no UTF-8 written as ``\xfc``, whatever the locale is.

    Python keeps such bytes as lone surrogates, which no file and no wire takes.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def safe_cell(text: str) -> str:
    """A cell of a CSV that no spreadsheet computes: an apostrophe before what would be a formula; numbers stay."""
    if not text.startswith(_FORMULAS):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def csv_text(rows: Iterable[Iterable[str]]) -> str:
    """Rows as a CSV, every cell by `safe_cell`."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([safe_cell(cell) for cell in row] for row in rows)
    return file.getvalue()
