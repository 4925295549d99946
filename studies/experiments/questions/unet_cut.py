"""``unet-cut``: does it matter to a U-Net where it is cut, and what did cutting off its skips' gradients cost?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from suture.launch.output.table import Table
from suture.runtime.data.registry import open_source
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
from suture.studies.experiments.pages.charts import copied, scores_by_round
from suture.studies.experiments.runs.job import Job, Skips
from suture.studies.experiments.runs.setting import Setting
from suture.studies.statistics import changed

CUTS = (1, 2, 3)
_ROLE = "lungs"
_SHOWN = METRICS["segmentation"]


class UnetCut(Experiment):
    """A U-Net at three cuts, its skips with and without gradient."""

    name = "unet-cut"
    question = "Does it matter to a U-Net where it is cut, and what do the skips' gradients do?"
    roles = (_ROLE,)

    def has_sites(self, setting: Setting) -> bool:
        size = setting.sizes[_ROLE]
        need = size.train_images + size.test_images
        source = open_source(setting.source(_ROLE), grades="binary", need=need, seed=setting.first_seed)
        return len({example.site for example in source.examples if example.site}) > 1

    def jobs(self, setting: Setting) -> list[Job]:
        ways: tuple[Skips, ...] = ("exact", "cut off")
        jobs = [self._job(setting, cut, way, seed) for seed in setting.seeds for cut in CUTS for way in ways]
        jobs.append(repeated_with_processes(jobs[2]))
        if setting.has_sites:
            jobs += [self._by_site(setting, cut, seed) for seed in setting.seeds for cut in CUTS]
        return jobs

    def _job(self, setting: Setting, cut: int, skips: Skips, seed: int) -> Job:
        return Job(
            arm=f"cut{cut}" + ("-no-skip-gradients" if skips == "cut off" else ""),
            seed=seed,
            options=options(setting, _ROLE, clients=1, seed=seed, cut=str(cut)),
            facts={"cut": cut, "clients": "1", "skip gradients": skips},
            skips=skips,
        )

    def _by_site(self, setting: Setting, cut: int, seed: int) -> Job:
        job = self._job(setting, cut, "exact", seed)
        half = setting.sizes[_ROLE].train_images // 2
        shared = replace(job.options, clients=2, partition="by-site", train_images=half)
        facts = {**job.facts, "clients": "2, by site"}
        return replace(job, arm=f"cut{cut}-by-site", options=shared, facts=facts)

    def tables(self, setting: Setting, results: Results) -> list[Table]:
        rows = []
        facts = {job.arm: job.facts for job in results.jobs}
        for arm, told in facts.items():
            if arm.endswith("processes"):
                continue
            study = self.published(str(told["cut"]))
            same = told["skip gradients"] == "cut off"  # which is what the study did
            rows.append(
                {
                    "cut": f"cut {told['cut']}",
                    "clients": told["clients"],
                    "skip gradients": told["skip gradients"],
                }
                | results.cells(arm, _SHOWN)
                | {f"study: {name}": f"{study[name]:.4f}" if same else "" for name in ("jaccard", "accuracy")}
            )
        notes = [
            "Test images of patients never trained on; in brackets: 95 % over seeds. The study's skips had no "
            "gradient, so its figures stand beside those rows.",
            *(self._effect(results, cut) for cut in CUTS),
            "" if setting.has_sites else "The set has one site: two clients by site are left out.",
            check_sentence(results),
            *self.differences(),
        ]
        title = f"The U-Net's cut and its skips' gradients, {scale_of(setting, _ROLE)}"
        return [Table(rows, title, notes)]

    def _effect(self, results: Results, cut: int) -> str:
        arms = f"cut{cut}", f"cut{cut}-no-skip-gradients"
        if not set(arms) <= set(results.arms()):
            return ""
        exact, without = (results.values(arm, "jaccard") for arm in arms)
        told = changed(exact, without, digits=4)
        return f"Cut {cut}: without skip gradients jaccard changes by {told}."

    def pictures(self, setting: Setting, results: Results, folder: Path) -> list[Picture]:
        arms = [arm for arm in results.arms() if not arm.endswith(("processes", "by-site"))]
        drawn = [
            Picture(
                scores_by_round(results, arms, folder / "curves.png"),
                "Training loss, pixel accuracy and jaccard on test patients by round, mean over seeds; dashed: skips "
                "without gradient.",
            )
        ]
        found = copied(
            results, "cut2", "clients/client0/figures/segmentation.png", folder / "segmentation.png"
        )
        if found is not None:
            caption = "Test images, their true masks, and the masks of the net cut at 2 (blue: truth)."
            drawn.append(Picture(found, caption, images_of=_ROLE))
        return drawn
