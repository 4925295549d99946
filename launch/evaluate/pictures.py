"""The pictures of an evaluation, OUT/figures/*.png."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from suture.launch.evaluate import measures
from suture.launch.evaluate.classification import Arrays
from suture.launch.output.figures.canvas import COLOURS, GREY, client_looks, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Shown = tuple[str, Tensor, Tensor]  # a heading, an image (C, H, W), and what lies over it (H, W)


def curves(test: Arrays, names: Sequence[str], path: Path) -> None:
    """ROC and precision-recall curves side by side; what each line is stands below them, away from the lines."""
    shown = [k for k in test.shown() if 0 < test.of_class(k).sum() < len(test.y)]
    with drawn(path, 8, 3.8 + 0.2 * -(-len(shown) // 2)) as figure:
        left, right = figure.subplots(1, 2)
        for k, look in zip(shown, client_looks(len(shown)), strict=True):
            y, p = test.of_class(k), test.p[:, k]
            left.plot(*measures.roc(y, p), **look, label=f"{names[k]}: {measures.auroc(y, p):.3f}")
            recall, precision = measures.precision_recall(y, p)
            recall, precision = np.r_[0, recall], np.r_[precision[:1], precision]
            area = measures.average_precision(y, p)
            right.step(recall, precision, where="pre", **look, label=f"{names[k]}: {area:.3f}")
            right.axhline(float(y.mean()), color=look["color"], linestyle=":", linewidth=1)
        left.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        left.set(title="ROC (area)", xlabel="1 - specificity", ylabel="sensitivity")
        right.set(title="Precision and recall (average precision)", xlabel="recall", ylabel="precision")
        for axes in (left, right):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            if shown:
                axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize=8)


def calibration(test: Arrays, names: Sequence[str], path: Path) -> None:
    """The share of images that is of a class, by the probability that the model gave; a chart a class."""
    shown = test.shown()
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    with drawn(path, max(4.2, 2.9 * columns), 3.9 if rows == columns == 1 else 2.9 * rows) as figure:
        charts = [*figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat]
        for axes in charts[len(shown) :]:
            axes.set_axis_off()
        for axes, k in zip(charts, shown, strict=False):
            _calibration_of(axes, measures.calibration(test.of_class(k), test.p[:, k]), names[k])
        figure.supxlabel("mean probability", fontsize=9)
        figure.supylabel("share of the class", fontsize=9)


def _calibration_of(axes: Axes, bins: list[measures.Bin], name: str) -> None:
    """One class: a point a tenth, with its number of images."""
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    x, y = [one.probability for one in bins], [one.share for one in bins]
    axes.plot(x, y, marker="o", markersize=4, color=COLOURS[0])
    for one in bins:
        # Towards the middle, so that no number lies outside the chart.
        offset = (0, 5) if one.share < 0.5 else (0, -11)
        place = (one.probability, one.share)
        axes.annotate(f"{one.num_images}", place, offset, textcoords="offset points", ha="center", fontsize=7)
    title = f"{name}: error {measures.calibration_error(bins):.3f}"
    axes.set(title=title, xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))


def confusion(table: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """Images by true and predicted class."""
    counts = np.array(table)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.6 + 0.75 * len(names)
    with drawn(path, size + 0.8, size) as figure:
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(visible=False)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.55 else "black"
            axes.text(
                column, row, f"{count}\n{shares[row, column]:.0%}", ha="center", va="center", color=colour
            )
        ticks = list(range(len(names)))
        axes.set_xticks(ticks, names, rotation=30, ha="right")
        axes.set_yticks(ticks, names)
        axes.set(title="Confusion", xlabel="predicted", ylabel="true")


def dice_histogram(dice: Sequence[float], path: Path) -> None:
    """How many images have which Dice."""
    with drawn(path, 5, 3) as figure:
        axes = figure.subplots()
        axes.hist(dice, bins=np.linspace(0, 1, 21).tolist(), color=COLOURS[0], edgecolor="white")
        axes.set(title="Dice by image", xlabel="Dice", ylabel="images", xlim=(0, 1))
        axes.locator_params(axis="y", integer=True)


def heat_grid(shown: Sequence[Shown], path: Path) -> None:
    """Images with heat over them, four a row."""

    def heat(axes: Axes, over: Tensor) -> None:
        # Where there is no heat the picture is as it is, and black stays black.
        axes.imshow(over.numpy(), cmap="inferno", alpha=(0.6 * over).numpy(), vmin=0, vmax=1)

    _grid(shown, path, heat)


def outline_grid(shown: Sequence[tuple[str, Tensor, Tensor, Tensor]], path: Path) -> None:
    """Images with the true outline and the predicted one, four a row."""

    def outlines(axes: Axes, over: Tensor) -> None:
        for mask, colour in zip(over, (COLOURS[2], COLOURS[1]), strict=True):
            if mask.min() < 0.5 < mask.max():
                axes.contour(mask.numpy(), [0.5], colors=[colour], linewidths=1.2)

    stacked = [(title, image, torch.stack((truth, mask))) for title, image, truth, mask in shown]
    _grid(stacked, path, outlines)


def _grid(shown: Sequence[Shown], path: Path, draw: Callable[[Axes, Tensor], None]) -> None:
    rows = -(-len(shown) // 4)
    with drawn(path, 8.4, 2.6 * rows) as figure:
        for axes in figure.subplots(rows, 4, squeeze=False).flat:
            axes.set_axis_off()
        for axes, (title, image, over) in zip(figure.axes, shown, strict=False):
            axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            draw(axes, over)
            axes.set_title(title, fontsize=7.5, fontweight="normal")
