"""The frontier of an audit: what each defence keeps of the task against what it lets through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.launch.output.figures.canvas import COLOURS, GREY, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Interval = tuple[float, float, float]
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_PLAIN = "none"
_BAND = "#EBEBEB"


@dataclass(frozen=True)
class Dot:
    """One strength of one defence at one cut; intervals are mean, smallest and largest over the seeds.

    Attributes:
        cut: panel.
        family: colour and marker; "none" is the undefended net.
        rank: place along the family's line.
        metric: of the task.
        ssim, reidentified: of the stronger attacker, 0..1.
        is_void: drawn hollow.
    """

    cut: str
    family: str
    rank: int
    metric: Interval
    ssim: Interval
    reidentified: Interval
    is_void: bool


@dataclass(frozen=True)
class Lines:
    """What knowing nothing gives at one cut.

    Attributes:
        mean_image_ssim: SSIM of the mean image.
        chance: of re-identification.
        void_up_to: task metric up to which a classifier is void; None where nothing is.
    """

    mean_image_ssim: float
    chance: float
    void_up_to: float | None


def frontier(dots: Sequence[Dot], lines: dict[str, Lines], path: Path, *, metric: str, caption: str) -> None:
    """Writes the picture: a column a cut; above SSIM, below re-identification, both against the task's metric.

    Lower right is where one wants to be: nothing leaked, nothing lost. Dashed across: what an attacker without
    any smashed data reaches; grey on the left: no better than naming the commonest class.
    """
    cuts = list(dict.fromkeys(dot.cut for dot in dots))
    families = list(dict.fromkeys(dot.family for dot in dots))
    width = max(6.5, 4.2 * len(cuts))
    with drawn(path, width, 7.2) as figure:
        grid: Any = figure.subplots(2, len(cuts), squeeze=False, sharex="col", sharey="row")
        for column, cut in enumerate(cuts):
            for row, (measure, label) in enumerate((("ssim", "SSIM"), ("reidentified", "re-identified"))):
                axes: Axes = grid[row][column]
                _draw(axes, [dot for dot in dots if dot.cut == cut], families, measure)
                level = lines[cut].mean_image_ssim if measure == "ssim" else lines[cut].chance
                axes.axhline(level, color="black", linestyle="--", linewidth=1)
                name = "mean image" if measure == "ssim" else "chance"
                axes.text(0.01, level, name, transform=axes.get_yaxis_transform(), va="bottom", fontsize=8)
                # The same scale for both measures: small differences shall look small.
                axes.set_ylim(-0.03, 1.03)
                _limit(axes, [dot for dot in dots if dot.cut == cut], lines[cut].void_up_to)
                axes.annotate(
                    "better",
                    (0.985, 0.13),
                    (0.87, 0.25),
                    "axes fraction",
                    color=GREY,
                    ha="center",
                    arrowprops={"arrowstyle": "->", "color": GREY},
                )
                if row == 0:
                    axes.set_title(f"cut {cut}")
                else:
                    axes.set_xlabel(f"{metric} on test images")
                if column == 0:
                    axes.set_ylabel(f"{label}, stronger attacker")
        lined = {dot.family for dot in dots if dot.rank}
        handles, labels = _legend(families, lined)
        figure.legend(handles, labels, loc="outside lower center", ncols=int(width / 3))
        figure.suptitle(caption, fontsize=10)


def _draw(axes: Axes, dots: Sequence[Dot], families: Sequence[str], measure: str) -> None:
    for index, family in enumerate(families):
        own = sorted((dot for dot in dots if dot.family == family), key=lambda dot: dot.rank)
        colour, marker = _look(index, family)
        if len(own) > 1:
            axes.plot(
                [dot.metric[0] for dot in own],
                [getattr(dot, measure)[0] for dot in own],
                color=colour,
                linewidth=1,
                alpha=0.6,
            )
        for dot in own:
            x, y = dot.metric, getattr(dot, measure)
            axes.errorbar(
                x[0],
                y[0],
                xerr=[[x[0] - x[1]], [x[2] - x[0]]],
                yerr=[[y[0] - y[1]], [y[2] - y[0]]],
                fmt=marker,
                color=colour,
                markerfacecolor="white" if dot.is_void else colour,
                markersize=9 if family == _PLAIN else 4 + dot.rank,
                elinewidth=0.8,
                ecolor=(colour, 0.5),
                zorder=4 if family == _PLAIN else 3,
            )


def _limit(axes: Axes, dots: Sequence[Dot], void_up_to: float | None) -> None:
    """Room on both sides of the dots, and the band in which a classifier is none."""
    left, right = min(dot.metric[1] for dot in dots) - 0.04, max(dot.metric[2] for dot in dots) + 0.04
    if void_up_to is not None:
        left = min(left, void_up_to - 0.04)
        axes.axvspan(left, void_up_to, color=_BAND, zorder=0)
    axes.set_xlim(left, right)


def _look(index: int, family: str) -> tuple[str, str]:
    return ("black", "*") if family == _PLAIN else (COLOURS[index % 6], _MARKERS[index % len(_MARKERS)])


def _legend(families: Sequence[str], lined: set[str]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for index, family in enumerate(families):
        colour, marker = _look(index, family)
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none"))
    handles.append(Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linestyle="none"))
    handles.append(Patch(color=_BAND))
    names = {family: f"{family} (larger: stronger)" if family in lined else family for family in families}
    labels = ["undefended" if family == _PLAIN else names[family] for family in families]
    return handles, [*labels, "void: classifier lost", "no better than the majority class"]
