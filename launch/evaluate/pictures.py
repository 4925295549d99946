"""The pictures of an evaluation, OUT/figures/*.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from suture.launch.evaluate import measures
from suture.launch.evaluate.classification import Arrays
from suture.launch.output.figures.canvas import COLOURS, GREY, drawn

Shown = tuple[str, Tensor, Tensor]  # a heading, an image (C, H, W), and what lies over it (H, W)


def curves(test: Arrays, names: Sequence[str], path: Path) -> None:
    """ROC and precision-recall curves side by side."""
    with drawn(path, 8, 3.8) as figure:
        left, right = figure.subplots(1, 2)
        for k in test.shown():
            y, p, colour = test.of_class(k), test.p[:, k], COLOURS[k % len(COLOURS)]
            if not y.any() or y.all():
                continue
            left.plot(*measures.roc(y, p), color=colour, label=f"{names[k]}: {measures.auroc(y, p):.3f}")
            recall, precision = measures.precision_recall(y, p)
            area = measures.average_precision(y, p)
            right.step(recall, precision, where="pre", color=colour, label=f"{names[k]}: {area:.3f}")
            right.axhline(float(y.mean()), color=colour, linestyle=":", linewidth=1)
        left.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        left.set(title="ROC (area)", xlabel="1 - specificity", ylabel="sensitivity")
        right.set(title="Precision and recall (average precision)", xlabel="recall", ylabel="precision")
        for axes in (left, right):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            axes.legend(loc="lower right" if axes is left else "lower left")


def calibration(test: Arrays, names: Sequence[str], path: Path) -> None:
    """The share of images that is of a class, by the probability that the model gave."""
    with drawn(path, 4.6, 4.2) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        for k in test.shown():
            bins = measures.calibration(test.of_class(k), test.p[:, k])
            x, y = [one.probability for one in bins], [one.share for one in bins]
            label = f"{names[k]}: error {measures.calibration_error(bins):.3f}"
            axes.plot(x, y, marker="o", color=COLOURS[k % len(COLOURS)], label=label)
            for one in bins:
                axes.annotate(
                    f"{one.num_images}", (one.probability, one.share), (4, -11), textcoords="offset points"
                )
        axes.set(
            title="Calibration (numbers of images)", xlabel="mean probability", ylabel="share of the class"
        )
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.08, 1.05))
        axes.legend(loc="lower right")


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


def heat_grid(shown: Sequence[Shown], path: Path) -> None:
    """Images with heat over them, four a row."""
    _grid(
        shown, path, lambda axes, over: axes.imshow(over.numpy(), cmap="inferno", alpha=0.45, vmin=0, vmax=1)
    )


def outline_grid(shown: Sequence[tuple[str, Tensor, Tensor, Tensor]], path: Path) -> None:
    """Images with the true outline and the predicted one, four a row."""

    def outlines(axes: object, over: Tensor) -> None:
        for mask, colour in zip(over, (COLOURS[2], COLOURS[1]), strict=True):
            if mask.min() < 0.5 < mask.max():
                axes.contour(mask.numpy(), [0.5], colors=[colour], linewidths=1.2)  # type: ignore[attr-defined]

    stacked = [(title, image, torch.stack((truth, mask))) for title, image, truth, mask in shown]
    _grid(stacked, path, outlines)


def _grid(shown: Sequence[Shown], path: Path, draw: object) -> None:
    rows = -(-len(shown) // 4)
    with drawn(path, 8.4, 2.6 * rows) as figure:
        for axes in figure.subplots(rows, 4, squeeze=False).flat:
            axes.set_axis_off()
        for axes, (title, image, over) in zip(figure.axes, shown, strict=False):
            axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            draw(axes, over)  # type: ignore[operator]
            axes.set_title(title, fontsize=7.5, fontweight="normal")
