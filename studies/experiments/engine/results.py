"""What is done of an experiment: read back, written as tables and pictures, and its weights compared."""

from __future__ import annotations

import json
from pathlib import Path

from suture.launch.output.table import Table
from suture.runtime.state.checkpoint import write_atomically
from suture.studies.experiments.experiment import Experiment, Results
from suture.studies.experiments.registry import EXPERIMENTS
from suture.studies.experiments.runs.job import read_result
from suture.studies.experiments.runs.setting import CONFIG, Setting, attribution, read_setting

PICTURES = "pictures.json"


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
    write_atomically(folder / "table.csv", Table(rows).to_csv().encode())
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
