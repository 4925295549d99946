"""``suture bench detectors``: how often each detector gives alarm on honest servers and on FSHA.

Thresholds are the detectors' defaults, fixed before; seeds are other ones than those they were chosen on. Both
detectors watch one run (rule 8 of judging: closed loop, over other honest runs, with the delay).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from suture.launch.host.cores import ready_torch
from suture.launch.options.options import AskedOptions
from suture.launch.output.table import Table
from suture.runtime.hooks import Detector
from suture.studies.bench.rigs.rig import Rig, over
from suture.threats.client_view import ClientView
from suture.threats.registry import DETECTORS

_MOST_IMAGES = 640
ATTACK = "fsha:aux_images=500,pretrain=100"


class Watchers(Detector):
    """Several detectors on one gradient; the one that sends fake batches does so for all."""

    def __init__(self, detectors: dict[str, Detector]) -> None:
        self.detectors = detectors
        self._fake = False

    def fake_labels(self, labels: Tensor, num_before: int, generator: torch.Generator) -> Tensor | None:
        """The first that wants one."""
        asked = (d.fake_labels(labels, num_before, generator) for d in self.detectors.values())
        fake = next((wrong for wrong in list(asked) if wrong is not None), None)
        self._fake = fake is not None
        return fake

    def observe(self, smashed: Tensor, grad: Tensor, labels: Tensor) -> None:
        """All; but a fake batch only those that asked for fakes, for others its labels are a lie."""
        for detector in self.detectors.values():
            if not self._fake or type(detector).fake_labels is not Detector.fake_labels:
                detector.observe(smashed, grad, labels)


@dataclass(frozen=True)
class Watched:
    """One run: the step of each detector's alarm (None for none) and its highest score after warm-up."""

    seed: int
    alarms: dict[str, int | None]
    scores: dict[str, float]


def default_options() -> AskedOptions:
    """A small run without files: drawn fundus photographs, ResNet-18 cut at layer1."""
    return AskedOptions(
        data="fundus-phantom",
        model="resnet18",
        cut="4",
        image_size=32,
        batch_size=16,
        clients=1,
        exchange="local",
        held_out_images=0,
    )


def watch(options: AskedOptions, seed: int, attack: str | None, num_steps: int) -> Watched:
    """One run of ``num_steps`` batches under all detectors."""
    batch_size = options.batch_size or 16
    run = replace(
        options,
        seed=seed,
        attack=attack,
        clients=1,
        train_images=min(num_steps * batch_size, _MOST_IMAGES),
        validation_images=0,
        test_images=4,
        epochs=1,
    ).resolved()
    alarms: dict[str, int | None] = dict.fromkeys(DETECTORS)
    with tempfile.TemporaryDirectory(prefix="suture-detectors-") as folder:
        rig = Rig(run, Path(folder))
        view = ClientView(
            images=(3, run.image_size, run.image_size),
            smashed=rig.server.smashed.shape,
            normalisation="imagenet",
            task="classification",
            num_classes=len(rig.client.model.data.classes),
            labels_shared=True,
        )
        detectors = {name: entry.plugin(entry.config(), view) for name, entry in DETECTORS.items()}
        rig.client.model.detector = Watchers(detectors)
        for step in range(1, num_steps + 1):
            rig.step()
            for name, detector in detectors.items():
                if alarms[name] is None and detector.alarm():
                    alarms[name] = step
    return Watched(seed, alarms, {name: detector.score() for name, detector in detectors.items()})


def run_command(options: AskedOptions, num_steps: int, honest: int, hostile: int) -> None:
    """``suture bench detectors``."""
    options = over(default_options(), options)
    ready_torch(options)
    runs: list[tuple[int, str | None]] = [(seed, None) for seed in range(options.seed, options.seed + honest)]
    runs += [(seed, ATTACK) for seed in range(options.seed, options.seed + hostile)]
    found: dict[str, list[Watched]] = {"honest": [], "fsha": []}
    for number, (seed, attack) in enumerate(runs, 1):
        kind = "honest" if attack is None else "fsha"
        result = watch(options, seed, attack, num_steps)
        found[kind].append(result)
        told = ", ".join(
            f"{name} {'alarm at step ' + str(step) if step else 'silent'} (score {result.scores[name]:.2f})"
            for name, step in result.alarms.items()
        )
        print(f"[{number}/{len(runs)}] {kind}, seed {seed}: {told}", flush=True)
    rows = []
    for name in DETECTORS:
        rates = {
            kind: f"{sum(r.alarms[name] is not None for r in results)} of {len(results)}"
            for kind, results in found.items()
        }
        delays = [str(r.alarms[name]) for r in found["fsha"] if r.alarms[name] is not None]
        rows.append(
            {
                "detector": name,
                "honest runs with alarm": rates["honest"],
                "FSHA runs with alarm": rates["fsha"],
                "batches until the alarm (FSHA)": ", ".join(delays) or "-",
            }
        )
    Table(rows, f"alarms within {num_steps} batches, thresholds as shipped").print()
