"""What a person should look at while a run trains, from what each round measured.

    rising      the validation loss has risen for three rounds in a row
    unlike      one site's training loss, over the last three rounds, is far above the others'
    majority    a site's scores are those of always naming one class, three rounds in a row

With x_i the median over the last three rounds of the training loss of site i, n_i the images that it is of, and m the
median over the sites, the score is

    z_i = (x_i - m) / sqrt(s^2 + m^2 / n_i)        s = max(1.4826 MAD, 0.1 m, 0.05), without the MAD below five sites

a robust z-score (Iglewicz and Hoaglin: How to Detect and Handle Outliers, 1993, whose bound 3.5 is taken). A tenth of
m is what sites that are alike may differ by: where they stand in the round, what they see. Where losses are small a
twentieth is what a few images make. The MAD of three or four sites says nothing. The second term is what chance does
to the mean of n_i losses whose spread is about their mean. The first round is left out: who trains first in it starts
from a net that knows nothing. Validation losses are not compared: of some thirty images a few decide them.
``suture bench warnings`` measures how often it errs on even data, and what it finds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from suture.runtime.records.observers import Recorder

BOUND = 3.5
_ROUNDS_RISING, _ROUNDS_UNLIKE, _ROUNDS_MAJORITY = 3, 3, 3
_FEWEST_SITES, _FEWEST_FOR_MAD = 3, 5
_ALIKE, _LEAST = 0.1, 0.05
_NEAR = 0.02
ROUND_DONE, WARNING = "round_done", "warning"


@dataclass(frozen=True)
class Warned:
    """One warning.

    Attributes:
        kind: rising, unlike or majority.
        client: whom it is about; empty for all.
        text: a sentence or two for a person.
    """

    kind: str
    client: str
    text: str


@dataclass
class _Round:
    """What one round measured: losses by client, with the images that each is a mean over; validation scores."""

    train: dict[str, tuple[float, int]] = field(default_factory=dict)
    validation: dict[str, Mapping[str, float]] = field(default_factory=dict)


class RoundWarnings:
    """Looks at each round when it is over.

    Args:
        num_classes: K; 1 for segmentation.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._lines: list[Mapping[str, Any]] = []
        self._standing: set[tuple[str, str]] = set()

    def take(self, line: Mapping[str, Any]) -> None:
        """One measurement, as a line of metrics.jsonl has it; a training line may say its ``images``."""
        self._lines.append(line)

    def forget(self, counts: Callable[[int], bool]) -> None:
        """Turns of which ``counts`` is not true never happened."""
        self._lines = [line for line in self._lines if counts(int(line["turn"]))]

    def closed(self, round: int) -> list[Warned]:
        """What is to be said when ``round`` is over; a warning that still stands is not said again."""
        # Nothing older is looked at again: a run of a million batches must not keep them all.
        self._lines = [line for line in self._lines if line["round"] >= round - _ROUNDS_RISING]
        rounds = [self._measured(one) for one in range(max(1, round - _ROUNDS_RISING), round + 1)]
        unlike = _unlike_others(rounds[-_ROUNDS_UNLIKE:]) if round > _ROUNDS_UNLIKE else []
        found = [*self._rising(rounds), *unlike, *self._majority(rounds)]
        fresh = [one for one in found if (one.kind, one.client) not in self._standing]
        self._standing = {(one.kind, one.client) for one in found}
        return fresh

    def _measured(self, round: int) -> _Round:
        measured, losses = _Round(), dict[str, list[tuple[float, int]]]()
        for line in self._lines:
            if line["round"] != round or line.get("loss") is None:
                continue
            if line["phase"] == "train":
                losses.setdefault(line["client"], []).append((line["loss"], line.get("images", 1)))
            elif line["phase"] == "validation":
                measured.validation[line["client"]] = line
        for client, batches in losses.items():
            num_images = sum(images for _, images in batches)
            measured.train[client] = (
                sum(loss * images for loss, images in batches) / num_images,
                num_images,
            )
        return measured

    def _rising(self, rounds: Sequence[_Round]) -> list[Warned]:
        if len(rounds) <= _ROUNDS_RISING:
            return []
        means = [
            statistics.fmean(scores["loss"] for scores in one.validation.values()) if one.validation else None
            for one in rounds[-_ROUNDS_RISING - 1 :]
        ]
        values = [value for value in means if value is not None]
        if len(values) != len(means) or any(after <= before for before, after in pairwise(values)):
            return []
        shown = ", ".join(f"{value:.3f}" for value in values)
        return [
            Warned(
                "rising",
                "",
                f"the validation loss has risen for {_ROUNDS_RISING} rounds ({shown}): the net learns its training "
                "images by heart; the best round is kept beside the last one",
            )
        ]

    def _majority(self, rounds: Sequence[_Round]) -> list[Warned]:
        recent = rounds[-_ROUNDS_MAJORITY:]
        if len(recent) < _ROUNDS_MAJORITY or self._num_classes < 2:
            return []
        found = []
        for client, last in recent[-1].validation.items():
            scores = [one.validation.get(client, {}) for one in recent]
            if all(self._names_one_class(one) for one in scores):
                found.append(
                    Warned(
                        "majority",
                        client,
                        f"{client}: accuracy {last['accuracy']:.3f} is that of always naming its commonest class "
                        f"({last['majority_accuracy']:.3f}), balanced accuracy {last['balanced_accuracy']:.3f}: the "
                        "net has learnt nothing there yet; more rounds, another --lr or --class-weights balanced "
                        "may help",
                    )
                )
        return found

    def _names_one_class(self, scores: Mapping[str, float]) -> bool:
        if "balanced_accuracy" not in scores or "majority_accuracy" not in scores:
            return False
        guessing = 1 / self._num_classes + _NEAR
        return (
            scores["balanced_accuracy"] <= guessing
            and scores["accuracy"] <= scores["majority_accuracy"] + _NEAR
        )


