"""What a person is warned of. Oracle: formulas by hand; made-up rounds in which one thing is wrong, and controls."""

import math
import random
from typing import Any

import pytest

from suture.launch.output.round_warnings import BOUND, RoundWarnings, Warned, WarningRecorder, robust_scores

SITES = ("north", "south", "west")


def line(
    round: int, client: str, phase: str, loss: float | None, turn: int = 0, **more: Any
) -> dict[str, Any]:
    place = {"round": round, "turn": turn or round, "client": client, "phase": phase, "loss": loss}
    return {"num_images": 64, "images": 32, **more} | place


def said(warnings: RoundWarnings, rounds: int) -> list[tuple[int, str, str]]:
    return [(n, one.kind, one.client) for n in range(1, rounds + 1) for one in warnings.closed(n)]


def measured(phase: str, losses: dict[str, list[float]]) -> RoundWarnings:
    warnings = RoundWarnings(2)
    for client, values in losses.items():
        for round, loss in enumerate(values, start=1):
            warnings.take(line(round, client, phase, loss, images=64))
    return warnings


def trained(losses: dict[str, list[float]]) -> RoundWarnings:
    return measured("train", losses)


def validated(losses: dict[str, list[float]]) -> RoundWarnings:
    return measured("validation", losses)


def test_the_score_is_that_of_the_formula():
    """By hand: losses 1, 2, 4 of 100 images: m 2, s .2, m^2 / n .04: 2 / sqrt(.08). Of five sites the MAD, 1, counts."""
    scores = robust_scores({"a": (1.0, 100), "b": (2.0, 100), "c": (4.0, 100)})
    assert scores == pytest.approx({"a": -3.53553, "b": 0.0, "c": 7.07107}, abs=1e-4)
    five = robust_scores(
        {name: (float(loss), 100) for name, loss in zip("abcde", (1, 2, 3, 3, 9), strict=True)}
    )
    assert five["e"] == pytest.approx(6 / math.sqrt(1.4826**2 + 9 / 100), abs=1e-4)
    alike = robust_scores(
        {name: (loss, 100) for name, loss in zip("abcde", (3.0, 3.0, 3.0, 3.1, 4.0), strict=True)}
    )
    assert alike["e"] == pytest.approx(1 / math.sqrt(0.3**2 + 9 / 100), abs=1e-4)
    assert robust_scores({"a": (1.0, 100), "b": (9.0, 100)}) == {}
    assert robust_scores({"a": (0.0, 1), "b": (0.0, 1), "c": (0.0, 1)}) == {"a": 0.0, "b": 0.0, "c": 0.0}


def test_a_site_whose_loss_is_far_above_the_others_over_three_rounds_is_named_once():
    """The first round does not count: round 4 is the first that ends three."""
    warnings = trained(
        {"north": [0.5, 0.4, 0.35, 0.3, 0.3], "south": [0.5, 0.42, 0.36, 0.3, 0.3], "west": [0.9] * 5}
    )
    assert said(warnings, 5) == [(4, "unlike", "west")]


def test_the_sentence_names_both_losses_and_the_score():
    warnings = trained({"north": [0.4] * 4, "south": [0.4] * 4, "west": [9.0, 1.1, 1.2, 1.3]})
    (warned,) = [one for n in range(1, 5) for one in warnings.closed(n)]
    z = 0.8 / math.sqrt(0.05**2 + 0.4**2 / 64)
    assert (
        "west: its training loss is unlike the other sites': 1.200 in the median of 3 rounds, the sites' median 0.400; "
        f"robust z-score {z:.1f}, bound 3.5" in warned.text
    )


@pytest.mark.parametrize(
    "losses",
    [
        {"north": [0.5] * 5, "south": [0.52] * 5, "west": [0.55] * 5},
        {"north": [0.5] * 5, "south": [0.5] * 5, "west": [0.5, 5.0, 0.5, 0.5, 0.5]},
        {"north": [0.3] * 5, "south": [0.3] * 5, "west": [0.3, 3.0, 3.0]},
        {"north": [0.02] * 5, "south": [0.03] * 5, "west": [0.12] * 5},
        {"north": [0.5] * 4, "west": [5.0] * 4},
        {"north": [0.5] * 4, "south": [0.5] * 4, "west": [0.05] * 4},
    ],
    ids=["near", "one round only", "gone before three", "all small", "two sites", "better than the others"],
)
def test_nobody_is_named_without_cause(losses):
    assert not [kind for _, kind, _ in said(trained(losses), 5) if kind == "unlike"]


def test_losses_are_weighted_by_their_images():
    """West's batches: 3 images of 0.4 and 29 of 2: 1.85 against 0.4."""
    warnings = RoundWarnings(2)
    for round in (1, 2, 3, 4):
        for client in ("north", "south"):
            warnings.take(line(round, client, "train", 0.4))
        warnings.take(line(round, "west", "train", 0.4, images=3))
        warnings.take(line(round, "west", "train", 2.0, images=29))
    assert said(warnings, 4) == [(4, "unlike", "west")]
    assert math.isclose(warnings._measured(1).train["west"][0], (3 * 0.4 + 29 * 2.0) / 32)


