"""How every figure looks and how it reaches the disk.

Matplotlib is imported when a figure is drawn, and only its object interface is used: no display is needed
and no figure stays behind. The colours are those of Okabe and Ito, told apart by colour-blind readers too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#767676"
_DASHES = ("-", "--", "-.", ":")
_DPI = 150
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E8E8E8",
    "xtick.color": "#404040",
    "ytick.color": "#404040",
    "legend.frameon": False,
}


@contextmanager
def drawn(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of ``width`` by ``height`` inches, written to ``path`` (PNG) when the block ends well.

    It is written to a temporary file and renamed: a reader sees the old picture or the new one. The folder is
    made when missing; after an error nothing is written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            figure.savefig(temporary, format="png", dpi=_DPI)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def client_looks(num_clients: int) -> list[dict[str, Any]]:
    """Colour and dashes of each client's line: seven colours, then the same ones dashed."""
    return [
        {"color": COLOURS[i % len(COLOURS)], "linestyle": _DASHES[i // len(COLOURS) % len(_DASHES)]}
        for i in range(num_clients)
    ]


def legend_below(figure: Figure, axes: Axes) -> None:
    """One legend for the whole figure, under it, of the lines of ``axes``; none where there are no lines."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(handles), 6))
