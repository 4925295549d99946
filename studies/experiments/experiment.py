"""What an experiment is: its sizes by scale, its runs, and what their results say in tables and pictures.

NAME.toml beside an experiment's module has what is data: sizes by scale and role, its share of the budget of ``all``,
and the study's published figures with a sentence on each difference.
"""

from __future__ import annotations

import inspect
import math
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from suture.launch.options.options import AskedOptions
from suture.launch.output.scores import NAMES
from suture.launch.output.table import Table
from suture.models.plugins import split
from suture.studies.audit.report import is_void as majority_lost
from suture.studies.experiments.runs.job import Job, runs_folder
from suture.studies.experiments.runs.setting import Setting
from suture.studies.experiments.runs.sizes import Scale, Sizes, sizes_of
from suture.studies.statistics import shown_share

METRICS = {
    "classification": ("accuracy", "balanced_accuracy", "auroc", "majority_accuracy"),
    "segmentation": ("jaccard", "dice", "pixel_accuracy"),
}
PROCESSES = "processes"


@dataclass(frozen=True)
class Picture:
    """A figure with what stands below it; ``images_of`` is the role of the data whose images are in it."""

    path: Path
    caption: str
    images_of: str = ""


class Results:
    """What the runs of one experiment came to; only whole ones are in here.

    Args:
        folder: experiments/NAME.
        jobs: of the experiment.
        found: results by job.
    """

    def __init__(self, folder: Path, jobs: Sequence[Job], found: Mapping[str, dict[str, Any]]) -> None:
        self.folder = folder
        self.jobs = [job for job in jobs if job.name in found]
        self._found = dict(found)

    def arms(self) -> list[str]:
        """Arms with at least one result, in the order of the plan."""
        return list(dict.fromkeys(job.arm for job in self.jobs))

    def of(self, arm: str) -> list[dict[str, Any]]:
        """An arm's results, seed by seed."""
        return [self._found[job.name] for job in self.jobs if job.arm == arm]

    def result(self, job: Job) -> dict[str, Any]:
        """One job's result."""
        return self._found[job.name]

    def run_dir(self, arm: str) -> Path | None:
        """The folder of an arm's first run, None where none is done."""
        names = [job.name for job in self.jobs if job.arm == arm]
        return runs_folder(self.folder) / names[0] if names else None

    def values(self, arm: str, metric: str) -> list[float]:
        """A test metric's mean over clients, seed by seed."""
        return [client_mean(result["summary"], metric) for result in self.of(arm)]

    def cells(self, arm: str, metrics: Sequence[str]) -> dict[str, str]:
        """Means and intervals over the seeds, by heading."""
        return {NAMES[metric]: shown_share(self.values(arm, metric)) for metric in metrics}

    def by_client(self, arm: str, metric: str) -> list[float]:
        """A test metric client by client, each the mean over seeds."""
        found = [result["summary"]["clients"] for result in self.of(arm)]
        names = list(found[0])
        return [
            sum(clients[name]["test"].get(metric, math.nan) for clients in found) / len(found)
            for name in names
        ]


