"""What the sections share: the picture of bars, and how an aim is said to be met."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from suture.launch.output.figures.canvas import COLOURS, GREY, drawn

Spread = tuple[float, float, float]
"""Lowest, middle, highest."""


def spread(values: Sequence[float]) -> Spread:
    """Of what was measured: fastest, median, slowest."""
    return min(values), statistics.median(values), max(values)


def told(values: Sequence[float], digits: int) -> str:
    """``median (fastest to slowest)``."""
    low, middle, high = (f"{value:.{digits}f}" for value in spread(values))
    return f"{middle} ({low} to {high})"


def verdict(aim: str, is_met: bool, found: str) -> str:
    """Whether an aim is met, and what was found."""
    return f"{aim}: {'met' if is_met else '**not met**'}; {found}"


def bars(panels: Mapping[str, Mapping[str, Spread]], path: Path, x: str, *, aim: float | None = None) -> None:
    """A panel a title, in it a bar a name with its spread; the names are those of the first panel.

    Args:
        panels: one or more.
        path: PNG to write.
        x: label of all x axes.
        aim: a vertical line in each panel.
    """
    names = list(next(iter(panels.values())))
    with drawn(path, 9.0, 1.4 + 0.24 * len(names)) as figure:
        places = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for number, (axes, (title, found)) in enumerate(zip(places, panels.items(), strict=True)):
            for name, (low, middle, high) in found.items():
                row = names.index(name)
                error = [[middle - low], [high - middle]]
                axes.barh(row, middle, xerr=error, color=COLOURS[number], ecolor=GREY, height=0.6)
                axes.text(high, row, f" {middle:.3g}", va="center", fontsize=7)
            if aim is not None:
                axes.axvline(aim, color=GREY, ls=":")
            axes.set(title=title, xlabel=x)
            axes.margins(x=0.2)
            axes.grid(axis="y", visible=False)
        places[0].set_yticks(range(len(names)), names)
        places[0].invert_yaxis()
