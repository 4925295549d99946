"""``exchanges``: does the way over the wire change what is learnt? The digests of whole runs, by real processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from suture.launch.output.table import Table
from suture.studies.experiments.experiment import (
    Experiment,
    Picture,
    Results,
    check_sentence,
    options,
    scale_of,
)
from suture.studies.experiments.runs.job import Job
from suture.studies.experiments.runs.setting import Setting

_ROLES = ("photographs", "lungs")
_EXCHANGES = ("autograd", "fused", "local")


class Exchanges(Experiment):
    """A classifier and a U-Net, each over every exchange."""

    name = "exchanges"
    question = "Do all exchanges end with the same weights, bit for bit?"
    roles = _ROLES
    default_seeds = 1

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
                {
                    "exchange": job.options.exchange,
                    "seed": job.seed,
                    "images/s": f"{results.result(job)['summary']['images_per_second']:.0f}",
                    "weights_sha256": results.result(job)["summary"]["weights_sha256"],
                }
                for job in results.jobs
                if job.facts["data"] == role
            ]
            title = f"The same run over every exchange, {scale_of(setting, role)}"
            notes = ["Speeds are of runs side by side, one thread each: no benchmark."]
            if role == _ROLES[-1]:
                notes.append(check_sentence(results))
            tables.append(Table(rows, title, notes))
        return tables

    def pictures(self, setting: Setting, results: Results, folder: Path) -> list[Picture]:
        return []
