"""``fsha``: what is distance correlation worth against a server that hijacks the client, and knows of it?

Three attacked arms: without defence; with distance correlation and the attack as published; with it and the
adaptive server, which scales the gradient that it sends so that it outweighs the defence's. Two honest arms say what
the defence costs the classifier: under FSHA no classifier is learnt at all.
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
from suture.studies.experiments.pages.leaks import leak_cells, leak_facts, nothing_known
from suture.studies.experiments.runs.job import Job
from suture.studies.experiments.runs.setting import Setting

ALPHA, SCALE = 100, 50
_ROLE = "digits"
_SHOWN = METRICS["classification"]
_DEFENCE = f"dcor:alpha={ALPHA}"
ARMS: dict[str, tuple[str, bool, str]] = {
    "honest": ("none", False, ""),
    "honest-dcor": (_DEFENCE, False, ""),
    "fsha": ("none", True, "as published"),
    "fsha-dcor": (_DEFENCE, True, "as published"),
    "fsha-dcor-adaptive": (_DEFENCE, True, f"adaptive: gradient times {SCALE}"),
}
"""Defence, whether the server attacks, and how, by arm."""


class Fsha(Experiment):
    """FSHA with and without distance correlation, by a server that knows of it and by one that does not."""

    name = "fsha"
    question = "What is distance correlation worth against a server that hijacks the client?"
    roles = (_ROLE,)

    def jobs(self, setting: Setting) -> list[Job]:
        jobs = [self._job(setting, arm, seed) for seed in setting.seeds for arm in ARMS]
        return [*jobs, repeated_with_processes(jobs[list(ARMS).index("fsha")])]

    def _job(self, setting: Setting, arm: str, seed: int) -> Job:
        defence, attacked, how = ARMS[arm]
        images = setting.sizes[_ROLE].aux_images
        quick = ",pretrain=20" if setting.scale == "smoke" else ""
        spec = f"fsha:aux_images={images}{quick}" + (f",scale={SCALE}" if "adaptive" in arm else "")
        return Job(
            arm=arm,
            seed=seed,
            options=options(
                setting,
                _ROLE,
                clients=2,
                seed=seed,
                cut="4",
                augment="none",
                lr=5e-4,
                defence=None if defence == "none" else defence,
                attack=spec if attacked else None,
            ),
            facts={"defence": defence, "attacker": how or "honest server"},
            read=True,
        )

    def facts(self, job: Job, result: Any) -> dict[str, Any]:
        found = super().facts(job, result)
        return found | (leak_facts(result, "live") if job.options.attack else {})

    def tables(self, setting: Setting, results: Results) -> list[Table]:
        rows = []
        for arm, (defence, attacked, how) in ARMS.items():
            if arm not in results.arms():
                continue
            rows.append(
                {"defence": defence, "server": how or "honest server"}
                | results.cells(arm, _SHOWN)
                | leak_cells(results.of(arm) if attacked else [], "live")
            )
        notes = [
            "ResNet-18 cut 4, two clients. Leakage is of held-out digits that nobody trained on; the classifier's "
            "figures are of test digits. Under FSHA the server teaches no classifier: the clients see their accuracy "
            "at chance, and what the defence costs is read from the honest rows.",
            nothing_known(results.of("fsha"), "live") if "fsha" in results.arms() else "",
            self._cost(results),
            check_sentence(results),
            "The study showed pictures of FSHA with and without distance correlation, without a figure to compare "
            "with and without an attacker that knows of the defence.",
        ]
        title = f"FSHA against distance correlation, {scale_of(setting, _ROLE)}"
        return [Table(rows, title, notes)]

    def _cost(self, results: Results) -> str:
        if not {"honest", "honest-dcor"} <= set(results.arms()):
            return ""
        lost = [is_void(result["summary"]) for result in results.of("honest-dcor")]
        if not any(lost):
            return ""
        return (
            f"Void: with {_DEFENCE} the classifier is at most two points above the majority class in {sum(lost)} of "
            f"{len(lost)} honest runs; what such a defence hides is no merit."
        )

    def pictures(self, setting: Setting, results: Results, folder: Path) -> list[Picture]:
        drawn = []
        attacked = {arm: text for arm, (defence, is_attacked, text) in ARMS.items() if is_attacked}
        rows = [
            (f"{ARMS[arm][0]}\n{how.partition(':')[0]}", arm, "live")
            for arm, how in attacked.items()
            if arm in results.arms()
        ]
        path = reconstructed(results, rows, folder / "reconstructions.png", "FSHA: held-out digits, seed 0")
        if path is not None:
            caption = (
                "Originals over what the server rebuilt: without defence, with distance correlation, and with it "
                "against the adaptive server; last the mean image, which needs no attack."
            )
            drawn.append(Picture(path, caption, images_of=_ROLE))
        for arm in attacked:
            curves = attack_curves(results, arm, "live", folder / f"losses_{arm}.png")
            if curves is not None:
                drawn.append(Picture(curves, f"Losses of the attack's nets, {ARMS[arm][0]}, {ARMS[arm][2]}."))
        return drawn
