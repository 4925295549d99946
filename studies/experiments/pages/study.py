"""The published figures, and a sentence on each difference (study.json)."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def study() -> dict[str, Any]:
    """All of study.json."""
    found: dict[str, Any] = json.loads((files(__package__) / "study.json").read_text())
    return found


def published(experiment: str, row: str) -> Any:
    """The study's figures of one row, None where it has none."""
    return study()[experiment]["rows"].get(row)


def in_percent(values: Any) -> str:
    """The study's accuracies, client by client, as it gave them."""
    return "–" if values is None else ", ".join(f"{value:g} %" for value in values)


def differences(experiment: str) -> list[str]:
    """A sentence on each published row."""
    found: dict[str, Any] = study()[experiment]
    return [f"Published row {row}: {sentence}" for row, sentence in found["differences"].items()]