def robust_scores(losses: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    """The robust z-score z_i of each site; empty for fewer than three sites.

    Args:
        losses: by site its mean loss and the images that it is a mean over.
    """
    if len(losses) < _FEWEST_SITES:
        return {}
    middle = statistics.median(loss for loss, _ in losses.values())
    spread = max(_ALIKE * abs(middle), _LEAST)
    if len(losses) >= _FEWEST_FOR_MAD:
        spread = max(spread, 1.4826 * statistics.median(abs(loss - middle) for loss, _ in losses.values()))
    scores = {}
    for name, (loss, num_images) in losses.items():
        scale = math.hypot(spread, abs(middle) / math.sqrt(max(num_images, 1)))
        scores[name] = (loss - middle) / scale if scale > 0 else 0.0
    return scores


def _unlike_others(rounds: Sequence[_Round]) -> list[Warned]:
    losses = _over_rounds([one.train for one in rounds])
    middle = statistics.median(loss for loss, _ in losses.values()) if losses else 0.0
    return [
        Warned(
            "unlike",
            client,
            f"{client}: its training loss is unlike the other sites': {losses[client][0]:.3f} in the median of "
            f"{len(rounds)} rounds, the sites' median {middle:.3f}; robust z-score {score:.1f}, bound {BOUND}: ask it "
            "to look at its labels and images",
        )
        for client, score in robust_scores(losses).items()
        if score > BOUND
    ]


def _over_rounds(rounds: Sequence[Mapping[str, tuple[float, int]]]) -> dict[str, tuple[float, int]]:
    """The median of each site that has a loss in all of ``rounds``; the images of each round are the same ones."""
    everywhere = [name for name in rounds[-1] if all(name in one for one in rounds)]
    return {
        name: (statistics.median(one[name][0] for one in rounds), min(one[name][1] for one in rounds))
        for name in everywhere
    }


class WarningRecorder:
    """Writes warnings beside what another recorder is told, and tells a person.

    Args:
        recorder: who is told everything else.
        warnings: looks at it.
        tell: is given each warning.
    """

    def __init__(self, recorder: Recorder, warnings: RoundWarnings, tell: Callable[[Warned], None]) -> None:
        self._recorder, self._warnings, self._tell = recorder, warnings, tell
        self.flush = recorder.flush

    def train_step(self, step: int, round: int, turn: int, client: str, loss: float, num_images: int) -> None:
        """One training batch."""
        self._recorder.train_step(step, round, turn, client, loss, num_images)
        place = {"round": round, "turn": turn, "client": client, "phase": "train"}
        self._warnings.take(place | {"loss": loss if math.isfinite(loss) else None, "images": num_images})

    def scores(
        self, step: int, round: int, turn: int, client: str, phase: str, scores: Mapping[str, float]
    ) -> None:
        """What one evaluation gave."""
        self._recorder.scores(step, round, turn, client, phase, scores)
        self._warnings.take(dict(scores) | {"round": round, "turn": turn, "client": client, "phase": phase})

    def event(self, name: str, **fields: Any) -> None:
        """Something that happened; the end of a round is looked at."""
        self._recorder.event(name, **fields)
        if name == "rolled_back":
            self._warnings.forget(lambda turn: turn != fields["turn"])
        elif name in ("went_back", "resumed"):
            self._warnings.forget(lambda turn: turn <= fields["after_turn"])
        elif name == ROUND_DONE:
            for warned in self._warnings.closed(fields["round"]):
                self._recorder.event(
                    WARNING, round=fields["round"], client=warned.client, kind=warned.kind, text=warned.text
                )
                self._tell(warned)
