"""When an attack's net counts as having stopped learning."""

from __future__ import annotations

import pytest
import torch

from suture.threats.attacks.learning import Plateau, split_pairs


def watched(losses: list[float], patience: int) -> tuple[Plateau, int, torch.optim.Optimizer]:
    """What a plateau makes of these losses, and after how many it ended the training."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    plateau = Plateau(optimizer, patience)
    for number, loss in enumerate(losses, start=1):
        plateau.is_best(number, loss)
        if plateau.is_reached():
            return plateau, number, optimizer
    return plateau, 0, optimizer


def test_a_loss_that_falls_is_no_plateau() -> None:
    """Oracle: one that falls by a hundredth a pass."""
    plateau, ended, optimizer = watched([0.99**n for n in range(200)], 3)
    assert (
        ended == 0 and plateau.learning.ended == "still learning" and optimizer.param_groups[0]["lr"] == 1.0
    )


def test_a_flat_loss_lowers_the_rate_twice_and_then_ends() -> None:
    """Oracle: by hand: the first pass gains, then three times three passes without."""
    plateau, ended, optimizer = watched([1.0] * 50, 3)
    assert ended == 10 and plateau.learning.ended == "plateau"
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.09)


def test_a_crawl_is_a_plateau_and_a_not_a_number_gains_nothing() -> None:
    """Oracle: a loss that falls by a thousandth in three passes; NaN."""
    assert watched([1 - n / 3000 for n in range(40)], 3)[1] > 0
    plateau, ended, _ = watched([float("nan")] * 40, 3)
    assert ended > 0 and plateau.best == float("inf")


def test_pairs_to_validate_on_are_apart_from_those_trained_on() -> None:
    """Oracle: sets."""
    for count, held in ((2, 0), (3, 0), (4, 1), (9, 1), (100, 10)):
        rows, held_back = split_pairs(count, torch.Generator().manual_seed(0))
        assert len(held_back) == held and sorted([*rows.tolist(), *held_back.tolist()]) == list(range(count))


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    plateau, _, _ = watched([0.9**n for n in range(500)], 300)
    shown = plateau.learning.summary()["curve"]
    assert len(shown) <= 62 and shown[0][0] == 1 and shown[-1][0] == 500
