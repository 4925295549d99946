"""``clients``: what do more clients do, and what do only more images and more updates do?

Three ways of growing from one client to the most:

- as published: each client brings its images and trains all rounds, so images and updates grow with the clients;
- same updates: each client brings its images, and the rounds are as many as make the updates those of the most;
- same images: the images of the most are shared out among fewer clients: images and updates are the same.

Only in the last does nothing but the number of clients differ.
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
from suture.studies.experiments.pages.charts import Series, lines_with_intervals
from suture.studies.experiments.runs.job import Job
from suture.studies.experiments.runs.setting import Setting
from suture.studies.statistics import changed, in_percent

COUNTS = (1, 2, 3, 4, 6)
MOST = COUNTS[-1]
LAPTOPS = (1, 3)  # at scale laptop the controls are of these numbers alone
WAYS = {
    "published": "as published: images and updates grow with the clients",
    "updates": "same updates: images grow, rounds shrink",
    "images": "same images and updates: only the number of clients differs",
}
_ROLE = "photographs"
_SHOWN = METRICS["classification"]


class Clients(Experiment):
    """One to six clients, as published and with the total of updates, or of updates and images, held fixed."""

    name = "clients"
    question = "What do more clients do when the total is held fixed?"
    roles = (_ROLE,)

    def jobs(self, setting: Setting) -> list[Job]:
        jobs = []
        for seed in setting.seeds:
            for count in reversed(COUNTS):
                # With the most clients all three ways are one run.
                controlled = count != MOST and (setting.scale != "laptop" or count in LAPTOPS)
                ways = tuple(WAYS) if controlled else ("published",)
                jobs += [self._job(setting, way, count, seed) for way in ways]
        two = next(job for job in jobs if job.arm == "published-2")
        return [*jobs, repeated_with_processes(two)]

    def _job(self, setting: Setting, way: str, count: int, seed: int) -> Job:
        sizes = setting.sizes[_ROLE]
        images, rounds = sizes.train_images, sizes.rounds
        if way == "updates":
            rounds = sizes.rounds * MOST // count
        elif way == "images":
            images = sizes.train_images * MOST // count
        return Job(
            arm=f"{way}-{count}",
            seed=seed,
            options=options(
                setting,
                _ROLE,
                clients=count,
                seed=seed,
                cut="3",
                train_images=images,
                epochs=rounds,
                test_images=sizes.test_images // count // 2 * 2,
            ),
            facts={
                "way": way,
                "clients": count,
                "images": images * count,
                "updates": -(-images // sizes.batch_size) * count * rounds,
            },
        )

    def tables(self, setting: Setting, results: Results) -> list[Table]:
        rows = []
        facts = {job.arm: job.facts for job in results.jobs}
        for way in WAYS:
            for count in COUNTS:
                arm = self._arm(way, count)
                if arm not in results.arms():
                    continue
                told = facts[arm]
                by_client = ", ".join(f"{value:.2f}" for value in results.by_client(arm, "accuracy"))
                study = in_percent(self.published(str(count))) if way == "published" else ""
                rows.append(
                    {"way": WAYS[way].partition(":")[0], "clients": count}
                    | {"images": told["images"], "updates": told["updates"]}
                    | results.cells(arm, _SHOWN)
                    | {"accuracy by client": by_client, "study, by client (on training images)": study}
                )
        notes = [
            "Cut 3. All test images are shared out among the clients, so every row is scored on nearly the same "
            "images; mean over clients; in brackets: 95 % over seeds. The row of six is one run in all three "
            "ways.",
            *(self._growth(results, way) for way in WAYS),
            check_sentence(results),
            *self.differences(),
        ]
        title = f"Clients, with and without the total held fixed, {scale_of(setting, _ROLE)}"
        return [Table(rows, title, notes)]

    @staticmethod
    def _arm(way: str, count: int) -> str:
        return f"published-{MOST}" if count == MOST else f"{way}-{count}"

    def _growth(self, results: Results, way: str) -> str:
        few, many = self._arm(way, 1), self._arm(way, MOST)
        if not {few, many} <= set(results.arms()):
            return ""
        told = changed(results.values(few, "auroc"), results.values(many, "auroc"))
        return f"{WAYS[way]}: from one client to {MOST} AUROC changes by {told}."

    def pictures(self, setting: Setting, results: Results, folder: Path) -> list[Picture]:
        series = []
        for way, label in WAYS.items():
            points = [
                (count, results.values(self._arm(way, count), "auroc"))
                for count in COUNTS
                if self._arm(way, count) in results.arms()
            ]
            series.append(Series(label, points))
        path = lines_with_intervals(
            series,
            folder / "auroc_by_clients.png",
            x="clients",
            y="AUROC on test images",
            title="More clients, or more images and updates?",
            guess=0.5,
        )
        return [
            Picture(
                path, "AUROC by the number of clients, mean and 95 % interval over seeds; dashed: chance."
            )
        ]
