"""The study's figures, drawn from what the runs left.

Shape legend: N images; C, H, W image.
"""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suture.launch.output.figures.attacks import attack_losses, gallery, read_losses
from suture.launch.output.figures.canvas import COLOURS, GREY, client_looks, drawn, legend_below
from suture.runtime.records.tracking import METRICS_FILE, read_metrics
from suture.studies.experiments.experiment import Results
from suture.studies.experiments.runs.job import Job, runs_folder
from suture.studies.statistics import share_interval

SAMPLES = "samples_{}.npz"
"""In a run's folder, by attack: a few held-out images and what the attack made of them (`worker.py`)."""


@dataclass(frozen=True)
class Series:
    """A line of points with all their seeds' values."""

    label: str
    points: Sequence[tuple[float, Sequence[float]]]


def lines_with_intervals(
    series: Sequence[Series], path: Path, *, x: str, y: str, title: str, guess: float
) -> Path:
    """Means of scores in [0, 1] as lines, 95 % intervals as bars, a little apart so that they can be told apart."""
    with drawn(path, 7.2, 4.2) as figure:
        axes = figure.subplots()
        for number, one in enumerate(series):
            shift = 0.06 * (number - (len(series) - 1) / 2)
            means = [share_interval(values) for _, values in one.points]
            axes.errorbar(
                [place + shift for place, _ in one.points],
                [mean for mean, _, _ in means],
                yerr=_bars(means),
                marker="o",
                capsize=3,
                color=COLOURS[number],
                label=one.label,
            )
        axes.axhline(guess, color=GREY, linestyle="--", linewidth=1)
        axes.set(xlabel=x, ylabel=y, title=title)
        if series and series[0].points:
            axes.set_xticks([place for place, _ in series[0].points])
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=1)
    return path


def dots_with_intervals(values: Mapping[str, Sequence[float]], path: Path, *, x: str, guess: float) -> Path:
    """A line a name: every seed's score, in [0, 1], as a dot, mean and 95 % interval below them."""
    with drawn(path, 7.2, 0.9 + 0.5 * len(values)) as figure:
        axes = figure.subplots()
        for row, (name, found) in enumerate(values.items()):
            mean, low, high = share_interval(found)
            colour = COLOURS[row % len(COLOURS)]
            axes.plot(found, [row - 0.12] * len(found), "o", color=colour, alpha=0.5, markersize=5)
            axes.errorbar(
                mean,
                row + 0.12,
                xerr=_bars([(mean, low, high)]),
                fmt="D",
                capsize=3,
                color=colour,
                label=name,
            )
        axes.axvline(guess, color=GREY, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(values)), list(values))
        axes.invert_yaxis()
        axes.set_xlabel(x)
    return path


