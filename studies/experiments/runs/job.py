"""One run of an experiment: an ordinary run's options, what stands beside it in the table, and where it lies.

experiments/NAME/config.toml        what is run: sizes, data, seeds, the clients' keys; repeats the experiment
experiments/NAME/inputs/            what runs read: key files, schedules, weights to start from
experiments/NAME/runs/JOB/          an ordinary run's folder, and result.json once it is done
experiments/NAME/runs/JOB.log       what it said
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from suture.launch.options.options import AskedOptions

RESULT = "result.json"
Skips = Literal["exact", "cut off"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        arm: what it is one of; runs of an arm differ in their seed.
        seed: the run's ``--seed``.
        options: of the run, without its folder and its key.
        facts: columns of the table that are known beforehand, such as the cut.
        skips: "cut off" for a U-Net into whose skips no gradient flows (`skips.py`).
        only_client: trained alone among all, so that it is tested on everybody's images; empty for all.
        same_start: start from weights that depend on the seed alone and not on the cut.
        afterwards: attacks on the run's recording by name, see ``suture attack``.
        read: whether the judge also trains a classifier that reads reconstructions.
        same_weights_as: the job whose weights must be equal bit for bit; empty for none.
    """

    arm: str
    seed: int
    options: AskedOptions
    facts: Mapping[str, Any] = field(default_factory=dict)
    skips: Skips = "exact"
    only_client: str = ""
    same_start: bool = False
    afterwards: Mapping[str, str] = field(default_factory=dict)
    read: bool = False
    same_weights_as: str = ""

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"{self.arm}-{self.seed}"


def runs_folder(experiment: Path) -> Path:
    """Where an experiment's runs lie."""
    return experiment / "runs"


def inputs_folder(experiment: Path) -> Path:
    """Where what its runs read lies."""
    return experiment / "inputs"


def result_path(experiment: Path, job: str) -> Path:
    """Where a job's result is once it is done."""
    return runs_folder(experiment) / job / RESULT


def read_result(experiment: Path, job: str) -> dict[str, Any] | None:
    """A job's result, None while it is not done."""
    path = result_path(experiment, job)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
