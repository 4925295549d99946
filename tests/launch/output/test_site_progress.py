"""What a site's terminal shows. Oracle: by hand, with a clock that the test moves; rich's own console for the terminal."""

import io
import logging
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import build_client

from suture.launch.output.client_record import COUNTED
from suture.launch.output.round_warnings import Warned
from suture.launch.output.site_progress import SiteProgress, print_end, size
from suture.runtime.data.client_data import Batch
from suture.runtime.records.tracking import Tracker
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.wire.messages import Release, Welcome

VALIDATION = {"loss": 0.41, "auroc": 0.75, "balanced_accuracy": 0.7, "accuracy": 0.72, "num_images": 16}


class Watched:
    """A site of the test's, on a terminal that is written to memory, or on none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, live: bool = True) -> None:
        monkeypatch.delenv("CI", raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        self.now = 0.0
        self.written = io.StringIO()
        console = Console(file=self.written, force_terminal=live, width=120, height=40, color_system=None)
        self.crossed = (0, 0)
        self.progress = SiteProgress(
            "classification", 4, lambda: self.crossed, None, console, lambda: self.now
        )
        self.progress.joined(build_client(0), Welcome("run", "folder", 5.0))

    def trains(self, number: int, round: int, losses: list[float], seconds: float = 1.0) -> None:
        turn = Turn(TurnKind.TRAIN, "client0", round, number)
        self.progress.began(turn)
        for index, loss in enumerate(losses):
            self.now += seconds
            self.progress.trained(turn, Batch(torch.zeros(8, 1, 4, 4), torch.zeros(8), index, ()), loss)
        self.progress.counted(turn)

    def evaluates(self, number: int, round: int, **scores: Any) -> None:
        turn = Turn(TurnKind.EVALUATE, "client0", round, number)
        self.progress.began(turn)
        self.progress.scored(turn, {"validation": VALIDATION | scores})
        self.progress.counted(turn)

    def picture(self) -> str:
        shown = io.StringIO()
        Console(file=shown, width=120, color_system=None).print(self.progress._picture())
        return shown.getvalue()


@pytest.fixture
def site(monkeypatch):
    watched = Watched(monkeypatch)
    yield watched
    watched.progress.close()


def test_it_says_whose_turn_it_is_and_what_its_own_gives(site):
    """Two batches of 8 images in a second each: 8 images/s."""
    site.progress.waits(Turn(TurnKind.WAIT, "south, west", 1, 2, meanwhile="average"))
    assert "round 1 of 4" in site.picture() and "south, west averages" in site.picture()
    turn = Turn(TurnKind.TRAIN, "client0", 1, 3)
    site.progress.began(turn)
    site.now += 1
    site.progress.trained(turn, Batch(torch.zeros(8, 1, 4, 4), torch.zeros(8), 0, ()), 0.4321)
    shown = site.picture()
    assert "this site trains" in shown and "1/3 batches" in shown and "loss 0.4321, 8 images/s" in shown
    site.crossed = (2_500_000, 900)
    assert "up 2.5 MB, down 900 B" in site.picture()


def test_a_server_s_words_cannot_write_on_the_terminal(site):
    site.progress.waits(Turn(TurnKind.WAIT, "\x1b[2Jgone" + "x" * 500, 1, 2, meanwhile="train"))
    assert "\x1b[2J" not in site.written.getvalue().replace("\x1b[2K", "") and "x" * 61 not in site.picture()


def test_training_and_waiting_are_counted_apart_and_time_left_follows_the_rounds(site):
    """Round 1: 2 s of its own and 8 s of others. In round 2, after 2 s, 8 s and two rounds of 10 s are left."""
    site.trains(1, 1, [0.6, 0.5])
    assert "time left is known after a whole round" in site.picture()
    site.now += 8
    turn = Turn(TurnKind.TRAIN, "client0", 2, 7)
    site.progress.began(turn)
    site.now += 2
    assert "0:00:28 left" in site.picture() and "0:00:02 training, 0:00:08 waiting" in site.picture()


def test_rounds_stand_in_a_table_with_their_trend(site):
    for round, auroc in enumerate((0.7, 0.8, 0.6), start=1):
        site.trains(2 * round, round, [0.5, 0.7])
        site.evaluates(2 * round + 1, round, auroc=auroc)
    lines = [line.split() for line in site.picture().splitlines()]
    rows = [line for line in lines if line[:1] in (["1"], ["2"], ["3"])]
    assert [row[:3] for row in rows] == [[str(n), "0.6000", "0.4100"] for n in (1, 2, 3)]
    assert [row[row.index(f"{value:.3f}") + 1] for row, value in zip(rows[1:], (0.8, 0.6), strict=True)] == [
        "▲",
        "▼",
    ]
    assert all(row[-1] == "16" for row in rows)


def test_warnings_and_the_end_are_shown(site, caplog):
    site.trains(1, 1, [0.5])
    site.progress.warned(Warned("rising", "", "the validation loss has risen"))
    assert "! the validation loss has risen" in site.picture()
    assert caplog.messages == ["the validation loss has risen"]
    site.progress.finished(build_client(0), Release({}, 0))
    assert "the run is over" in site.picture() and "left" not in site.picture()
    site.progress.close()
    assert site.written.getvalue().rstrip().endswith("\x1b[?25h")


def test_without_a_terminal_each_of_its_turns_is_a_line(monkeypatch, caplog):
    watched = Watched(monkeypatch, live=False)
    with caplog.at_level(logging.INFO):
        watched.trains(1, 1, [0.6, 0.5])
        watched.evaluates(4, 1)
        watched.now += 6
        watched.trains(5, 2, [0.4])
    assert caplog.messages == [
        "round 1 of 4: trained 2 batches in 2.0 s: loss 0.5500, 8 images/s; time left is known after a whole round",
        "round 1 of 4: validation: loss 0.4100, accuracy 0.720, balanced accuracy 0.700, AUROC 0.750, n 16",
        "round 2 of 4: trained 1 batches in 1.0 s: loss 0.4000, 8 images/s; 0:00:23 left",
    ]
    assert watched.written.getvalue() == ""


def test_a_turn_that_was_rolled_back_is_said_and_does_not_count(site):
    turn = Turn(TurnKind.TRAIN, "client0", 1, 1)
    site.progress.began(turn)
    site.now += 5
    site.progress.undone(turn, "another was lost")
    assert "its turn was rolled back" in site.picture() and "0:00:00 training" in site.picture()


def test_a_site_that_was_started_again_shows_its_earlier_rounds_and_their_costs(tmp_path):
    """Two turns of an earlier process; a third, of turn 4, was cut off and does not count."""
    event = {"waited": 5.0, "bytes_up": 1_000_000, "bytes_down": 500, "client": "client0", "round": 1}
    with Tracker(tmp_path, of_client=True, curves=False) as earlier:
        earlier.train_step(1, 1, 1, "client0", 0.5, 4)
        earlier.train_step(2, 1, 1, "client0", 0.7, 12)
        earlier.event(COUNTED, **event | {"turn": 1, "kind": "train", "seconds": 61.0, "images": 16})
        earlier.scores(2, 1, 2, "client0", "validation", VALIDATION)
        earlier.event(COUNTED, **event | {"turn": 2, "kind": "evaluate", "seconds": 1.0, "images": 0})
        earlier.train_step(3, 2, 4, "client0", 9.9, 4)
    console = Console(file=io.StringIO(), width=120, color_system=None)
    progress = SiteProgress("classification", 4, lambda: (250_000, 0), tmp_path, console)
    console.print(progress._picture())
    shown = console.file.getvalue()
    assert "0.6500" in shown and "0.750" in shown and "9.9" not in shown
    assert "up 2.25 MB, down 1 kB; 0:01:01 training, 0:00:10 waiting" in shown


def test_the_end_says_scores_with_n_the_best_round_and_where_the_model_is(tmp_path, capsys):
    (tmp_path / "model.pt").write_bytes(b"")
    print_end(
        "classification", {"validation": VALIDATION, "test": VALIDATION | {"num_images": 40}}, 3, tmp_path
    )
    said = capsys.readouterr().out
    rows = {line.split()[1]: line.split() for line in said.splitlines() if "│" in line}
    assert "40" in rows["test"] and "16" in rows["validation"] and "0.4100" in rows["test"]
    assert "best round by validation over all sites: 3" in said and str(
        tmp_path / "model.pt"
    ) in said.replace("\n", "")


@pytest.mark.parametrize(
    ("num_bytes", "said"),
    [(0, "0 B"), (999, "999 B"), (2_220_000, "2.22 MB"), (58_000, "58 kB"), (3.1e9, "3.1 GB")],
)
def test_sizes_have_the_unit_that_suits_them(num_bytes, said):
    assert size(num_bytes) == said
