"""``suture experiment``: plans, runs what is missing, and writes tables and pictures.

experiments/NAME/config.toml, runs/     see `job.py`
experiments/NAME/table.csv              a line a run: facts, scores, leakage, digest
experiments/NAME/table.md, figures/     what they say together, published figures beside ours
"""

from __future__ import annotations

from pathlib import Path

from suture.runtime.errors import SutureError
from suture.runtime.state.checkpoint import write_atomically
from suture.studies.experiments.engine.plan import Request, check_images, setting_of
from suture.studies.experiments.engine.pool import Task, run_all
from suture.studies.experiments.engine.provenance import write_provenance
from suture.studies.experiments.engine.results import write_results
from suture.studies.experiments.registry import chosen
from suture.studies.experiments.runs.setting import CONFIG, to_toml


def run_experiments(request: Request) -> list[Path]:
    """Runs one experiment or all of them; returns their folders.

    Raises:
        ConfigError: the request cannot work; nothing was run.
        SutureError: runs failed, or two that must end with the same weights did not; what is done is kept.
    """
    experiments = chosen(request.name)
    settings = [setting_of(experiment, request) for experiment in experiments]
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
        write_provenance(request, folder)
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
