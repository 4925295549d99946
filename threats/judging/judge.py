"""The judge: the only module that sees truth and reconstruction, after the run and in a process of its own.

It rebuilds from data and key which image every batch held, pairs that with what the attack left on the disk,
and scores the pairs. Nothing flows back: the run has ended and the judge writes only verdicts and pictures.

Rules of judging kept here: disjoint sets asserted by content (1), held-out and in-training leakage apart and
never the attacker's own images (1), the mean image beside every number (3), one metrics module (4), per-image
median and worst tenth (7), controls (9).

Shape legend: N images; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from suture.runtime.data.normalise import Normalisation, denormalise
from suture.runtime.data.source import Task
from suture.runtime.errors import DataError
from suture.threats.attacks.auxiliary import Auxiliary, content_hashes
from suture.threats.attacks.live import NOT_JUDGED, ReconstructionAttack, reconstruction_path
from suture.threats.judging.metrics import class_means, mean_image, score
from suture.threats.judging.reader import read_with, train_reader
from suture.threats.judging.replayed_client import ReplayedClient

KINDS = ("held_out", "train", "test")


@dataclass
class Pairs:
    """Truth beside reconstruction, image for image: x_NCHW in [0, 1]; ``labels`` y_N, None for masks."""

    truth: Tensor
    rebuilt: Tensor
    labels: Tensor | None


@dataclass
class Verdict:
    """What the judge found.

    Attributes:
        scores: by kind of image ("held_out", "train", "test"), then by row ("attack", "mean image", ...).
        overlaps: images that two of the four sets share, by pair of sets; all zero or the judge refuses.
        chosen_round: the round that the attacker chose by evidence of its own, and that is judged.
        by_round: held-out MSE of every round that left reconstructions.
        pairs: for the figure, by client: of the judged round.
        mean: the mean auxiliary image, (1, C, H, W).
    """

    scores: dict[str, dict[str, dict[str, float]]]
    overlaps: dict[str, int]
    chosen_round: int
    by_round: dict[int, float]
    pairs: dict[str, dict[int, Pairs]] = field(default_factory=dict)
    mean: Tensor = field(default_factory=lambda: torch.zeros(1))

    def summary(self) -> dict[str, Any]:
        """Plain values for RUN/summary.json."""
        return {
            "chosen_round": self.chosen_round,
            "scores": self.scores,
            "held_out_mse_by_round": {str(number): value for number, value in self.by_round.items()},
            "overlaps": self.overlaps,
        }


def judge(
    folder: Path,
    witnesses: Sequence[ReplayedClient],
    auxiliary: Auxiliary,
    *,
    normalisation: Normalisation,
    chosen_round: int = 0,
    leaked: bool = False,
    attack: ReconstructionAttack | None = None,
    untrained: nn.Module | None = None,
) -> Verdict:
    """Scores what an attack left in ``folder``.

    Args:
        folder: RUN/attack, with reconstructions by round.
        witnesses: every client.
        auxiliary: what the attacker owned; its mean image is what no smashed data give.
        normalisation: of the images, undone.
        chosen_round: the attacker's choice; 0 for the newest round.
        leaked: the threat model hands private training images over: these may overlap with client-train, and
            what was handed over is not judged.
        attack: with its final nets, for the control of the untrained client; None to leave that out.
        untrained: the bottom before training.

    Raises:
        DataError: sets overlap, or there is nothing to judge.
    """
    overlaps = check_four_sets(witnesses, auxiliary, leaked=leaked)
    rounds = sorted(int(path.name.removeprefix("round_")) for path in folder.glob("round_*"))
    if not rounds:
        raise DataError(f"{folder} holds no reconstructions; was the run attacked, and did it evaluate?")
    chosen = chosen_round if chosen_round in rounds else rounds[-1]
    mean = mean_image(auxiliary.unit())
    scores: dict[str, dict[str, dict[str, float]]] = {}
    shown: dict[str, Pairs] = {}
    readable = auxiliary.labels is not None and witnesses[0].data.task is Task.CLASSIFICATION
    reader = train_reader(auxiliary) if readable else None
    handed_over = set(content_hashes(auxiliary.images)) if leaked else set()
    for kind in KINDS:
        found = {w.name: collect(folder, w, kind, chosen, normalisation, handed_over) for w in witnesses}
        present = {name: pairs for name, pairs in found.items() if pairs is not None}
        if present:
            scores[kind] = _score_rows(_joined(list(present.values())), auxiliary, reader)
        if kind == "held_out" or not shown:
            shown = present
    if not scores:
        raise DataError(
            f"{folder}/round_{chosen:04d} fits no image of the clients; judge with the run's own key"
        )
    if attack is not None and untrained is not None:
        _score_untrained(scores, attack, untrained, witnesses, normalisation)
    pairs: dict[str, dict[int, Pairs]] = {name: {} for name in shown}
    by_round = {}
    kind = "held_out" if "held_out" in scores else "test"
    for number in rounds:
        every = {w.name: collect(folder, w, kind, number, normalisation, handed_over) for w in witnesses}
        present = {name: own for name, own in every.items() if own is not None}
        if present:
            joined = _joined(list(present.values()))
            by_round[number] = float((joined.truth - joined.rebuilt).square().mean())
            for name, own in present.items():
                pairs.setdefault(name, {})[number] = own
    return Verdict(scores, overlaps, chosen, by_round, pairs, mean)


def judge_labels(
    folder: Path, witnesses: Sequence[ReplayedClient], auxiliary: Auxiliary | None, *, chosen_round: int
) -> dict[str, Any]:
    """Scores guessed labels: the share guessed rightly, beside the commonest class and a shuffle.

    What the attacker knew, `NOT_JUDGED` in its guesses, does not count.

    Raises:
        DataError: sets overlap, or there is nothing to judge.
    """
    overlaps = check_four_sets(witnesses, auxiliary)
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for kind in KINDS:
        guessed, true = [], []
        for replayed in witnesses:
            trained = kind == "train"
            every = enumerate(replayed.train_batches(chosen_round)) if trained else replayed.evaluated(kind)
            for number, batch in every:
                phase = "train" if trained else "test"
                path = reconstruction_path(folder, chosen_round, replayed.name, phase, number)
                if path.exists():
                    guessed.append(torch.from_numpy(np.load(path)))
                    true.append(batch.targets)
        g, y = torch.cat([torch.empty(0), *guessed]), torch.cat([torch.empty(0, dtype=torch.int64), *true])
        g, y = g[g != NOT_JUDGED], y[g != NOT_JUDGED]
        if not len(y):
            continue
        commonest = float(torch.bincount(y).max()) / len(y)
        rows = {"attack": float((g == y).float().mean()), "commonest class": commonest}
        rows["shuffled"] = float((g.roll(1) == y).float().mean())
        scores[kind] = {name: {"guessed": value, "num_images": len(y)} for name, value in rows.items()}
    if not scores:
        raise DataError(f"{folder} holds no guesses; was the run attacked, and did it evaluate?")
    return {"chosen_round": chosen_round, "scores": scores, "overlaps": overlaps}


def check_four_sets(
    witnesses: Sequence[ReplayedClient], auxiliary: Auxiliary | None, *, leaked: bool = False
) -> dict[str, int]:
    """Asserts by content that client-train, client-held-out, auxiliary and task-test are disjoint (rule 1).

    Returns:
        The number of images that each pair of sets shares.

    Raises:
        DataError: one that must be zero is not.
    """
    sets: dict[str, set[bytes]] = {}
    if auxiliary is not None:
        sets["attacker-auxiliary"] = set(content_hashes(auxiliary.images))
    for name, split in (("client-train", "train"), ("client-held-out", "held_out"), ("task-test", "test")):
        hashes: set[bytes] = set()
        for replayed in witnesses:
            hashes |= set(content_hashes(replayed.data.pixels(split)))  # type: ignore[arg-type]
        sets[name] = hashes
    names, overlaps = list(sets), {}
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = len(sets[first] & sets[second])
            overlaps[f"{first} and {second}"] = shared
            allowed = leaked and {first, second} == {"attacker-auxiliary", "client-train"}
            if shared and not allowed:
                raise DataError(
                    f"{first} and {second} share {shared} images by content; the figures would be void"
                )
    return overlaps


def collect(
    folder: Path,
    replayed: ReplayedClient,
    kind: str,
    round: int,
    normalisation: Normalisation,
    without: set[bytes],
) -> Pairs | None:
    """One client's pairs of one round, None where the attack left none.

    Raises:
        DataError: a reconstruction has another shape than the images of its batch.
    """
    in_training = kind == "train"
    batches = list(enumerate(replayed.train_batches(round))) if in_training else replayed.evaluated(kind)
    phase = "train" if kind == "train" else "test"
    truths, rebuilts, labels = [], [], []
    pixels = replayed.data.pixels("train")
    rows = {key: row for row, key in enumerate(replayed.data.share.train)}
    for number, batch in batches:
        path = reconstruction_path(folder, round, replayed.name, phase, number)
        if not path.exists():
            continue
        rebuilt = torch.from_numpy(np.load(path)).float().div(255)
        truth = denormalise(batch.inputs, normalisation)
        if rebuilt.shape != truth.shape:
            raise DataError(
                f"{path}: expected {tuple(truth.shape)} as the batch has it, got {tuple(rebuilt.shape)}"
            )
        keep = torch.ones(len(truth), dtype=torch.bool)
        if kind == "train" and without:
            keys = content_hashes(pixels[[rows[key] for key in batch.keys]])
            keep = torch.tensor([digest not in without for digest in keys])
        truths.append(truth[keep])
        rebuilts.append(rebuilt[keep])
        labels.append(batch.targets[keep])
    if not truths or not sum(len(part) for part in truths):
        return None
    targets = torch.cat(labels)
    return Pairs(torch.cat(truths), torch.cat(rebuilts), targets if targets.ndim == 1 else None)


def _joined(found: Sequence[Pairs]) -> Pairs:
    labels = [pairs.labels for pairs in found if pairs.labels is not None]
    return Pairs(
        torch.cat([pairs.truth for pairs in found]),
        torch.cat([pairs.rebuilt for pairs in found]),
        torch.cat(labels) if len(labels) == len(found) else None,
    )


def _score_rows(pairs: Pairs, auxiliary: Auxiliary, reader: nn.Module | None) -> dict[str, dict[str, float]]:
    """The attack's row and what stands beside it; ``chance`` of re-identification in each."""
    mean = mean_image(auxiliary.unit()).float().expand_as(pairs.truth)
    # The shuffled control: the answer to somebody else's smashed data. Every net here answers image by image,
    # so shuffling what went in is shuffling what came out.
    rows = {"attack": pairs.rebuilt, "mean image": mean, "shuffled": pairs.rebuilt.roll(1, 0)}
    if pairs.labels is not None and auxiliary.labels is not None:
        rows["class mean"] = class_means(auxiliary.unit(), auxiliary.labels, pairs.labels).float()
    scored = {name: scores_of(images, pairs.truth) for name, images in rows.items()}
    if pairs.labels is not None and reader is not None:
        for name, images in rows.items():
            scored[name]["read"] = read_with(reader, images, pairs.labels)
        scored["truth"] = {"read": read_with(reader, pairs.truth, pairs.labels)}
    return scored


def scores_of(rebuilt: Tensor, truth: Tensor) -> dict[str, float]:
    """All of ``metrics.score`` as plain numbers, with the chance of re-identification."""
    found = score(rebuilt, truth)
    values = {name: float(value) for name, value in dataclasses.asdict(found).items()}
    return values | {"chance": found.chance, "num_images": len(truth)}


@torch.no_grad()
def _score_untrained(
    scores: dict[str, dict[str, dict[str, float]]],
    attack: ReconstructionAttack,
    untrained: nn.Module,
    witnesses: Sequence[ReplayedClient],
    normalisation: Normalisation,
) -> None:
    """Adds the row "untrained client": the same attack, fed with a bottom as it was before training."""
    kind = "held_out" if "held_out" in scores else "test"
    untrained.eval()
    truths, rebuilts = [], []
    for replayed in witnesses:
        for _, batch in replayed.evaluated(kind):
            truths.append(denormalise(batch.inputs, normalisation))
            rebuilts.append(attack.reconstruct(untrained(batch.inputs)[0]).cpu())
    if truths:
        scores[kind]["untrained client"] = scores_of(torch.cat(rebuilts).clamp(0, 1), torch.cat(truths))
