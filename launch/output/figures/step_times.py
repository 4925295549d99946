"""Where the time of a step goes: a stacked bar a client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from suture.launch.output.figures.canvas import COLOURS, GREY, drawn

_MORE = (*COLOURS[:6], GREY, "#F0E442", "#999933", "#C8C8C8")


def stacked_steps(medians: Mapping[str, Mapping[str, float]], parts: Sequence[str], path: Path) -> None:
    """A bar a client, in milliseconds.

    Args:
        medians: seconds by client and part.
        parts: the parts in their order; one that no client spent time in is left out.
        path: PNG to write, replaced whole.
    """
    shown = [part for part in parts if any(times.get(part, 0.0) > 0 for times in medians.values())]
    with drawn(path, 8.0, 1.6 + 0.4 * len(medians)) as figure:
        axes = figure.add_subplot()
        for row, times in enumerate(medians.values()):
            left = 0.0
            for part in shown:
                width = 1e3 * times.get(part, 0.0)
                colour = _MORE[list(parts).index(part) % len(_MORE)]
                axes.barh(row, width, left=left, height=0.6, color=colour, label=part if row == 0 else None)
                left += width
            axes.text(left, row, f" {left:.0f}", va="center")
        axes.set_yticks(range(len(medians)), list(medians))
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("milliseconds a step, medians")
        axes.set_title("Where the time of a step goes")
        figure.legend(loc="outside lower center", ncols=5)
