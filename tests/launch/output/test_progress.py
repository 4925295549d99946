"""What a person sees while a run goes on, at a terminal and without one."""

from __future__ import annotations

import io
import logging
import threading

import pytest
from rich.console import Console

from suture.launch.output.final_table import final_table, print_final_table
from suture.launch.output.progress import Progress


class _Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _terminal() -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, force_terminal=True, width=140, legacy_windows=False), written


@pytest.fixture(autouse=True)
def _no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests decide themselves whether they are at a terminal."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def _one_turn(
    progress: Progress, clock: _Clock, turn: int = 1, client: str = "client0", round: int = 1
) -> None:
    progress.turn_started(round, turn, (client,), "train", 4)
    for loss in (0.8, 0.6, 0.4, 0.2):
        clock.now += 1
        progress.batch_done(client, loss, 10)
    progress.turn_done()


def test_without_a_terminal_each_turn_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """Oracle: worked out by hand: 40 images in 4 s, mean loss 0.5, 1 of 4 turns took 4 s."""
    clock = _Clock()
    progress = Progress(Console(file=io.StringIO()), clock)
    with caplog.at_level(logging.INFO, "suture.launch.output.progress"):
        progress.start(2, ["client0", "client1"])
        _one_turn(progress, clock)
        progress.turn_started(1, 2, ("client0",), "evaluate", None)
        progress.scores("client0", "test", {"loss": 0.3, "accuracy": 0.75, "auroc": 0.875})
        progress.turn_done()
        progress.finished()
    assert caplog.messages == [
        "round 1 of 2, turn 1: client0 trained 4 batches, loss 0.5000, 10 images/s, 0:00:12 left",
        "client0 test: accuracy 0.750, AUROC 0.875",
    ]


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("CI", "true")])
def test_a_dumb_terminal_and_ci_get_plain_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    """Oracle: nothing is drawn, one line is logged."""
    monkeypatch.setenv(name, value)
    console, written = _terminal()
    clock = _Clock()
    with caplog.at_level(logging.INFO, "suture.launch.output.progress"), Progress(console, clock) as progress:
        progress.start(1, ["client0"])
        _one_turn(progress, clock)
    assert not progress.is_live
    assert written.getvalue() == ""
    assert len(caplog.messages) == 1


def test_a_terminal_shows_round_turn_loss_speed_and_clients(caplog: pytest.LogCaptureFixture) -> None:
    """Oracle: the words that the display promises; nothing is logged beside it."""
    console, written = _terminal()
    clock = _Clock()
    with caplog.at_level(logging.INFO, "suture.launch.output.progress"), Progress(console, clock) as progress:
        progress.start(3, ["client0", "client1"])
        _one_turn(progress, clock)
        progress.scores("client0", "test", {"accuracy": 0.75, "auroc": 0.875})
        progress.turn_started(1, 2, ("client1",), "train", 8)
        for _ in range(2):
            clock.now += 1
            progress.batch_done("client1", 0.4321, 16)
    shown = written.getvalue()
    for words in (
        "round 1 of 3",
        "client1 trains",
        "2/8 batches",
        "0.4321",
        "16 images/s",
        "left",
        "accuracy 0.750, AUROC 0.875",
        "waits",
    ):
        assert words in shown
    assert caplog.messages == []


def test_the_display_is_drawn_at_most_four_times_a_second() -> None:
    """Oracle: 1000 batches within one second of the clock make at most 4 pictures beside start and end."""
    console, written = _terminal()
    clock = _Clock()
    with Progress(console, clock) as progress:
        progress.start(1, ["client0"])
        progress.turn_started(1, 1, ("client0",), "train", 1000)
        before = written.getvalue().count("round 1 of 1")
        for _ in range(1000):
            clock.now += 0.001
            progress.batch_done("client0", 0.5, 1)
        assert written.getvalue().count("round 1 of 1") - before <= 4


def test_the_terminal_is_given_back_and_no_thread_stays() -> None:
    """Oracle: the cursor is shown again after the last picture, even when the run fails."""
    console, written = _terminal()
    before = set(threading.enumerate())
    with pytest.raises(KeyError), Progress(console) as progress:
        progress.start(1, ["client0"])
        raise KeyError
    progress.finished()
    assert written.getvalue().rstrip().endswith("\x1b[?25h")
    assert set(threading.enumerate()) == before


def test_time_left_follows_lost_clients_and_resumed_rounds() -> None:
    """Oracle: by hand; 4 s a turn. Rounds 3 and 4 of 4 remain: 2 clients need 4 turns, one alone 2."""
    clock = _Clock()
    progress = Progress(Console(file=io.StringIO()), clock)
    progress.start(4, ["client0", "client1"])
    assert progress.seconds_left() is None
    _one_turn(progress, clock, turn=5, round=3)
    assert progress.seconds_left() == pytest.approx(3 * 4)
    progress.client_state("client1", "lost")
    assert progress.seconds_left() == pytest.approx(1 * 4)
    _one_turn(progress, clock, turn=6, round=4)
    assert progress.seconds_left() == 0


def test_test_scores_are_not_replaced_by_validation_scores() -> None:
    """Oracle: the last picture."""
    console, written = _terminal()
    with Progress(console) as progress:
        progress.start(1, ["client0"])
        progress.scores("client0", "validation", {"dice": 0.1, "jaccard": 0.2})
        progress.scores("client0", "test", {"dice": 0.8, "jaccard": 0.7})
        progress.scores("client0", "validation", {"dice": 0.3, "jaccard": 0.4})
        written.truncate(0)
    assert "test: Dice 0.800, Jaccard 0.700" in written.getvalue()
    assert "validation" not in written.getvalue()


@pytest.mark.parametrize(
    ("task", "test", "expected"),
    [
        (
            "classification",
            {"accuracy": 0.8, "balanced_accuracy": 0.7, "auroc": 0.9, "majority_accuracy": 0.5},
            ["balanced accuracy", "AUROC", "majority class", "0.800", "0.700", "0.900", "0.500"],
        ),
        (
            "segmentation",
            {"dice": 0.8, "jaccard": 0.7, "pixel_accuracy": 0.99},
            ["Dice", "Jaccard", "pixel accuracy", "0.800", "0.700", "0.990"],
        ),
    ],
)
def test_the_final_table_has_a_row_a_client_and_their_mean(
    task: str, test: dict[str, float], expected: list[str]
) -> None:
    """Oracle: the summary's numbers; a client without a test has dashes and does not enter the mean."""
    summary = {
        "task": task,
        "model": "resnet34",
        "cut": 3,
        "clients": {
            "client0": {"train": {"loss": 0.25}, "test": test},
            "client1": {"train": {"loss": 0.75}, "test": None},
        },
    }
    written = io.StringIO()
    print_final_table(summary, Console(file=written, width=140))
    rows = {line.split("│")[1].strip(): line for line in written.getvalue().splitlines() if "│" in line}
    for words in ["resnet34 cut at 3", *expected]:
        assert words in written.getvalue()
    assert " - " in rows["client1"]
    assert "0.500" in rows["mean"]
    assert "0.800" in rows["mean"]
    assert final_table(summary).row_count == 3
