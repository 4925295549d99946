"""``suture experiment``: plans, runs what is missing, and writes tables and pictures.

experiments/NAME/config.toml, runs/     see `job.py`
experiments/NAME/table.csv              a line a run: facts, scores, leakage, digest
experiments/NAME/table.md, figures/     what they say together, published figures beside ours
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from launch import build
from launch.config import SUTURE_VERSION, required
from launch.experiments.attribution import attribution
from launch.experiments.commit import commit
from launch.experiments.experiment import Experiment, Results
from launch.experiments.job import Job, read_result
from launch.experiments.pool import Task, run_all
from launch.experiments.registry import ALL, EXPERIMENTS, chosen
from launch.experiments.setting import (
    CONFIG,
    Setting,
    check_data,
    expanded,
    fresh_keys,
    read_setting,
    to_toml,
    with_data,
)
from launch.experiments.sizes import DEFAULT_BUDGET, SCALES, Scale, largest_effort
from launch.experiments.table import to_csv
from runtime.checkpoint import write_atomically
from runtime.errors import ConfigError, SutureError

MACHINE = "machine.json"
PICTURES = "pictures.json"
_SHARES = {
    "cut-layer": 0.13,
    "clients": 0.14,
    "unet-cut": 0.09,
    "fsha": 0.23,
    "adra": 0.32,
    "split-vs-central": 0.08,
}
"""Of the budget of ``all``."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for.

    Attributes:
        name: of an experiment, or ``all``.
        scale: of ``SCALES``.
        data: SPECs, see `setting.with_data`.
        seed: the first.
        num_seeds: None for each experiment's own.
        budget: minutes, None for the default.
        exchange: of every run.
        device: as ``--device``.
        slots: runs at a time.
        config: a saved config.toml to repeat.
        out: where to write.
    """

    name: str
    scale: Scale = "laptop"
    data: tuple[str, ...] = ()
    seed: int = 0
    num_seeds: int | None = None
    budget: float | None = None
    exchange: str = "local"
    device: str = "cpu"
    slots: int = 2
    config: Path | None = None
    out: Path | None = None


def run_experiments(request: Request) -> list[Path]:
    """Runs one experiment or all of them; returns their folders.

    Raises:
        ConfigError: the request cannot work; nothing was run.
        SutureError: runs failed, or two that must end with the same weights did not; what is done is kept.
    """
    experiments = chosen(request.name)
    settings = [_setting(experiment, request) for experiment in experiments]
    tasks: list[Task] = []
    for experiment, (setting, folder) in zip(experiments, settings, strict=True):
        jobs = experiment.jobs(setting)
        check_images(jobs)
        tasks += [Task(folder, job) for job in jobs]
    # All experiments' first seeds, then their second: an early end has said something about everything.
    tasks.sort(key=lambda task: task.job.seed)
    for setting, folder in settings:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CONFIG, to_toml(setting).encode())
        if not (folder / MACHINE).exists():
            write_atomically(folder / MACHINE, (json.dumps(machine(request), indent=1) + "\n").encode())
    left = {folder: sum(task.folder == folder for task in tasks) for _, folder in settings}
    said: list[str] = []

    def done(task: Task) -> None:
        left[task.folder] -= 1
        if not left[task.folder]:  # table by table, not all at the end
            said.extend(write_results(task.folder))

    try:
        run_all(tasks, request.slots, done)
    finally:
        for _, folder in settings:
            if left[folder]:
                write_results(folder)
    if said:
        raise SutureError("; ".join(said))
    return [folder for _, folder in settings]


def write_results(folder: Path) -> list[str]:
    """Writes table and pictures of what is done; returns what is wrong with the digests."""
    experiment, setting, results = load(folder)
    if not results.jobs:
        return []
    rows = []
    for job in results.jobs:
        result = results.result(job)
        rows.append(
            {"arm": job.arm, "seed": job.seed, **job.facts}
            | experiment.facts(job, result)
            | {"weights_sha256": result["summary"]["weights_sha256"]}
        )
    tables = experiment.tables(setting, results)
    text = "\n".join([f"# {experiment.name}: {experiment.question}\n", *(t.to_markdown() for t in tables)])
    write_atomically(folder / "table.csv", to_csv(rows).encode())
    write_atomically(folder / "table.md", text.encode())
    pictures = experiment.pictures(setting, results, folder / "figures")
    told = []
    for picture in pictures:
        said = picture.caption
        if picture.images_of:
            said += " " + attribution(picture.images_of, setting.data[picture.images_of])
        told.append({"file": picture.path.name, "caption": said})
    write_atomically(folder / PICTURES, (json.dumps(told, indent=1) + "\n").encode())
    return differing(results)


def load(folder: Path) -> tuple[Experiment, Setting, Results]:
    """An experiment's folder: what it is, its setting, and what is done of it."""
    setting = read_setting(folder / CONFIG)
    experiment = EXPERIMENTS[setting.experiment]
    jobs = experiment.jobs(setting)
    found = {job.name: read_result(folder, job.name) for job in jobs}
    return experiment, setting, Results(folder, jobs, {k: v for k, v in found.items() if v is not None})