def test_a_validation_loss_that_rises_three_rounds_running_is_said():
    assert said(validated({"north": [0.5, 0.4, 0.45, 0.5, 0.55, 0.6]}), 6) == [(5, "rising", "")]
    assert not said(validated({"north": [0.5, 0.4, 0.45, 0.5, 0.49, 0.6]}), 6)


def test_the_mean_over_the_sites_counts():
    """North's rises and south's falls as much: the mean stands still."""
    assert not said(validated({"north": [0.1, 0.2, 0.3, 0.4], "south": [0.4, 0.3, 0.2, 0.1]}), 4)


def test_always_naming_one_class_is_said_after_three_rounds_and_again_when_it_comes_back():
    guess = {"accuracy": 0.7, "majority_accuracy": 0.7, "balanced_accuracy": 0.5}
    better = {"accuracy": 0.8, "majority_accuracy": 0.7, "balanced_accuracy": 0.7}
    warnings = RoundWarnings(2)
    for round, scores in enumerate((guess,) * 4 + (better,) + (guess,) * 3, start=1):
        warnings.take(line(round, "north", "validation", 0.6, **scores))
    assert said(warnings, 8) == [(3, "majority", "north"), (8, "majority", "north")]


def test_good_scores_on_a_set_of_one_class_are_no_guess():
    warnings = RoundWarnings(2)
    for round in (1, 2, 3):
        warnings.take(
            line(
                round, "north", "validation", 0.6, accuracy=1.0, majority_accuracy=1.0, balanced_accuracy=1.0
            )
        )
    assert not said(warnings, 3)


def test_how_often_even_data_is_blamed():
    """Oracle: 300 made-up runs of 3 to 8 even sites, 20 rounds, whose images' losses are exponential, as those of a
    net that is right more often than not: at most one run in fifty may name anybody."""
    draw = random.Random(0)
    blamed = 0
    for _ in range(300):
        warnings, sites = RoundWarnings(2), draw.choice((3, 4, 8))
        for round in range(1, 21):
            for site in range(sites):
                loss = sum(draw.expovariate(2.0) for _ in range(32)) / 32
                warnings.take(line(round, f"site{site}", "train", loss, images=32))
        blamed += any(kind == "unlike" for _, kind, _ in said(warnings, 20))
    assert blamed <= 6


def test_a_line_without_a_loss_counts_for_nothing():
    warnings = RoundWarnings(2)
    warnings.take(line(1, "north", "train", None))
    assert not warnings._measured(1).train and said(warnings, 1) == []


class Kept:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def train_step(self, step, round, turn, client, loss, num_images):
        self.lines.append({"train": loss})

    def scores(self, step, round, turn, client, phase, scores):
        self.lines.append({"phase": phase})

    def event(self, name, **fields):
        self.lines.append({"event": name} | fields)

    def flush(self): ...


def _play(undo: dict[str, Any] | None) -> tuple[Kept, list[Warned]]:
    kept, told = Kept(), list[Warned]()
    recorder = WarningRecorder(kept, RoundWarnings(2), told.append)
    for round in (1, 2, 3, 4):
        for site, loss in zip(SITES, (0.4, 0.4, 4.0), strict=True):
            recorder.train_step(1, round, 10 * round, site, loss, 32)
        if round == 4 and undo is not None:
            recorder.event(**undo)
        recorder.event("round_done", round=round, best_round=0)
    return kept, told


def test_a_warning_is_written_beside_the_numbers_and_told():
    kept, told = _play(None)
    assert [one.client for one in told] == ["west"]
    assert kept.lines[-1] == {
        "event": "warning",
        "round": 4,
        "client": "west",
        "kind": "unlike",
        "text": told[0].text,
    }
    assert float(told[0].text.split("z-score ")[1].split(",")[0]) > BOUND


@pytest.mark.parametrize(
    "undo",
    [
        {"name": "rolled_back", "turn": 40, "client": "west", "reason": "lost"},
        {"name": "went_back", "after_turn": 30, "step": 1},
        {"name": "resumed", "after_turn": 30, "step": 1},
    ],
)
def test_what_was_undone_counts_for_nothing(undo):
    assert _play(undo)[1] == []


def test_what_is_kept_does_not_grow_with_the_run():
    """Oracle: the lines of the four rounds that a warning may look at, whatever was before."""
    warnings = RoundWarnings(2)
    for round in range(1, 51):
        for _ in range(20):
            warnings.take(line(round, "north", "train", 0.4))
        warnings.closed(round)
        assert len(warnings._lines) <= 4 * 20
