"""``exchanges``: does the way over the wire change what is learnt? The digests of whole runs, by real processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from suture.studies.experiments.engine.job import Job
from suture.studies.experiments.engine.setting import Setting
from suture.studies.experiments.engine.sizes import Scale, Sizes
from suture.studies.experiments.experiment import (
    Experiment,
    Picture,
    Results,
    check_sentence,
    options,
    scale_of,
)
from suture.studies.table import Table

_ROLES = ("photographs", "lungs")
_EXCHANGES = ("autograd", "fused", "local")


class Exchanges(Experiment):
    """Plans one run for every exchange and compares the digests of their weights."""

    name = "exchanges"
    question = "Do all exchanges end with the same weights, bit for bit?"
    roles = _ROLES
    default_seeds = 1

    def sizes(self, scale: Scale, effort: int) -> dict[str, Sizes]:
        pixels = {"full": (224, 256), "laptop": (64, 64)}.get(scale, (32, 32))
        images, rounds = (1000, 20) if scale == "full" else (40, effort) if scale == "laptop" else (16, 1)
        return {
            "photographs": Sizes(
                model="resnet34" if scale != "smoke" else "resnet18",
                image_size=pixels[0],
                train_images=images,
                test_images=16 if scale != "full" else 200,
                rounds=rounds,
                batch_size=10,
            ),
            "lungs": Sizes(
                model="unet",
                image_size=pixels[1],
                train_images=20 if scale != "full" else 280,
                test_images=4 if scale != "full" else 70,
                rounds=rounds,
                batch_size=4,
                width=8 if scale != "full" else 64,
            ),
        }

    def jobs(self, setting: Setting) -> list[Job]:
        jobs = []
        for role in _ROLES:
            cut = "3" if role == "photographs" else "2"
            for seed in setting.seeds:
                plain = Job(
                    arm=f"{role}-{_EXCHANGES[0]}",
                    seed=seed,
                    options=replace(
                        options(setting, role, clients=2, seed=seed, cut=cut), exchange=_EXCHANGES[0]
                    ),
                    facts={"data": role, "exchange": _EXCHANGES[0]},
                )
                jobs.append(plain)
                jobs += [
                    replace(
                        plain,
                        arm=f"{role}-{exchange}",
                        options=replace(plain.options, exchange=exchange),
                        facts={"data": role, "exchange": exchange},
                        same_weights_as=plain.name,
                    )
                    for exchange in _EXCHANGES[1:]
                ]
        return jobs

    def tables(self, setting: Setting, results: Results) -> list[Table]:
        tables = []
        for role in _ROLES:
            rows = [
                [
                    job.options.exchange,
                    str(job.seed),
                    f"{results.result(job)['summary']['images_per_second']:.0f}",
                    results.result(job)["summary"]["weights_sha256"],
                ]
                for job in results.jobs
                if job.facts["data"] == role
            ]
            title = f"The same run over every exchange, {scale_of(setting, role)}"
            notes = ["Speeds are of runs side by side, one thread each: no benchmark."]
            if role == _ROLES[-1]:
                notes.append(check_sentence(results))
            tables.append(Table(title, ["exchange", "seed", "images/s", "weights_sha256"], rows, notes))
        return tables

    def pictures(self, setting: Setting, results: Results, folder: Path) -> list[Picture]:
        return []
