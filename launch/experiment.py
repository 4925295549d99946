"""``suture experiment``: several runs that together answer one question, resumable run by run.

    experiments/NAME/runs/ARM-SEED/     one ordinary run each, started with `suture train`
    experiments/NAME/table.csv, table.md

A run that has a summary.json is not run again; one that was killed goes on from its checkpoint.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from launch.config import RunOptions
from launch.written import to_arguments
from runtime.checkpoint import write_atomically
from runtime.errors import SutureError
from runtime.handoff import write_key

log = logging.getLogger(__name__)

# Student's t, two-sided 95 %, by degrees of freedom; beyond the table the normal distribution is close enough.
_T95 = dict(
    enumerate(
        (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
        + (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)
        + (2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
        start=1,
    )
)
_SHOWN = {
    "classification": ("accuracy", "balanced_accuracy", "auroc", "majority_accuracy"),
    "segmentation": ("dice", "jaccard", "pixel_accuracy"),
}


@dataclass(frozen=True)
class Arm:
    """One way of training that an experiment compares.

    Attributes:
        name: in the table and in the run's folder.
        what: one line for a reader.
        arguments: added to the experiment's own options.
        seeds: how many of the experiment's seeds it runs, None for all.
        same_weights_as: an arm whose ``weights_sha256`` must be this one's, seed by seed; empty for none.
    """

    name: str
    what: str
    arguments: tuple[str, ...]
    seeds: int | None = None
    same_weights_as: str = ""


EXPERIMENTS: dict[str, tuple[Arm, ...]] = {
    "split-vs-central": (
        Arm("split", "clients' turns over RPC, real processes", ()),
        Arm("central", "all images pooled in one place, unsplit", ("--unsplit", "--pooled")),
        Arm("unsplit", "the split run's batches through the unsplit net", ("--unsplit",), 1, "split"),
        Arm("split-one", "one client over RPC", ("--clients", "1"), 1),
        Arm("unsplit-one", "that client's batches, unsplit", ("--clients", "1", "--unsplit"), 1, "split-one"),
    ),
}


def run_experiment(name: str, options: RunOptions, num_seeds: int, folder: Path) -> None:
    """Runs what is missing of an experiment and writes its table.

    Args:
        name: a key of ``EXPERIMENTS``.
        options: of every run; seeds count up from ``options.seed``.
        num_seeds: at least 1.
        folder: experiments/NAME.

    Raises:
        SutureError: a run failed; its own error has been shown, and the others' results are kept.
    """
    arms, runs = EXPERIMENTS[name], folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    plan = [(arm, seed) for arm in arms for seed in range(num_seeds if arm.seeds is None else arm.seeds)]
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(name, total=len(plan))
        for arm, number in plan:
            seed = options.seed + number
            progress.update(bar, description=f"{arm.name}, seed {seed}")
            results[arm.name].append(_run(arm, options, seed, runs))
            progress.advance(bar)
    _check_equal(arms, results)
    _write_table(name, arms, results, folder)


def _run(arm: Arm, options: RunOptions, seed: int, runs: Path) -> dict[str, Any]:
    key, folder = runs / f"handoff-{seed}.key", runs / f"{arm.name}-{seed}"
    if not key.exists():
        write_key(key)
    if not (folder / "summary.json").exists():
        arguments = [*to_arguments(options), "--seed", str(seed), "--handoff-key", str(key), *arm.arguments]
        arguments += ["--run-dir", str(folder)]
        if (folder / "checkpoints").exists():
            arguments.append("--resume")
        elif folder.exists():
            # An unsplit run has no checkpoints: what it left when it was killed cannot be gone on with.
            killed_before = len(list(runs.glob(f"{folder.name}.killed-*")))
            folder.rename(runs / f"{folder.name}.killed-{killed_before}")
        ended = subprocess.run(
            [sys.executable, "-m", "launch", "train", *arguments],
            capture_output=True,
        )
        if ended.returncode != 0:
            said = ended.stderr.decode(errors="replace").strip().splitlines()
            raise SutureError(f"{arm.name}, seed {seed} failed: {said[-1] if said else ended.returncode}")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def _check_equal(arms: Sequence[Arm], results: dict[str, list[dict[str, Any]]]) -> None:
    for arm in arms:
        if arm.same_weights_as:
            pairs = zip(results[arm.name], results[arm.same_weights_as], strict=False)
            if any(ours["weights_sha256"] != theirs["weights_sha256"] for ours, theirs in pairs):
                raise SutureError(f"{arm.name} and {arm.same_weights_as} ended with different weights")


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and the half width of its 95 % interval (Student's t); nan for a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, _T95.get(len(values) - 1, 1.96) * math.sqrt(variance / len(values))


def _write_table(
    name: str, arms: Sequence[Arm], results: dict[str, list[dict[str, Any]]], folder: Path
) -> None:
    metrics = _SHOWN[next(iter(results.values()))[0]["task"]]
    lines = [
        f"| {' | '.join(('training', 'seeds', *(m.replace('_', ' ') for m in metrics), 'weights_sha256'))} |",
        f"|{'---|' * (3 + len(metrics))}",
    ]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["training", "seed", *metrics, "weights_sha256"])
    for arm in arms:
        rows = [[_client_mean(summary, metric) for metric in metrics] for summary in results[arm.name]]
        for row, summary in zip(rows, results[arm.name], strict=True):
            writer.writerow(
                [arm.name, summary["seed"], *(f"{value:.6f}" for value in row), summary["weights_sha256"]]
            )
        cells = []
        for column in zip(*rows, strict=True):
            mean, half = mean_and_interval(column)
            cells.append(f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} ± {half:.3f}")
        digest = results[arm.name][0]["weights_sha256"][:12]
        lines.append(f"| {arm.name}: {arm.what} | {len(rows)} | {' | '.join(cells)} | {digest}… |")
    text = "\n".join(lines) + "\n"
    write_atomically(folder / "table.csv", table.getvalue().encode())
    write_atomically(folder / "table.md", text.encode())
    print(
        f"{name}: test images, mean over clients; ± is the 95 % interval over seeds; digest of the first seed\n"
    )
    print(text)
    print(f"Everything is in {folder}")


def _client_mean(summary: dict[str, Any], metric: str) -> float:
    values = [scores["test"][metric] for scores in summary["clients"].values() if metric in scores["test"]]
    return sum(values) / len(values) if values else math.nan