def differing(results: Results) -> list[str]:
    """Pairs of runs that must have ended with the same weights and did not."""
    digests = {job.name: results.result(job)["summary"]["weights_sha256"] for job in results.jobs}
    return [
        f"{results.folder.name}: {job.name} and {job.same_weights_as} ended with different weights"
        for job in results.jobs
        if job.same_weights_as in digests and digests[job.name] != digests[job.same_weights_as]
    ]


def _setting(experiment: Experiment, request: Request) -> tuple[Setting, Path]:
    folder = request.out or Path("experiments") / (experiment.name if request.name != ALL else "")
    folder = folder / experiment.name if request.name == ALL else folder
    kept = folder / CONFIG
    if request.config is not None:
        setting = read_setting(request.config)
        if setting.experiment != experiment.name:
            raise ConfigError(f"{request.config} is of {setting.experiment}, not of {request.name}")
    else:
        setting = plan(experiment, request)
    check_data(setting.data, experiment.roles)
    if not kept.exists():
        return setting, folder
    found = read_setting(kept)
    if request.config is None:  # keys are drawn once; what is compared is what a person chose
        setting = replace(setting, keys=found.keys)
    if found != setting:
        raise ConfigError(
            f"{folder} holds {found.experiment} with another setting; give the same options again, or name another "
            "--out"
        )
    return found, folder


def plan(experiment: Experiment, request: Request) -> Setting:
    """The setting that a request asks for; sizes follow from the budget.

    Raises:
        ConfigError: a value cannot work, or the budget is too small.
    """
    if request.scale not in SCALES:
        raise ConfigError(f"scale must be one of {', '.join(SCALES)}, got {request.scale!r}")
    if request.scale != "laptop" and request.budget is not None:
        raise ConfigError(f"budget goes with --scale laptop: scale {request.scale} has sizes of its own")
    if request.budget is not None and not 0 < request.budget < float("inf"):
        raise ConfigError(f"budget must be above 0 minutes, got {request.budget}")
    num_seeds = experiment.default_seeds if request.num_seeds is None else request.num_seeds
    if request.scale == "smoke" and request.num_seeds is None:
        num_seeds = 1
    data = with_data(request.data, request.scale)
    check_data(data, experiment.roles)
    seeds = range(request.seed, request.seed + num_seeds)
    share = _SHARES[experiment.name] if request.name == ALL else 1.0
    budget = (request.budget or DEFAULT_BUDGET) if request.scale == "laptop" else 0.0

    def sized(effort: int, keys: dict[int, str]) -> Setting:
        return Setting(
            experiment=experiment.name,
            scale=request.scale,
            budget=budget,
            first_seed=request.seed,
            num_seeds=num_seeds,
            exchange=request.exchange,
            device=request.device,
            data={role: data[role] for role in experiment.roles},
            sizes=experiment.sizes(request.scale, effort),
            keys=keys,
        )

    effort = 1
    if request.scale == "laptop":
        effort = largest_effort(
            experiment.name, lambda tried: experiment.jobs(sized(tried, {})), budget, share
        )
    return sized(effort, fresh_keys(seeds))


def check_images(jobs: Sequence[Job]) -> None:
    """Refuses data that is too small, or options that do not go together, before any run is paid for."""
    seen = set()
    for job in jobs:
        told = (job.options.data, job.options.clients, job.options.train_images, job.options.partition)
        if told in seen:
            continue
        seen.add(told)
        opened = replace(job.options, data=expanded(job.options.data)).resolved()
        build.build_images(opened, required(opened.clients))


def machine(request: Request) -> dict[str, Any]:
    """Where and with what an experiment was run, for the report."""
    asked = ["suture experiment", request.name, "--scale", request.scale]
    if request.budget is not None:
        asked += ["--budget", f"{request.budget:g}"]
    if request.num_seeds is not None:
        asked += ["--seeds", str(request.num_seeds)]
    if request.config is not None:
        asked += ["--config", request.config.name]
    return {
        "command": " ".join(asked),
        "commit": commit(),
        "machine": f"{platform.machine()}, {platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "suture": SUTURE_VERSION,
        "runs at a time": request.slots,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
