"""Values of files that may hold anything: a number, a count or a table, or nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def number(value: object) -> float | None:
    """A finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def whole(value: object) -> int | None:
    """A count of at least 0, None for anything else."""
    known = number(value)
    return None if known is None or known < 0 else round(known)


def mapping(value: object) -> Mapping[str, Any]:
    """A table of a file, empty for anything else."""
    return value if isinstance(value, Mapping) else {}


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON file's table; empty where there is none, or it is damaged."""
    try:
        return mapping(json.loads(path.read_text(encoding="utf-8", errors="replace")))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
