"""``split-vs-central``: is it worth a hospital's while to join?

Split training of two clients, against central training on everybody's images, against each client alone. All are
scored on the same test images of both clients.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from suture.launch import build
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
NUM_CLIENTS = 2
ARMS = {
    "split": "two clients, split",
    "central": "all images in one place, unsplit",
    "alone0": "client0 alone, unsplit",
    "alone1": "client1 alone, unsplit",
    "oracle": "the split run's batches, unsplit",
}


class SplitVsCentral(Experiment):
    """Split training of two clients, central training, and each client alone."""

    name = "split-vs-central"
    question = "Is it worth a hospital's while to join?"
    roles = (_ROLE,)

    def jobs(self, setting: Setting) -> list[Job]:
        jobs = []
        for seed in setting.seeds:
            plain = Job(
                arm="split",
                seed=seed,
                options=options(setting, _ROLE, clients=NUM_CLIENTS, seed=seed, cut="3"),
                facts={"training": ARMS["split"]},
            )
            jobs.append(plain)
            unsplit = replace(plain.options, unsplit=True, checkpoints="turn")
            jobs.append(
                replace(
                    plain,
                    arm="central",
                    options=replace(unsplit, pooled=True),
                    facts={"training": ARMS["central"]},
                )
            )
            for index in range(NUM_CLIENTS):
                arm = f"alone{index}"
                jobs.append(
                    replace(
                        plain,
                        arm=arm,
                        options=unsplit,
                        only_client=build.client_name(index),
                        facts={"training": ARMS[arm]},
                    )
                )
        first = jobs[0]
        oracle = replace(first.options, unsplit=True, checkpoints="turn")
        jobs.append(
            replace(
                first,
                arm="oracle",
                options=oracle,
                same_weights_as=first.name,
                facts={"training": ARMS["oracle"]},
            )
        )
        return [*jobs, repeated_with_processes(first)]

    def tables(self, setting: Setting, results: Results) -> list[Table]:
        rows = []
        for arm, what in ARMS.items():
            if arm not in results.arms():
                continue
            found = results.of(arm)
            rows.append(
                {"training": what, "seeds": len(found)}
                | results.cells(arm, _SHOWN)
                | {"weights_sha256": found[0]["summary"]["weights_sha256"][:12]}
            )
        notes = [
            "Cut 3. Every row is scored on the same test images, those of both clients, which no client trained on; "
            "in brackets: 95 % over seeds; the digest is of the first seed. All train the same number of rounds, "
            "so a client alone makes half the updates.",
            *(self._gain(results, arm) for arm in ("central", "alone0", "alone1")),
            check_sentence(results),
            "The study did not ask this.",
        ]
        title = f"Split, central and alone, {scale_of(setting, _ROLE)}"
        return [Table(rows, title, notes)]

    def _gain(self, results: Results, arm: str) -> str:
        if not {"split", arm} <= set(results.arms()):
            return ""
        told = changed(results.values(arm, "auroc"), results.values("split", "auroc"))
        return f"Split against {ARMS[arm]}: AUROC {told}."

    def pictures(self, setting: Setting, results: Results, folder: Path) -> list[Picture]:
        shown = {what: results.values(arm, "auroc") for arm, what in ARMS.items() if arm in results.arms()}
        shown.pop(ARMS["oracle"], None)
        path = dots_with_intervals(shown, folder / "auroc.png", x="AUROC on test images", guess=0.5)
        return [
            Picture(path, "AUROC by way of training: every seed, mean and 95 % interval; dashed: chance.")
        ]