class Experiment(ABC):
    """One question, its runs and its answer."""

    name: ClassVar[str]
    question: ClassVar[str]
    roles: ClassVar[tuple[str, ...]]
    default_seeds: ClassVar[int] = 3

    @cached_property
    def file(self) -> Mapping[str, Any]:
        """NAME.toml beside this experiment's module."""
        return tomllib.loads(
            Path(inspect.getfile(type(self))).with_name(f"{self.name}.toml").read_text(encoding="utf-8")
        )

    def sizes(self, scale: Scale, effort: int) -> dict[str, Sizes]:
        """Sizes by role; ``effort`` counts from 1 and matters at scale laptop."""
        return sizes_of(self.file, scale, effort)

    def published(self, row: str) -> Any:
        """The study's figures of one row, None where it has none."""
        return self.file["study"].get("rows", {}).get(row)

    def differences(self) -> list[str]:
        """A sentence on each published row."""
        found = self.file["study"].get("differences", {})
        return [f"Published row {row}: {sentence}" for row, sentence in found.items()]

    def has_sites(self, setting: Setting) -> bool:
        """Looks at the data once, before the plan: whether they come from two hospitals or more, where that matters."""
        return False

    @abstractmethod
    def jobs(self, setting: Setting) -> list[Job]:
        """All runs, in the order in which they are begun."""

    @abstractmethod
    def tables(self, setting: Setting, results: Results) -> list[Table]:
        """The tables, published figures beside ours."""

    @abstractmethod
    def pictures(self, setting: Setting, results: Results, folder: Path) -> list[Picture]:
        """Draws what the results allow into ``folder``."""

    def facts(self, job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
        """A run's line in table.csv beside arm, seed and digest."""
        summary = result["summary"]
        return {metric: client_mean(summary, metric) for metric in METRICS[summary["task"]]}


def client_mean(summary: Mapping[str, Any], metric: str) -> float:
    """A test metric's mean over the clients; nan where it was not measured."""
    values = [c["test"][metric] for c in summary["clients"].values() if metric in c.get("test", {})]
    return sum(values) / len(values) if values else math.nan


def is_void(summary: Mapping[str, Any]) -> bool:
    """Whether a classifier was lost: what such a run hides is no merit."""
    return majority_lost(client_mean(summary, "accuracy"), client_mean(summary, "majority_accuracy"))


def options(setting: Setting, role: str, *, clients: int, seed: int, **further: Any) -> AskedOptions:
    """The options that runs on one data set share."""
    sizes = setting.sizes[role]
    given: dict[str, Any] = {
        "data": setting.data[role],
        "model": sizes.model,
        "image_size": sizes.image_size,
        "train_images": sizes.train_images,
        "validation_images": 0,  # the last round is scored: there is nothing to choose by
        "test_images": sizes.test_images,
        "held_out_images": sizes.held_out_images,
        "epochs": sizes.rounds,
        "batch_size": sizes.batch_size,
        "width": sizes.width or None,
        "clients": clients,
        "seed": seed,
        "exchange": setting.exchange,
        "device": setting.device,
        "threads": 1,
        "judge": "off",  # a run's worker judges
        "checkpoints": "off" if setting.exchange == "local" else "turn",
    }
    return AskedOptions(**given | further)


def repeated_with_processes(job: Job) -> Job:
    """The same run with a process each for server and clients, whose weights must come out equal."""
    return replace(
        job,
        arm=f"{job.arm}-{PROCESSES}",
        options=replace(job.options, exchange="fused"),
        same_weights_as=job.name,
    )


def scale_of(setting: Setting, role: str) -> str:
    """For a table's title: "scale laptop: ..."."""
    sizes = setting.sizes[role]
    data = split(setting.data[role])[0]
    return (
        f"scale {setting.scale}: {data}, {sizes.model} at {sizes.image_size} px, {sizes.train_images} training images "
        f"a client, {sizes.rounds} rounds, {setting.num_seeds} seed{'s' if setting.num_seeds > 1 else ''}"
    )


def check_sentence(results: Results) -> str:
    """What the repetitions by real processes and the oracles showed."""
    digests = {job.name: results.result(job)["summary"]["weights_sha256"] for job in results.jobs}
    checked = [job for job in results.jobs if job.same_weights_as in digests]
    equal: list[str] = []
    unequal: list[str] = []
    for job in checked:
        told = equal if digests[job.name] == digests[job.same_weights_as] else unequal
        told.append(f"{job.name} and {job.same_weights_as}")
    said = f"Same weights, bit for bit: {', '.join(equal)}." if equal else ""
    return said + (f" OTHER weights where they must be the same: {', '.join(unequal)}." if unequal else "")
