"""One point of an audit: train with a defence, attack what crossed the wire twice, judge both attackers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import suture.models.registry as nets
from suture.launch import build
from suture.launch.lab import lab
from suture.launch.lab.judging import build_witnesses
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.roles.one_process import play_locally
from suture.runtime.data.source import Task
from suture.runtime.errors import ConfigError
from suture.runtime.hooks import Attack, SmashedBatch
from suture.runtime.records.observers import NoRecorder
from suture.runtime.server.model import ServerModel
from suture.runtime.state.handoff import parse_key
from suture.studies.audit.pictures import keep_samples
from suture.studies.audit.plan import Point
from suture.studies.audit.report import has_converged, is_void
from suture.threats.attacks.auxiliary import Auxiliary
from suture.threats.attacks.live import ReconstructionAttack
from suture.threats.judging.judge import judge

ATTACKERS: dict[str, tuple[int, str]] = {
    "static": (150, ""),
    "adaptive": (150, ",width=2,blocks=1,average=3"),
}
"""Hard budget of passes and further parameters of ADRA by attacker; both train until they no longer gain. Both own
auxiliary images, may pass them through a client's bottom (with its defence on) and train a fresh decoder on the pairs.
The static one is as it would be without any defence; the adaptive one has twice the width, a residual block, and
averages the last three rounds' passes against noise."""


CONTROL = "shuffled pairs"
"""As the adaptive attacker, on pairs that do not belong together: what it reaches, smashed data had no part in."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """What the attackers have.

    Attributes:
        aux_images: images of their own.
        effort: how many times the budget of ``ATTACKERS`` they train their decoders.
    """

    aux_images: int = 500
    effort: int = 1

    def __post_init__(self) -> None:
        for name, least in (("aux_images", 2), ("effort", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}"
                )

    def parameters(self) -> dict[str, str]:
        """ADRA's parameters by attacker, but for its images."""
        return {
            name: f"epochs={self.effort * epochs}{further}" for name, (epochs, further) in ATTACKERS.items()
        }


class RoundScores(NoRecorder):
    """Keeps the clients' test metric, their mean by round.

    Args:
        metric: its name.
    """

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._found: dict[int, list[float]] = {}

    def scores(
        self, step: int, round: int, turn: int, client: str, phase: str, scores: Mapping[str, float]
    ) -> None:
        if phase == "test":
            self._found.setdefault(round, []).append(float(scores[self._metric]))

    def by_round(self) -> list[float]:
        """From the first scored round."""
        return [_mean(self._found[round]) for round in sorted(self._found)]


class Panel(Attack):
    """Several passive attackers at one wire; none is told of the others.

    Args:
        attackers: by name.
    """

    def __init__(self, attackers: Mapping[str, ReconstructionAttack]) -> None:
        self.attackers = dict(attackers)

    def prepare(self) -> None:
        for attacker in self.attackers.values():
            attacker.prepare()

    def observe(self, batch: SmashedBatch) -> None:
        for attacker in self.attackers.values():
            attacker.observe(batch)

    def loss(self, batch: SmashedBatch, task_loss: Tensor) -> Tensor:
        return task_loss

    def received(self, batch: SmashedBatch, gradient: Tensor) -> None:
        for attacker in self.attackers.values():
            attacker.received(batch, gradient)

    def finish(self) -> None:
        for attacker in self.attackers.values():
            attacker.finish()


def options_of(point: Point, base: AskedOptions, means: Means, attacker: str) -> RunOptions:
    """The options of a point's run under one of ``ATTACKERS``, or under ``CONTROL``."""
    shuffled = attacker == CONTROL
    parameters = means.parameters()["adaptive" if shuffled else attacker] + (
        ",shuffled=on" if shuffled else ""
    )
    return replace(
        base,
        cut=point.cut,
        defence=None if point.defence == "none" else point.defence,
        seed=point.seed,
        attack=f"adra:origin=query,aux_images={means.aux_images},{parameters}",
        exchange="local",
    ).resolved()


def run_point(point: Point, base: AskedOptions, means: Means, key_text: str, samples: Path) -> dict[str, Any]:
    """Trains, attacks and judges; returns plain values.

    Args:
        base: options of every run of the audit.
        means: of the attackers.
        key_text: the clients' key (hex).
        samples: NPZ to write, a few reconstructions for the pictures.

    Raises:
        SutureError: the run, an attack or the judge failed.
    """
    begun, key = time.monotonic(), parse_key(key_text, "the audit's key")
    every = {name: options_of(point, base, means, name) for name in (*ATTACKERS, CONTROL)}
    # The most patient attacker says from which round its images are passed through the bottom.
    options = min(every.values(), key=lambda o: o.first_query_round())
    auxiliary = lab.build_auxiliary(options)
    assert auxiliary is not None
    attackers: dict[str, ReconstructionAttack] = {}
    with TemporaryDirectory(prefix="suture-audit-") as folder:
        run_dir = Path(folder)

        def arm(server: ServerModel, num_classes: int) -> None:
            for name, own in every.items():
                attack = lab.build_attack(own, server.top, num_classes, run_dir / name)
                assert isinstance(attack, ReconstructionAttack)
                attackers[name] = attack
            server.attack = Panel(attackers)

        metric_name = "accuracy" if nets.model_entry(options.model).task == "classification" else "dice"
        curve = RoundScores(metric_name)
        coordinator = play_locally(options, key, run_dir, arm=arm, recorder=curve)
        trained = time.monotonic() - begun
        witnesses = build_witnesses(options, key)
        # Without labels the judge trains no reader: an audit's question is the image, not what it shows.
        owned = Auxiliary(auxiliary.images, None, auxiliary.mirror, auxiliary.origin)
        split = build.build_split(options, len(witnesses[0].data.classes), key)
        normalisation = nets.model_entry(options.model).normalisation
        verdicts = {
            name: judge(
                run_dir / name,
                witnesses,
                owned,
                normalisation=normalisation,
                attack=attack,
                untrained=split.bottom,
            )
            for name, attack in attackers.items()
        }
        control = verdicts.pop(CONTROL)
        for kind, rows in verdicts["adaptive"].scores.items():
            rows[CONTROL] = control.scores[kind]["attack"]
        keep_samples(samples, verdicts)
        scores = coordinator.run_state.scores
    metric = _mean([float(client["test"][metric_name]) for client in scores.values()])
    majority = None
    if witnesses[0].data.task is Task.CLASSIFICATION:
        majority = _mean([replayed.data.majority_share("test") for replayed in witnesses])
    return {
        "cut": point.cut,
        "family": point.family,
        "defence": point.defence,
        "rank": point.rank,
        "seed": point.seed,
        "key": hashlib.sha256(key).hexdigest()[:16],
        "metric_name": metric_name,
        "metric": metric,
        "metric_by_round": curve.by_round(),
        "majority": majority,
        "void": is_void(metric, majority) or not has_converged(curve.by_round()),
        "attackers": {
            name: {
                "scores": verdict.scores,
                "stopped": attackers[name].stopped,
                "steps": attackers[name].steps,
                "learning": attackers[name].learning.summary(),
                "cpu_seconds": attackers[name].cpu_seconds,
            }
            for name, verdict in verdicts.items()
        },
        "weights_sha256": coordinator.weights_sha256(),
        "train_seconds": trained,
        "seconds": time.monotonic() - begun,
    }


def _mean(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())
