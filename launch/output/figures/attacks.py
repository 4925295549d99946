"""What an attack saw: reconstructions under the truth, and the loss curves of its nets.

Drawn by the judge; pictures of images lie with the client that owns them.

Shape legend: N images; C, H, W image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from suture.launch.output.figures.canvas import COLOURS, GREY, drawn

_MAX_IMAGES = 8


def read_losses(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Curves by net from an attack's losses.jsonl; of a step that was repeated, the last line."""
    curves: dict[str, dict[int, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # torn by a crash
        step = int(record.pop("step"))
        for name, value in record.items():
            curves.setdefault(name, {})[step] = float(value)
    return {name: sorted(points.items()) for name, points in curves.items()}


def attack_losses(curves: Mapping[str, Sequence[tuple[int, float]]], path: Path, *, title: str = "") -> None:
    """One chart a net, side by side: thin line every step, thick line a running mean over a twentieth.

    Args:
        curves: (step, loss) by net's name.
        path: PNG to write, replaced whole.
        title: written above.
    """
    names = [name for name, points in curves.items() if points]
    with drawn(path, max(3.2, 2.6 * len(names)), 2.7) as figure:
        charts = figure.subplots(1, max(1, len(names)), squeeze=False)[0]
        for number, (axes, name) in enumerate(zip(charts, names, strict=False)):
            steps, values = zip(*curves[name], strict=True)
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(steps, values, color=colour, linewidth=0.5, alpha=0.35)
            axes.plot(steps, _smooth(values), color=colour, linewidth=1.6)
            axes.set_title(name.replace("_", " "))
            axes.set_xlabel("step of the attack")
        if title:
            figure.suptitle(title, fontsize=9, color=GREY)


def reconstructions(
    truth: Tensor, rebuilt: Tensor, mean: Tensor, path: Path, *, title: str = "", caption: str = ""
) -> None:
    """Three rows of at most eight images: truth, reconstruction, and the mean image that needs no attack.

    Args:
        truth: x_NCHW in [0, 1].
        rebuilt: the same shape.
        mean: (1, C, H, W) in [0, 1].
        path: PNG to write, replaced whole.
        title: written above.
        caption: written below, for instance the attack or an attribution.
    """
    rows = [("truth", truth), ("rebuilt", rebuilt), ("mean image", mean.float().expand_as(truth))]
    errors = (truth - rebuilt).square().flatten(1).mean(1)
    notes = [f"MSE {float(error):.4f}" for error in errors]
    with _gallery(rows, path, title, caption, side=1.2) as charts:
        for axes, note in zip(charts[1], notes, strict=False):
            axes.set_xlabel(note, fontsize=8)


def gallery(rows: Sequence[tuple[str, Tensor]], path: Path, *, title: str = "", caption: str = "") -> None:
    """Rows of at most eight images, the name of each row on its left and its MSE against the first on its right.

    Args:
        rows: name and x_NCHW in [0, 1], the truth first; all of one shape.
        path: PNG to write, replaced whole.
        title: written above.
        caption: written below.
    """
    truth = rows[0][1][:_MAX_IMAGES]
    with _gallery(rows, path, title, caption, side=0.85) as charts:
        for line, (_, images) in list(zip(charts, rows, strict=True))[1:]:
            error = (truth - images[:_MAX_IMAGES]).square().mean()
            line[-1].yaxis.set_label_position("right")
            line[-1].set_ylabel(f"MSE {float(error):.4f}", fontsize=8, rotation=0, ha="left", va="center")


@contextmanager
def _gallery(
    rows: Sequence[tuple[str, Tensor]], path: Path, title: str, caption: str, *, side: float
) -> Iterator[Any]:
    """The axes of a picture with ``side`` inches an image, to be written on before it is saved."""
    num_images = min(len(rows[0][1]), _MAX_IMAGES)
    height = (side + 0.1) * len(rows) + 0.3 * (bool(title) + bool(caption))
    with drawn(path, 2.4 + side * num_images, height) as figure:
        charts = figure.subplots(len(rows), num_images, squeeze=False)
        for line, (name, images) in zip(charts, rows, strict=True):
            line[0].set_ylabel(name, fontsize=9, weight="bold", rotation=0, ha="right", va="center")
            for axes, image in zip(line, images, strict=False):
                pixels = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0)
                axes.imshow(pixels.expand(-1, -1, 3).numpy() if pixels.shape[2] == 1 else pixels.numpy())
                axes.set(xticks=[], yticks=[])
                axes.grid(False)
                axes.spines[:].set_visible(False)
        if title:
            figure.suptitle(title, weight="bold")
        if caption:
            figure.supxlabel(caption, fontsize=8)
        yield charts


def _smooth(values: Sequence[float]) -> list[float]:
    """Running mean over a twentieth of the curve."""
    window, smooth, total = max(1, len(values) // 20), [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        smooth.append(total / min(i + 1, window))
    return smooth
