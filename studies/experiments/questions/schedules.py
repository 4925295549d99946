"""``schedules``: do clients that train at once reach what clients reach that take turns?

The same images, rounds and seeds under every schedule; compared with round-robin seed by seed.
"""

from __future__ import annotations

from pathlib import Path

from suture.launch.output.table import Table
from suture.studies.experiments.experiment import (
    METRICS,
    Experiment,
    Picture,
    Results,
    check_sentence,
    options,
    repeated_with_processes,
    scale_of,
)
from suture.studies.experiments.pages.charts import dots_with_intervals
from suture.studies.experiments.runs.job import Job
from suture.studies.experiments.runs.setting import Setting
from suture.studies.statistics import changed

_ROLE = "photographs"
_SHOWN = METRICS["classification"]
_TURNS = "round-robin"
_WHAT = {
    _TURNS: "one after the other, the bottom handed on",
    "parallel": "at once, one top takes their batches one by one; bottoms averaged",
    "splitfed": "at once, a top each; tops and bottoms averaged",
    "concat": "at once, their batches joined to one step; bottoms averaged",
}


class Schedules(Experiment):
    """Every schedule, compared with round-robin seed by seed."""

    name = "schedules"
    question = "Do clients that train at once reach what clients reach that take turns?"
    roles = (_ROLE,)
    default_seeds = 5

    def jobs(self, setting: Setting) -> list[Job]:
        jobs = [
            Job(
                arm=schedule,
                seed=seed,
                options=options(setting, _ROLE, clients=2, seed=seed, cut="3", schedule=schedule),
                facts={"schedule": schedule},
            )
            for seed in setting.seeds
            for schedule in _WHAT
        ]
        return [*jobs, *(repeated_with_processes(job) for job in jobs[1 : len(_WHAT)])]

    def tables(self, setting: Setting, results: Results) -> list[Table]:
        rows = [
            {"schedule": f"{schedule}: {what}", "seeds": len(results.of(schedule))}
            | results.cells(schedule, _SHOWN)
            for schedule, what in _WHAT.items()
            if schedule in results.arms()
        ]
        notes = [
            "Two clients, cut 3; test images that no client trained on, mean over clients; ± is the 95 % interval "
            "over seeds. As many images and rounds under every schedule; under concat the top makes half the steps.",
            *(self._against_turns(results, schedule) for schedule in _WHAT),
            check_sentence(results),
        ]
        title = f"Taking turns and training at once, {scale_of(setting, _ROLE)}"
        return [Table(rows, title, notes)]

    def _against_turns(self, results: Results, schedule: str) -> str:
        if schedule == _TURNS or not {schedule, _TURNS} <= set(results.arms()):
            return ""
        told = changed(results.values(_TURNS, "auroc"), results.values(schedule, "auroc"))
        return f"{schedule} against {_TURNS}: AUROC {told}."

    def pictures(self, setting: Setting, results: Results, folder: Path) -> list[Picture]:
        shown = {arm: results.values(arm, "auroc") for arm in _WHAT if arm in results.arms()}
        path = dots_with_intervals(shown, folder / "auroc.png", x="AUROC on test images", guess=0.5)
        return [Picture(path, "AUROC by schedule: every seed, mean and 95 % interval; dashed: chance.")]
