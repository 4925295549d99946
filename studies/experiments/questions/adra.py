"""``adra``: what does a passive server rebuild at cut 3 and at cut 7, and what is a proxy adversary worth?

A decoder of the study's size attacks every run while it trains; then a fresh, larger one, trained longer, attacks
the recording of the same run: what holds against the first alone is no defence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from suture.launch.output.table import Table
from suture.studies.experiments.experiment import (
    METRICS,
    Experiment,
    Picture,
    Results,
    check_sentence,
    is_void,
    options,
    repeated_with_processes,
    scale_of,
)
from suture.studies.experiments.pages.charts import attack_curves, reconstructed
from suture.studies.experiments.pages.leaks import UNREAD, leak_cells, leak_facts, nothing_known
from suture.studies.experiments.runs.job import Job
from suture.studies.experiments.runs.setting import Setting

ATTACKERS = {"live": "study's decoder", "fresh": "fresh, larger decoder"}
DEFENCES = {
    "none": "none",
    "proxy": "proxy:task_weight=0.2,steps=4",
    "study": "proxy:task_weight=0.01,steps=4",
}
"""The last is the study's weight: one part of the task, ninety-nine of the proxy."""
ARMS = {
    "photographs": ((3, "none"), (3, "proxy"), (7, "none"), (7, "proxy")),
    "digits": ((7, "none"), (7, "proxy"), (7, "study")),
}
"""Cuts and defences by data. Digits are enough in number to train a decoder for the deep cut."""
_SHOWN = METRICS["classification"]


class Adra(Experiment):
    """ADRA at two cuts, with and without a proxy adversary, by a decoder after the study's and by a fresh one."""

    name = "adra"
    question = (
        "What does a passive server rebuild, and what is a proxy adversary worth against a fresh attacker?"
    )
    roles = ("photographs", "digits")

    def jobs(self, setting: Setting) -> list[Job]:
        jobs = [
            self._job(setting, role, cut, defence, seed)
            for seed in setting.seeds
            for role in self.roles
            for cut, defence in ARMS[role]
        ]
        return [*jobs, repeated_with_processes(jobs[0])]

    def _job(self, setting: Setting, role: str, cut: int, defence: str, seed: int) -> Job:
        sizes = setting.sizes[role]
        own = f"adra:aux_images={sizes.aux_images}"
        return Job(
            arm=f"{role}-cut{cut}-{defence}",
            seed=seed,
            options=options(
                setting,
                role,
                clients=1,
                seed=seed,
                cut=str(cut),
                augment="light" if role == "photographs" else "none",
                defence=None if defence == "none" else DEFENCES[defence],
                attack=f"{own},epochs={sizes.decoder_epochs}",
                recording="last-round",
                checkpoints="turn",  # the attack on the recording wants the server's last top
            ),
            facts={"data": role, "cut": cut, "defence": DEFENCES[defence]},
            afterwards={"fresh": f"{own},epochs={2 * sizes.decoder_epochs},width=2,blocks=1"},
        )

    def facts(self, job: Job, result: Any) -> dict[str, Any]:
        found = super().facts(job, result)
        return found | leak_facts(result, "live", "static_") | leak_facts(result, "fresh", "fresh_")

    def tables(self, setting: Setting, results: Results) -> list[Table]:
        return [self._table(setting, results, role) for role in self.roles]

    def _table(self, setting: Setting, results: Results, role: str) -> Table:
        rows: list[dict[str, str]] = []
        for cut, defence in ARMS[role]:
            arm = f"{role}-cut{cut}-{defence}"
            if arm in results.arms():
                rows += self._rows(results, arm, f"cut {cut}", DEFENCES[defence])
        sizes = setting.sizes[role]
        notes = [
            f"One client; the attacker may pass {sizes.aux_images} images of its own through the bottom. Leakage is of "
            "held-out images that nobody trained on. Void: runs whose classifier is at most two points above the "
            "majority class; what they hide is no merit.",
            nothing_known([results.result(job) for job in results.jobs if job.facts["data"] == role], "live"),
            check_sentence(results) if role == "photographs" else "",
            *self.differences(),
        ]
        title = f"ADRA against a proxy adversary, {scale_of(setting, role)}"
        return Table(rows, title, notes)

    @staticmethod
    def _rows(results: Results, arm: str, cut: str, defence: str) -> list[dict[str, str]]:
        found = results.of(arm)
        void = sum(is_void(result["summary"]) for result in found)
        rows = []
        for attack, who in ATTACKERS.items():
            if any(leak_facts(result, attack) for result in found):
                first = attack == "live"
                row: dict[str, str] = {"cut": cut, "defence": defence, "attacker": who}
                rows.append(
                    row
                    | (results.cells(arm, _SHOWN) if first else {})
                    | leak_cells(found, attack, UNREAD)
                    | {"void": f"{void} of {len(found)}" if first and void else ""}
                )
        return rows

    def pictures(self, setting: Setting, results: Results, folder: Path) -> list[Picture]:
        drawn = []
        for role in self.roles:
            for cut in dict.fromkeys(cut for cut, _ in ARMS[role]):
                rows = [
                    (f"{named}\n{who}", f"{role}-cut{cut}-{defence}", attack)
                    for defence, named in (("none", "none"), ("proxy", "proxy"))
                    for attack, who in (("live", "study's size"), ("fresh", "fresh, larger"))
                    if f"{role}-cut{cut}-{defence}" in results.arms()
                ]
                path = reconstructed(
                    results,
                    rows,
                    folder / f"reconstructions_{role}_cut{cut}.png",
                    f"ADRA at cut {cut}: held-out {role}",
                )
                if path is not None:
                    caption = (
                        f"Originals over reconstructions at cut {cut}, {role}: by defence and attacker; last the mean "
                        "image, which needs no attack."
                    )
                    drawn.append(Picture(path, caption, images_of=role))
        path = attack_curves(results, "photographs-cut7-none", "live", folder / "losses_decoder.png")
        if path is not None:
            drawn.append(Picture(path, "Loss of the study's decoder, photographs, cut 7."))
        return drawn
