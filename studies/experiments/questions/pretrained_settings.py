"""``pretrained-settings``: which settings train a pretrained net best, by cross-validation on training photographs?

A seed is a fold: its photographs are scored, the other folds' are trained on. The official test set stays closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture.launch.options.options import AskedOptions
from suture.launch.output.table import Table
from suture.studies.experiments.experiment import (
    METRICS,
    Experiment,
    Picture,
    Results,
    check_sentence,
    options,
    repeated_with_processes,
)
from suture.studies.experiments.pages.charts import dots_with_intervals
from suture.studies.experiments.runs.job import Job
from suture.studies.experiments.runs.setting import Setting
from suture.studies.experiments.runs.sizes import Scale, Sizes, sizes_of

ROLE, CUT, NUM_CLIENTS = "photographs", "features.3", 2
SHOWN = METRICS["classification"]


class PretrainedSettings(Experiment):
    """Every setting on the same folds."""

    name = "pretrained-settings"
    question = "Which settings train a pretrained net best, by cross-validation?"
    roles = (ROLE,)
    default_seeds = 2

    def sizes(self, scale: Scale, effort: int) -> dict[str, Sizes]:
        """Rounds are a setting: no budget changes them."""
        return sizes_of(self.file, scale, 1)

    @property
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """The settings that are compared, by name."""
        found: Mapping[str, Mapping[str, Any]] = self.file["settings"]
        return found

    def jobs(self, setting: Setting) -> list[Job]:
        folds = int(self.file["folds"])
        jobs = [
            Job(
                arm=name,
                seed=seed,
                # All folds of one division, which the seed would change.
                options=self.options(setting, name, 0, f"fold:{seed % folds + 1}/{folds}"),
                facts={"setting": name, "fold": f"{seed % folds + 1} of {folds}"},
                same_start=self.starts_drawn(setting, name),
            )
            for seed in setting.seeds
            for name in self.settings
        ]
        return [*jobs, repeated_with_processes(jobs[0])]

    def options(self, setting: Setting, name: str, seed: int, partition: str) -> AskedOptions:
        """The options of a run with the setting ``name``."""
        given = dict(self._told(name))
        weights = self.file["weights"] if given.pop("start") == "pretrained" else None
        return options(
            setting,
            ROLE,
            clients=NUM_CLIENTS,
            seed=seed,
            cut=CUT,
            partition=partition,
            weights=weights,
            **given,
        )

    def _told(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = {**self.settings, **self.file["fixed"]}[name]
        return found

    def starts_drawn(self, setting: Setting, name: str) -> bool:
        """Whether a pretrained net's weights are drawn instead: at scale smoke, which measures nothing."""
        return setting.scale == "smoke" and self._told(name)["start"] == "pretrained"

    def tables(self, setting: Setting, results: Results) -> list[Table]:
        rows = [
            {"setting": name, "folds": len(results.of(name))}
            | results.cells(name, SHOWN)
            | {"options": ", ".join(f"{option} {value}" for option, value in told.items())}
            for name, told in self.settings.items()
            if name in results.arms()
        ]
        notes = [
            f"{len(self.settings)} settings were tried, all on the same folds; ± is the 95 % interval over folds. "
            "The official test set was not scored.",
            "By photograph: IDRiD lists no patients, so both eyes of one person may lie in two folds.",
            check_sentence(results),
        ]
        return [Table(rows, f"Settings by cross-validation, {of(setting)}", notes)]

    def pictures(self, setting: Setting, results: Results, folder: Path) -> list[Picture]:
        shown = {name: results.values(name, "auroc") for name in self.settings if name in results.arms()}
        path = dots_with_intervals(shown, folder / "auroc.png", x="AUROC on the fold left out", guess=0.5)
        return [Picture(path, "AUROC by setting: every fold, mean and 95 % interval; dashed: chance.")]


def of(setting: Setting) -> str:
    """For a table's title."""
    sizes = setting.sizes[ROLE]
    return (
        f"scale {setting.scale}: MobileNetV2 cut at {CUT}, {sizes.image_size} px, {NUM_CLIENTS} clients, "
        f"{sizes.rounds} rounds, batches of {sizes.batch_size}"
    )
