"""``cut-layer``: does it matter to the classifier where a ResNet-34 is cut?

Each cut with every seed, the initial weights drawn part by part as in any run: where the cut lies decides which
weights the server draws and which the clients. And each cut once from one set of weights: then nothing differs but
the cut.
"""

from __future__ import annotations

from typing import Any

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
from suture.studies.experiments.pages.charts import activations_of, losses_by_arm
from suture.studies.experiments.runs.job import Job
from suture.studies.experiments.runs.setting import Setting
from suture.studies.statistics import in_percent, overlaps, shown

CUTS = (1, 2, 3, 5, 7)
_ROLE = "photographs"
_SHOWN = METRICS["classification"]
_DIGEST = "digest of the whole net"


class CutLayer(Experiment):
    """A classifier at five cuts: weights drawn part by part with every seed, and once the same at every cut."""

    name = "cut-layer"
    question = "Does it matter to the classifier where the net is cut?"
    roles = (_ROLE,)

    def jobs(self, setting: Setting) -> list[Job]:
        jobs = [self._job(setting, cut, seed, "drawn part by part") for seed in setting.seeds for cut in CUTS]
        jobs += [self._job(setting, cut, setting.first_seed, "the same at every cut") for cut in CUTS]
        return [*jobs, repeated_with_processes(jobs[CUTS.index(3)])]

    def _job(self, setting: Setting, cut: int, seed: int, start: str) -> Job:
        same = start != "drawn part by part"
        return Job(
            arm=f"cut{cut}-same-start" if same else f"cut{cut}",
            seed=seed,
            options=options(setting, _ROLE, clients=2, seed=seed, cut=str(cut)),
            facts={"cut": cut, "start": start},
            same_start=same,
        )

    def tables(self, setting: Setting, results: Results) -> list[Table]:
        return [self._by_cut(setting, results), self._same_start(setting, results)]

    def _by_cut(self, setting: Setting, results: Results) -> Table:
        rows, arms = [], results.arms()
        for cut in CUTS:
            if f"cut{cut}" not in arms:
                continue
            clients = results.by_client(f"cut{cut}", "accuracy")
            wire = results.of(f"cut{cut}")[0]["summary"]["wire_bytes_per_step"]
            rows.append(
                {
                    "cut": cut,
                    **results.cells(f"cut{cut}", _SHOWN),
                    "accuracy by client": ", ".join(f"{value:.3f}" for value in clients),
                    "MB a step": f"{(wire['up'] + wire['down']) / 1e6:.2f}",
                    "study, by client": in_percent(self.published(str(cut))),
                }
            )
        notes = [
            "Test images that no client trained on; mean over two clients; in brackets: 95 % over seeds.",
            self._twins(results),
            self._overlap(results),
            check_sentence(results),
            *self.differences(),
        ]
        title = f"The cut and the classifier, {scale_of(setting, _ROLE)}"
        return Table(rows, title, notes)

    @staticmethod
    def _twins(results: Results) -> str:
        found = [results.of(f"cut{cut}") for cut in (1, 2, 3)]
        if not all(found) or len({tuple(r["net_sha256"] for r in runs) for runs in found}) != 1:
            return ""
        return (
            "Cuts 1, 2 and 3 leave the same weights with the client (ReLU and pooling have none), so the same seed "
            "draws the same net, and all three end with equal nets, bit for bit, seed by seed."
        )

    def _overlap(self, results: Results) -> str:
        found = [f"cut{cut}" for cut in CUTS if f"cut{cut}" in results.arms()]
        apart = [
            f"{first} and {second}"
            for i, first in enumerate(found)
            for second in found[i + 1 :]
            if not overlaps(results.values(first, "auroc"), results.values(second, "auroc"))
        ]
        if not apart:
            return "The AUROC intervals of all cuts overlap: these runs do not tell one cut's accuracy from another's."
        return f"The AUROC intervals of {', '.join(apart)} do not overlap, those of all other pairs do."

    def _same_start(self, setting: Setting, results: Results) -> Table:
        rows: list[dict[str, object]] = []
        for cut in CUTS:
            found = results.of(f"cut{cut}-same-start")
            if found:
                arm = f"cut{cut}-same-start"
                rows.append(
                    {"cut": cut}
                    | results.cells(arm, _SHOWN)
                    | {"test loss": shown(results.values(arm, "loss")), _DIGEST: found[0]["net_sha256"][:16]}
                )
        digests = {row[_DIGEST] for row in rows}
        note = (
            "From equal weights every cut ends with the same net, bit for bit: where the net is cut changes nothing "
            "of what is learnt, only who draws which initial weights, what crosses the wire and what it shows."
            if len(digests) == 1 and len(rows) > 1
            else f"The nets differ: {len(digests)} digests over {len(rows)} cuts."
        )
        title = (
            f"The same initial weights at every cut, seed {setting.first_seed}, {scale_of(setting, _ROLE)}"
        )
        return Table(rows, title, [note])

    def pictures(self, setting: Setting, results: Results, folder: Any) -> list[Picture]:
        arms = [f"cut{cut}" for cut in CUTS if f"cut{cut}" in results.arms()]
        drawn = [
            Picture(
                losses_by_arm(results, arms, folder / "losses.png"),
                "Training loss of the clients as the cut varies: by round, mean over seeds.",
            )
        ]
        for cut in (3, 7):
            path = activations_of(results, f"cut{cut}", folder / f"activations_cut{cut}.png")
            if path is not None:
                drawn.append(
                    Picture(
                        path,
                        f"Successive activations of client0's bottom at cut {cut}, one test image.",
                        images_of=_ROLE,
                    )
                )
        return drawn
