"""From what a person asks for to an experiment's setting and folder; what cannot work is refused here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from suture.launch import build
from suture.runtime.errors import ConfigError
from suture.studies.experiments.experiment import Experiment
from suture.studies.experiments.registry import ALL
from suture.studies.experiments.runs.job import Job
from suture.studies.experiments.runs.setting import (
    CONFIG,
    Setting,
    check_data,
    expanded,
    fresh_keys,
    read_setting,
    with_data,
)
from suture.studies.experiments.runs.sizes import DEFAULT_BUDGET, SCALES, Scale, largest_effort


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


def setting_of(experiment: Experiment, request: Request) -> tuple[Setting, Path]:
    """The setting of one of the experiments asked for, and its folder.

    Raises:
        ConfigError: see `plan`; or the folder holds the experiment with another setting.
    """
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
    if request.config is None:
        # Keys are drawn once, and sizes planned; what is compared is what a person chose.
        further = {seed: key for seed, key in setting.keys.items() if seed not in found.keys}
        setting = replace(setting, keys=found.keys)
        if setting.num_seeds > found.num_seeds:
            setting = replace(setting, sizes=found.sizes)
            if replace(setting, num_seeds=found.num_seeds) == found:
                return replace(setting, keys={**found.keys, **further}), folder
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
    share = float(experiment.file["share"]) if request.name == ALL else 1.0
    budget = (request.budget or DEFAULT_BUDGET) if request.scale == "laptop" else 0.0

    def sized(effort: int, keys: dict[int, str], has_sites: bool = False) -> Setting:
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
            has_sites=has_sites,
        )

    has_sites, effort = experiment.has_sites(sized(1, {})), 1
    if request.scale == "laptop":
        effort = largest_effort(
            experiment.name, lambda tried: experiment.jobs(sized(tried, {}, has_sites)), budget, share
        )
    return sized(effort, fresh_keys(seeds), has_sites)


def check_images(jobs: Sequence[Job]) -> None:
    """Refuses data that is too small, or options that do not go together, before any run is paid for."""
    seen = set()
    for job in jobs:
        told = (job.options.data, job.options.clients, job.options.train_images, job.options.partition)
        if told in seen:
            continue
        seen.add(told)
        opened = replace(job.options, data=expanded(job.options.data), weights=None, freeze=None).resolved()
        build.build_images(opened, opened.clients)
