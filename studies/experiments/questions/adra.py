"""``adra``: what does a passive server rebuild at cut 3 and at cut 7, and what is a proxy adversary worth?

A decoder of the study's size attacks every run while it trains; then a fresh, larger one, trained longer, attacks
the recording of the same run: what holds against the first alone is no defence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from suture.studies.experiments.engine.job import Job
from suture.studies.experiments.engine.setting import Setting
from suture.studies.experiments.engine.sizes import Scale, Sizes
from suture.studies.experiments.experiment import (
    METRICS,
    Experiment,
    Picture,
    Results,
    check_sentence,
    headings,
    is_void,
    options,
    repeated_with_processes,
    scale_of,
)
from suture.studies.experiments.pages.charts import attack_curves, reconstructed
from suture.studies.experiments.pages.leaks import (
    UNREAD,
    leak_cells,
    leak_facts,
    leak_headings,
    nothing_known,
)
from suture.studies.experiments.pages.study import differences
from suture.studies.table import Table

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
    """Plans runs with and without a proxy adversary, attacked twice, and says how much each attack rebuilt."""

    name = "adra"
    question = (
        "What does a passive server rebuild, and what is a proxy adversary worth against a fresh attacker?"
    )
    roles = ("photographs", "digits")

    def sizes(self, scale: Scale, effort: int) -> dict[str, Sizes]:
        if scale == "smoke":
            small = Sizes(
                model="resnet18",
                image_size=32,
                train_images=16,
                test_images=8,
                rounds=2,
                batch_size=8,
                held_out_images=8,
                aux_images=16,
                decoder_epochs=2,
            )
            return dict.fromkeys(self.roles, small)
        full = scale == "full"
        return {
            "photographs": Sizes(
                model="resnet34",
                image_size=224 if full else 64,
                train_images=1000 if full else 200,
                test_images=200 if full else 64,
                rounds=20 if full else 2 * effort,
                batch_size=32 if full else 20,
                held_out_images=100 if full else 40,
                aux_images=1000 if full else 140,
                decoder_epochs=20 if full else 30,
            ),
            "digits": Sizes(
                model="resnet34",
                image_size=32,
                train_images=600,
                test_images=200,
                rounds=20 if full else 2 * effort,
                batch_size=25,
                held_out_images=100,
                aux_images=2000 if full else 1000,
                decoder_epochs=20 if full else 10,
            ),
        }

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
                augment=role == "photographs",
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
        rows = []
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
            *differences(self.name),
        ]
        title = f"ADRA against a proxy adversary, {scale_of(setting, role)}"
        heads = ["cut", "defence", "attacker", *headings(_SHOWN), *leak_headings(UNREAD), "void"]
        return Table(title, heads, rows, [note for note in notes if note])

    @staticmethod
    def _rows(results: Results, arm: str, cut: str, defence: str) -> list[list[str]]:
        found = results.of(arm)
        void = sum(is_void(result["summary"]) for result in found)
        rows = []
        for attack, who in ATTACKERS.items():
            if any(leak_facts(result, attack) for result in found):
                first = attack == "live"
                utility = results.cells(arm, _SHOWN) if first else [""] * len(_SHOWN)
                told = f"{void} of {len(found)}" if first and void else ""
                rows.append([cut, defence, who, *utility, *leak_cells(found, attack, UNREAD), told])
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
