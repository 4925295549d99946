"""A client's own numbers. Oracle: the turns that are played here, by hand; files read with plain json."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import build_client
from torch import nn

from suture.launch.options.options import AskedOptions
from suture.launch.output.client_record import ClientRecord, mean_loss
from suture.runtime.data.client_data import Batch
from suture.runtime.records.tracking import read_events, read_metrics
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.wire.messages import Release

OPTIONS = AskedOptions(model="resnet18", image_size=32, epochs=3).resolved()
SCORES = {"validation": {"loss": 0.4, "auroc": 0.75, "balanced_accuracy": 0.7, "num_images": 16}}


def batch(number: int, images: int = 4) -> Batch:
    return Batch(torch.zeros(images, 3, 2, 2), torch.zeros(images, dtype=torch.int64), number, ())


class Player:
    """Plays a client's turns to a record of its own, as `session.take_turn` would."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.folder = folder
        self.client = build_client(0)
        self.bytes = [0, 0]
        self.record = ClientRecord(OPTIONS, folder, traffic=lambda: (self.bytes[0], self.bytes[1]), **more)
        self.record.joined(self.client, SimpleNamespace(run_dir="elsewhere"))

    def trains(self, number: int, round: int, step: int, losses: list[float], ends: str = "counted") -> None:
        turn = Turn(TurnKind.TRAIN, "client0", round, number, step)
        self.record.began(turn)
        for index, loss in enumerate(losses):
            self.record.trained(turn, batch(index), loss)
        self.bytes[0] += 100
        self.bytes[1] += 40
        if ends == "counted":
            self.record.counted(turn)
        if ends == "undone":
            self.record.undone(turn, "another one was lost")

    def evaluates(self, number: int, round: int, step: int, scores: Any = None) -> None:
        turn = Turn(TurnKind.EVALUATE, "client0", round, number, step)
        self.record.began(turn)
        self.record.scored(turn, SCORES if scores is None else scores)
        self.record.counted(turn)

    def lines(self) -> list[tuple[int, str, float]]:
        return [
            (one["step"], one["phase"], one["loss"]) for one in read_metrics(self.folder / "metrics.jsonl")
        ]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [one for one in read_events(self.folder / "metrics.jsonl") if one["event"] == name]


@pytest.fixture
def player(tmp_path: Path) -> Player:
    return Player(tmp_path / "own")


def test_a_turn_is_written_with_what_it_took(player):
    player.trains(1, 1, 0, [0.9, 0.7])
    player.evaluates(4, 1, 6)
    assert player.lines() == [(1, "train", 0.9), (2, "train", 0.7), (6, "validation", 0.4)]
    train, evaluation = player.events("turn")
    assert (train["kind"], train["images"], train["batches"], train["bytes_up"], train["bytes_down"]) == (
        *("train", 8, 2),
        *(100, 40),
    )
    assert (evaluation["kind"], evaluation["images"], evaluation["bytes_up"]) == ("evaluate", 0, 0)
    assert train["seconds"] >= 0 and train["waited"] >= 0
    assert player.events("round_done") == [{"event": "round_done", "round": 1, "best_round": 1}]


def test_a_turn_that_was_undone_leaves_no_line(player):
    player.trains(1, 1, 0, [0.9], ends="undone")
    assert player.lines() == [] and player.events("turn") == []
    player.trains(1, 1, 0, [0.8])
    assert player.lines() == [(1, "train", 0.8)]


def test_what_the_server_undid_after_it_counted_goes_too(player):
    """The server went back: turn 1, which counted here, is asked for again."""
    player.trains(1, 1, 0, [0.9])
    player.evaluates(4, 1, 3)
    player.trains(1, 1, 0, [0.8])
    assert player.lines() == [(1, "train", 0.8)]


