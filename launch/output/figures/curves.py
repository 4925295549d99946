"""Curves of a run, drawn from metrics.jsonl: training loss by step, scores by round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from suture.launch.output.figures.canvas import GREY, client_looks, drawn, legend_below
from suture.launch.output.scores import NAMES, SHOWN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_MARKED_ROUNDS = 25
_NUM_BINS = 500

Records = Sequence[Mapping[str, Any]]
Array = NDArray[np.float64]


def training_loss(records: Records, path: Path) -> None:
    """Training loss of every client over the steps of the run: each batch faint, the smoothed line over it.

    Args:
        records: what ``suture.runtime.records.tracking.read_metrics`` returned.
        path: PNG to write, replaced whole.
    """
    train = [r for r in records if r["phase"] == "train" and r["loss"] is not None]
    clients = _clients(train)
    with drawn(path, 7.2, 3.9) as figure:
        axes = figure.subplots()
        highest = 0.0
        for client, look in zip(clients, client_looks(len(clients)), strict=True):
            points = np.array([(r["step"], r["loss"]) for r in train if r["client"] == client])
            smooth = smoothed(points)
            raw = _with_gaps(points)
            axes.plot(raw[:, 0], raw[:, 1], color=look["color"], alpha=0.25, linewidth=0.7)
            axes.plot(smooth[:, 0], smooth[:, 1], linewidth=1.8, label=client, **look)
            # One outlier must not flatten all curves.
            highest = max(highest, float(np.quantile(points[:, 1], 0.99)), float(smooth[:, 1].max()))
        axes.set_ylim(0, 1.05 * highest or 1)
        if not train:
            _say_nothing_measured(axes)
        axes.margins(x=0.01)
        axes.set(title="Training loss", xlabel="step (batches over the whole run)", ylabel="loss")
        legend_below(figure, axes)


def metrics_by_round(records: Records, task: str, path: Path, *, phase: str | None = None) -> None:
    """Scores of every client by round, a chart a score; the dashed line is what guessing would reach.

    Args:
        records: what ``suture.runtime.records.tracking.read_metrics`` returned.
        task: the run's.
        path: PNG to write, replaced whole.
        phase: the evaluation that is shown, "test" or "validation"; None for the one that more rounds have.
    """
    rounds_of = {p: {r["round"] for r in records if r["phase"] == p} for p in ("test", "validation")}
    phase = phase or max(rounds_of, key=lambda name: len(rounds_of[name]))
    shown = [r for r in records if r["phase"] == phase]
    clients = _clients(shown)
    rounds, scores = sorted({r["round"] for r in shown}), SHOWN[task]
    with drawn(path, 9.6, 3.5) as figure:
        # One scale for all classification scores; a mask's pixel accuracy needs a narrower one than its Dice.
        charts = figure.subplots(1, len(scores.charted), sharex=True, sharey=scores.share_scale)
        for axes, key in zip(charts, scores.charted, strict=True):
            for client, look in zip(clients, client_looks(len(clients)), strict=True):
                points = [
                    (r["round"], r[key]) for r in shown if r["client"] == client and r.get(key) is not None
                ]
                # A single round without markers would show nothing; many rounds with them, only markers.
                marker = "o" if len(rounds) <= _MAX_MARKED_ROUNDS else ""
                xs, ys = [x for x, _ in points], [y for _, y in points]
                axes.plot(xs, ys, marker=marker, markersize=3.5, linewidth=1.6, label=client, **look)
            _mark_guessing(axes, key, shown, clients)
            axes.set(title=NAMES[key], xlabel="round")
            axes.tick_params(labelleft=True)
        for axes in charts:
            seen = charts if scores.share_scale else [axes]
            axes.set_ylim(_floor_below(seen), 1.01)
        if rounds:
            charts[0].set_xlim(rounds[0] - 0.5, rounds[-1] + 0.5)
            charts[0].set_xticks(rounds[:: math.ceil(len(rounds) / 10)])
        else:
            for axes in charts:
                _say_nothing_measured(axes)
        figure.suptitle(f"Scores on {phase} images after each round", x=0.01, ha="left", weight="bold")
        legend_below(figure, charts[0])


def _clients(records: Records) -> list[str]:
    """Names in the order in which people count: client2 before client10."""
    return sorted({r["client"] for r in records}, key=lambda name: (len(name), name))


def _floor_below(charts: Iterable[Axes]) -> float:
    """The tenth below all that is drawn in ``charts``, 0 where nothing is."""
    values = [np.asarray(line.get_ydata(), dtype=float) for axes in charts for line in axes.lines]
    lowest = min((float(v.min()) for v in values if v.size), default=0.0)
    below = math.floor((lowest - 0.03) * 10) / 10
    return below if lowest < 0 else max(0.0, below)  # only a kappa can be worse than 0


def smoothed(points: Array) -> Array:
    """The (step, loss) rows smoothed by a Gaussian of steps, wide enough to bridge the rest between turns.

    The rows are gathered in bins first, so that a long run costs no more than a short one.
    """
    steps, losses = points[:, 0], points[:, 1]
    if len(points) == 1:
        return points
    counts, edges = np.histogram(steps, bins=_NUM_BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    sums, _ = np.histogram(steps, bins=edges, weights=losses)
    width = max((steps[-1] - steps[0]) / 60, float(np.diff(steps).max()) / 2, 0.5)
    kernel = np.exp(-0.5 * ((centres[:, None] - centres) / width) ** 2)
    return np.stack((centres, kernel @ sums / (kernel @ counts)), axis=1)


def _with_gaps(points: Array) -> Array:
    """The (step, loss) rows with a NaN row wherever the client rested between turns, so that lines break."""
    rests = np.flatnonzero(np.diff(points[:, 0]) > 1) + 1
    return np.insert(points, rests, np.nan, axis=0)


def _mark_guessing(axes: Axes, key: str, shown: Records, clients: Sequence[str]) -> None:
    """A dashed line at what no knowledge of the image gives: the majority class; for AUROC one half, for kappa 0."""
    if shown and (chance := {"auroc": 0.5, "quadratic_kappa": 0.0}.get(key)) is not None:
        axes.axhline(chance, color=GREY, linestyle="--", linewidth=1.2)
    if key != "accuracy":
        return
    last = {r["client"]: r["majority_accuracy"] for r in shown if "majority_accuracy" in r}
    values = sorted(set(last.values()))
    if values and values[-1] - values[0] < 0.005:
        axes.axhline(values[0], color=GREY, linestyle="--", linewidth=1.2, label="guessing")
        return
    for client, look in zip(clients, client_looks(len(clients)), strict=True):
        if client in last:
            axes.axhline(last[client], color=look["color"], linestyle="--", linewidth=1, alpha=0.7)
    if values:
        axes.plot([], [], color=GREY, linestyle="--", linewidth=1.2, label="guessing")


def _say_nothing_measured(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", va="center", color=GREY)
