"""The wire recording: it holds what crossed, belongs to its run and cut, and changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import Tap

from suture.runtime.errors import DataError
from suture.runtime.hooks import Attack, SmashedBatch
from suture.threats.attacks.recording import RecordedAttack, Recording

ORIGIN = {"run": "a1", "model": "resnet18", "cut": "4", "smashed_shape": [2, 3, 3]}


def batch(round: int, number: int, phase: str = "train") -> SmashedBatch:
    labels = torch.tensor([1, 0]) if phase == "train" else None
    return SmashedBatch(
        torch.full((2, 2, 3, 3), round + number / 10), labels, ("client0",), round, number, phase
    )


def test_a_tape_plays_what_was_recorded_in_the_order_of_the_run(tmp_path: Path) -> None:
    recording = Recording(tmp_path, ORIGIN)
    for made in (batch(2, 0), batch(1, 1), batch(1, 0, "test"), batch(1, 0)):
        recording.record(made)
    played = list(Recording.open(tmp_path, ORIGIN).play())
    assert [(b.round, b.phase, b.batch) for b in played] == [
        (1, "train", 0),
        (1, "train", 1),
        (1, "test", 0),
        (2, "train", 0),
    ]
    assert torch.equal(played[1].smashed, batch(1, 1).smashed)
    assert played[0].labels is not None and played[0].labels.tolist() == [1, 0] and played[2].labels is None
    assert [b.phase for b in recording.play("test")] == ["test"]


def test_a_turn_that_is_repeated_writes_over_what_it_left(tmp_path: Path) -> None:
    recording = Recording(tmp_path, ORIGIN)
    recording.record(batch(1, 0))
    recording.record(batch(1, 0))
    assert len(recording.places()) == 1


@pytest.mark.parametrize(("name", "other"), [("run", "b2"), ("cut", "5"), ("smashed_shape", [4, 3, 3])])
def test_a_tape_of_another_run_or_cut_is_refused(tmp_path: Path, name: str, other: object) -> None:
    Recording(tmp_path, ORIGIN)
    with pytest.raises(
        DataError, match=f"recorded with {name} = .*attack needs the recording of its own run and cut"
    ):
        Recording.open(tmp_path, ORIGIN | {name: other})


def test_no_tape_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no wire recording.*--recording last-round"):
        Recording.open(tmp_path / "none", ORIGIN)


def test_last_round_keeps_the_last_round_alone(tmp_path: Path) -> None:
    recorded = RecordedAttack(Attack(), Recording(tmp_path, ORIGIN), "last-round")
    for made in (batch(1, 0), batch(1, 1), batch(1, 0, "test"), batch(2, 0), batch(2, 0, "test")):
        recorded.observe(made)
    assert {place.round for place in recorded.recording.places()} == {2}


def test_recording_passes_every_door_through(tmp_path: Path) -> None:
    """Oracle: the honest base's own answers."""
    recorded = RecordedAttack(Attack(), Recording(tmp_path, ORIGIN), "all")
    loss, grad = torch.tensor(1.0), torch.ones(2, 2, 3, 3)
    assert recorded.loss(batch(1, 0), loss) is loss
    assert recorded.gradient(batch(1, 0), grad) is grad
    recorded.received(batch(1, 0), grad)
    assert recorded.state_dict() == {}


def test_what_came_back_is_recorded_beside_its_batch(tmp_path: Path) -> None:
    """Oracle: the tensor that was given; and a tap behind the recording."""
    tap = Tap()
    recorded = RecordedAttack(tap, Recording(tmp_path, ORIGIN), "all")
    home = replace(batch(1, 0), labels=None)
    recorded.observe(home)
    recorded.observe(batch(1, 1))
    with torch.enable_grad():
        recorded.received(home, torch.arange(6.0).view(2, 3))
    (first, second) = Recording.open(tmp_path, ORIGIN).play()
    found = recorded.recording.received(first)
    assert found is not None and torch.equal(found, torch.arange(6.0).view(2, 3))
    assert recorded.recording.received(second) is None
    assert torch.equal(tap.gradients[0][1], found)