def test_another_process_goes_on_and_takes_back_what_was_cut_off(player):
    player.trains(1, 1, 0, [0.9])
    player.evaluates(4, 1, 3)
    player.trains(5, 2, 3, [0.7], ends="crash")
    again = Player(player.folder)
    assert again.lines() == [(1, "train", 0.9), (3, "validation", 0.4)]
    again.trains(9, 3, 8, [0.6])
    assert again.lines()[-1] == (9, "train", 0.6)
    assert again.record.summary()["scores"]["validation"] == SCORES["validation"]
    assert len(again.events("round_done")) == 1


def test_a_torn_line_is_closed_and_nothing_else_is_lost(player):
    player.trains(1, 1, 0, [0.9])
    with (player.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rou')
    again = Player(player.folder)
    again.trains(5, 2, 3, [0.7])
    assert again.lines() == [(1, "train", 0.9), (4, "train", 0.7)]


def test_the_summary_counts_what_earlier_processes_trained_and_sent(player):
    """Each turn of `Player` sends 100 bytes and receives 40; the second process counts its own from 0."""
    player.trains(1, 1, 0, [0.9])
    again = Player(player.folder)
    again.trains(5, 2, 3, [0.7])
    assert again.record.summary()["bytes"] == {"up": 200, "down": 80}


def test_the_summary_says_data_by_set_seconds_by_kind_and_what_crossed(player):
    player.trains(1, 1, 0, [0.9, 0.7])
    player.evaluates(4, 1, 6, SCORES | {"test": {"loss": 0.5, "auroc": 0.6, "num_images": 8}})
    whole = nn.Linear(1, 1).state_dict()
    player.record.finished(player.client, Release(dict(whole), best_round=1))
    summary = json.loads((player.folder / "summary.json").read_text())
    share = player.client.model.data.share
    assert summary["images"] == {
        "train": len(share.train),
        "validation": len(share.validation),
        "test": len(share.test),
    }
    assert sum(summary["classes"].values()) == len(share.train)
    assert summary["scores"]["train"] == {"loss": pytest.approx(0.8)}
    assert summary["scores"]["test"]["num_images"] == 8
    assert summary["seconds"].keys() == {"training", "averaging", "evaluating", "waiting"}
    assert summary["wall_seconds"] == pytest.approx(sum(summary["seconds"].values()), abs=0.01)
    assert summary["bytes"] == {"up": 100, "down": 40}
    assert (summary["best_round"], len(summary["weights_sha256"])) == (1, 64)
    assert (player.folder / "figures" / "training_loss.png").stat().st_size > 1000
    assert player.record.is_finished


def test_a_warning_is_told_and_written(tmp_path):
    told = []
    player = Player(tmp_path / "own", warn=told.append)
    for round in range(1, 5):
        validation = {"loss": 0.4 + round / 10, "num_images": 16}
        player.evaluates(2 * round, round, 3 * round, {"validation": validation})
    assert [one.kind for one in told] == ["rising"]
    (event,) = player.events("warning")
    assert (event["round"], event["kind"], event["text"]) == (4, "rising", told[0].text)


def test_a_folder_that_cannot_be_written_costs_the_numbers_and_nothing_else(tmp_path, caplog):
    """Oracle: the calls return; one sentence."""
    (tmp_path / "own").write_text("a file where the folder should be")
    player = Player(tmp_path / "own")
    player.trains(1, 1, 0, [0.9])
    player.evaluates(4, 1, 3)
    player.record.finished(player.client, Release({}, best_round=0))
    assert [r.message for r in caplog.records if "no more numbers are written" in r.message]
    assert len(caplog.records) == 1


def test_there_are_curves_only_where_they_are_wanted(tmp_path):
    for curves in (False, True):
        player = Player(tmp_path / str(curves), curves=curves)
        player.trains(1, 1, 0, [0.9])
        player.record.finished(player.client, Release({}, best_round=0))
        assert bool(list((tmp_path / str(curves)).glob("tensorboard/events*"))) is curves


def test_a_mean_is_over_the_images():
    assert mean_loss([(1.0, 1), (0.5, 3)]) == pytest.approx(0.625)
