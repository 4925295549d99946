"""``pretrained``: what are pretrained weights worth to a split net, trained on and frozen?

Two clients share all training photographs; each scores the whole official test set, once, after the last round.
Settings were chosen by ``pretrained-settings``, which never opens that set.
"""

from __future__ import annotations

from pathlib import Path

from suture.launch.output.report.tables import area_interval
from suture.launch.output.table import Table
from suture.studies.experiments.experiment import (
    Experiment,
    Picture,
    Results,
    check_sentence,
    repeated_with_processes,
)
from suture.studies.experiments.pages.charts import dots_with_intervals
from suture.studies.experiments.questions.pretrained_settings import ROLE, SHOWN, PretrainedSettings, of
from suture.studies.experiments.runs.job import Job
from suture.studies.experiments.runs.setting import Setting
from suture.studies.experiments.runs.sizes import Scale, Sizes
from suture.studies.statistics import changed

_WHAT = {
    "pretrained": "from ImageNet's weights, all of it trained on",
    "frozen": "from ImageNet's weights, the final layer alone trained",
    "scratch": "from drawn weights",
}


class Pretrained(Experiment):
    """Pretrained, frozen and scratch, seed by seed."""

    name = "pretrained"
    question = "What are pretrained weights worth to a split net?"
    roles = (ROLE,)
    default_seeds = 5
    _tried = PretrainedSettings()

    def sizes(self, scale: Scale, effort: int) -> dict[str, Sizes]:
        """Those of the cross-validation."""
        return self._tried.sizes(scale, effort)

    def jobs(self, setting: Setting) -> list[Job]:
        # Drawn images have no official test set.
        partition = "fold:1/5" if setting.scale == "smoke" else "all"
        jobs = [
            Job(
                arm=arm,
                seed=seed,
                options=self._tried.options(setting, name, seed, partition),
                facts={"start": arm, "setting": name},
                same_start=self._tried.starts_drawn(setting, name),
            )
            for seed in setting.seeds
            for arm, name in self.file["arms"].items()
        ]
        frozen = next(job for job in jobs if job.arm == "frozen")
        return [*jobs, repeated_with_processes(frozen)]

    def tables(self, setting: Setting, results: Results) -> list[Table]:
        rows = [
            {"start": f"{arm}: {what}", "seeds": len(results.of(arm))}
            | results.cells(arm, SHOWN)
            | {"CPU minutes a run": f"{_minutes(results, arm):.1f}"}
            for arm, what in _WHAT.items()
            if arm in results.arms()
        ]
        tried = self._tried.settings
        notes = [
            "Every client scores the whole test set, once, after the last round; in brackets: 95 % over seeds, "
            "each with a key of its own.",
            *(_over_images(results, arm) for arm in ("pretrained", "frozen")),
            f"{len(tried)} settings were tried for pretrained, by cross-validation on training photographs "
            f"(pretrained-settings): {', '.join(tried)}; chosen: {self.file['arms']['pretrained']}. Frozen and scratch "
            "have one each, written down beforehand.",
            *(_against(results, *pair) for pair in (("scratch", "pretrained"), ("pretrained", "frozen"))),
            check_sentence(results),
        ]
        return [Table(rows, f"What pretrained weights are worth, {of(setting)}", notes)]

    def pictures(self, setting: Setting, results: Results, folder: Path) -> list[Picture]:
        shown = {arm: results.values(arm, "auroc") for arm in _WHAT if arm in results.arms()}
        path = dots_with_intervals(shown, folder / "auroc.png", x="AUROC on test photographs", guess=0.5)
        return [Picture(path, "AUROC by start: every seed, mean and 95 % interval; dashed: chance.")]


def _against(results: Results, base: str, arm: str) -> str:
    if not {base, arm} <= set(results.arms()):
        return ""
    told = changed(results.values(base, "auroc"), results.values(arm, "auroc"))
    return f"{arm} against {base}: AUROC {told}."


def _over_images(results: Results, arm: str) -> str:
    """How sure the mean AUROC of an arm is, given how few photographs there are."""
    if arm not in results.arms():
        return ""
    values = results.values(arm, "auroc")
    area = sum(values) / len(values)
    test = next(iter(results.of(arm)[0]["summary"]["clients"].values()))["test"]
    found = area_interval(area, test.get("num_images"), test.get("majority_accuracy"), 2)
    if found is None:
        return ""
    low, high = found
    over = f"over {test['num_images']:.0f} photographs"
    return f"{arm}: {over} AUROC {area:.3f} has the interval {low:.3f} to {high:.3f}."


def _minutes(results: Results, arm: str) -> float:
    spent = [float(result["cpu_seconds"]) for result in results.of(arm)]
    return sum(spent) / len(spent) / 60
