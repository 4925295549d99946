"""Text and numbers as they stand on the page; whatever comes from a file or over the wire goes through here."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable
from datetime import timedelta

DASH = "–"
_MOST_CHARACTERS = 2000
_INVISIBLE = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}


def text(value: object) -> str:
    """``value`` as HTML text or an attribute's value: escaped, cut off where it is long, nothing invisible in it.

    Controls, among them those that turn the direction of writing, would let a name look like another one.
    """
    plain = " ".join(str(value)[:_MOST_CHARACTERS].split())
    return html.escape("".join("�" if unicodedata.category(sign) in _INVISIBLE else sign for sign in plain))


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of what a name stands for, in HTML."""
    told = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{told}</dl>'


def shown(value: float) -> str:
    """A number without needless zeros."""
    return f"{value:.6g}"


def score(value: float | None) -> str:
    """A score or loss with three digits, a dash where there is none."""
    return DASH if value is None else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """Seconds in words that fit: "0.8 s", "48 s", "3 min 20 s", "2 h 05 min"."""
    if seconds is None:
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    total = timedelta(seconds=round(seconds))
    minutes, rest = divmod(int(total.total_seconds()), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def size(count: float | None) -> str:
    """Bytes in units of a thousand."""
    if count is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