def _bars(means: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    """How far each interval reaches below and above its mean; nowhere where there is none."""
    ends = [(0.0, 0.0) if math.isnan(low) else (mean - low, high - mean) for mean, low, high in means]
    return [[below for below, _ in ends], [above for _, above in ends]]


def losses_by_arm(results: Results, arms: Sequence[str], path: Path) -> Path:
    """A chart an arm: each client's training loss by batch of the run, mean over seeds in a thick line."""
    with drawn(path, max(4.0, 2.3 * len(arms)), 2.9) as figure:
        charts = figure.subplots(1, max(1, len(arms)), squeeze=False, sharey=True)[0]
        for axes, arm in zip(charts, arms, strict=False):
            by_client = _rounds(results, arm, "train", "loss")
            for (client, rounds), look in zip(
                sorted(by_client.items()), client_looks(len(by_client)), strict=True
            ):
                xs = sorted(rounds)
                axes.plot(
                    xs, [_mean(rounds[at]) for at in xs], marker="o", markersize=2.5, label=client, **look
                )
            axes.set(title=arm, xlabel="round")
            axes.locator_params(axis="x", integer=True)
        charts[0].set_ylabel("training loss")
        legend_below(figure, charts[0])
    return path


def scores_by_round(results: Results, arms: Sequence[str], path: Path) -> Path:
    """Training loss, pixel accuracy and jaccard by round: a colour a cut, dashed without skip gradients."""
    charts = (("train", "loss", "training loss"), ("test", "pixel_accuracy", "pixel accuracy"))
    with drawn(path, 10.0, 3.6) as figure:
        places = figure.subplots(1, 3)
        for axes, (phase, key, name) in zip(places, (*charts, ("test", "jaccard", "jaccard")), strict=True):
            for arm in arms:
                merged: dict[int, list[float]] = defaultdict(list)
                for rounds in _rounds(results, arm, phase, key).values():
                    for at, values in rounds.items():
                        merged[at] += values
                xs = sorted(merged)
                cut = arm.partition("-")[0]
                axes.plot(
                    xs,
                    [_mean(merged[at]) for at in xs],
                    color=COLOURS[(int(cut.removeprefix("cut")) - 1) % len(COLOURS)],
                    linestyle="--" if arm != cut else "-",
                    label=cut if arm == cut else f"{cut}, no skip gradients",
                )
            axes.set(title=name, xlabel="round")
            axes.locator_params(axis="x", integer=True)
        legend_below(figure, places[0])
    return path


def activations_of(results: Results, arm: str, path: Path) -> Path | None:
    """The figure that client0 of an arm's first run drew; None where it drew none."""
    return copied(results, arm, "clients/client0/figures/activations.png", path)


def copied(results: Results, arm: str, inside: str, path: Path) -> Path | None:
    """A picture of an arm's first run; None where there is none."""
    run = results.run_dir(arm)
    if run is None or not (run / inside).exists():
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / inside, path)
    return path


def attack_curves(results: Results, arm: str, attack: str, path: Path) -> Path | None:
    """Losses of an attack's nets in an arm's first run."""
    run = results.run_dir(arm)
    folder = "attack" if attack == "live" else f"attacks/{attack}"
    if run is None or not (run / folder / "losses.jsonl").exists():
        return None
    attack_losses(read_losses(run / folder / "losses.jsonl"), path)
    return path


def reconstructed(
    results: Results, rows: Sequence[tuple[str, str, str]], path: Path, title: str
) -> Path | None:
    """Originals over what attacks made of them.

    Args:
        results: of the experiment.
        rows: label, arm and attack of each; of each arm's first run.
        path: PNG to write.
        title: written above.
    """
    shown: list[tuple[str, Tensor]] = []
    mean = None
    for label, arm, attack in rows:
        run = results.run_dir(arm)
        file = None if run is None else run / SAMPLES.format(attack)
        if file is None or not file.exists():
            continue
        with np.load(file) as found:
            images = {name: torch.from_numpy(found[name]).float() / 255 for name in found.files}
        if not shown:
            shown.append(("original", images["truth"]))
        # The runs of one seed hold out the same images, or the rows would not belong together.
        if not torch.equal(shown[0][1], images["truth"]):
            continue
        shown.append((label, images["rebuilt"]))
        mean = images["mean"]
    if mean is None:
        return None
    gallery([*shown, ("mean image", mean.expand_as(shown[0][1]))], path, title=title)
    return path


def _rounds(results: Results, arm: str, phase: str, key: str) -> dict[str, dict[int, list[float]]]:
    """Values by client and round, of all seeds."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    jobs: list[Job] = [job for job in results.jobs if job.arm == arm]
    for job in jobs:
        by_place: dict[tuple[str, int], list[float]] = defaultdict(list)
        records: list[Any] = read_metrics(runs_folder(results.folder) / job.name / METRICS_FILE)
        for record in records:
            if record["phase"] == phase and record.get(key) is not None:
                by_place[record["client"], int(record["round"])].append(float(record[key]))
        for (client, at), values in by_place.items():
            found[client][at].append(_mean(values))
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
