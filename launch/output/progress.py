"""One live display on the server's terminal, log lines where there is no terminal, the table at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from suture.launch.output.final_table import NOTHING, shown
from suture.launch.output.live import LivePicture
from suture.launch.output.pace import Pace, duration
from suture.launch.output.round_warnings import Warned
from suture.launch.output.scores import HEADLINES, NAMES
from suture.runtime.scheduler import Group as Clients

log = logging.getLogger(__name__)

_WARNINGS_SHOWN = 5
_DOES = {"train": "trains", "average": "averages", "evaluate": "evaluates"}
_STYLES = {
    "trains": "bold cyan",
    "averages": "bold cyan",
    "evaluates": "bold cyan",
    "lost": "bold red",
    "rolled back": "yellow",
}


@dataclass
class _Row:
    """What the table shows of one client."""

    state: str = "waits"
    train_loss: float | None = None
    scores: str = NOTHING
    has_test_scores: bool = False
    losses: list[float] = field(default_factory=list)


@dataclass
class _CurrentTurn:
    """What the line above the table shows: the turn that runs now."""

    round: int
    turn: int
    clients: Clients
    kind: str
    num_batches: int | None
    started: float
    batches_done: int = 0
    images_done: int = 0
    loss_sum: float = 0.0
    last_loss: float | None = None
    is_over: bool = False


class Progress(LivePicture):
    """Shows how a run goes; the server reports to it.

    Not thread-safe: the server calls it from RPC threads, one at a time, under its own lock. Without a picture it logs
    one INFO line a turn instead.

    Args:
        console: where to draw, stderr when None.
        clock: seconds from any origin, never going back; tests pass their own.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)
        self._rows: dict[str, _Row] = {}
        self._turn: _CurrentTurn | None = None
        self._num_rounds = 0
        self._turns_done = 0
        self._turns_done_in_round = 0
        self._started = 0.0
        self._pace = Pace(clock)
        self._warnings: list[str] = []
        self._best_round = 0
        self._is_finished = False

    def start(self, num_rounds: int, clients: Sequence[str]) -> None:
        """The run begins (or goes on: rounds that were done before do not enter the time left).

        Args:
            num_rounds: last round's number.
            clients: members at the start; others may join later.
        """
        self._num_rounds = num_rounds
        self._rows = {client: _Row() for client in clients}
        self._show()

    def turn_started(
        self, round: int, turn: int, clients: Clients, kind: str, num_batches: int | None
    ) -> None:
        """``clients`` have the turn, more than one where they train at once.

        ``kind`` is "train", "average" or "evaluate", ``num_batches`` None when not known.
        """
        if self._turn is not None and round != self._turn.round:
            self._turns_done_in_round = 0
        if self._turn is None:  # whoever came late is waited for before, and that says nothing of the pace
            self._started = self._clock()
        self._pace.round_began(round, is_whole=turn == 1 or self._turn is not None)
        self._turn = _CurrentTurn(round, turn, clients, kind, num_batches, started=self._clock())
        for name in clients:
            row = self._row(name)
            row.state, row.losses = _DOES[kind], []
        self._refresh()

    def batch_done(self, client: str, loss: float, num_images: int) -> None:
        """One batch of the current turn was trained by ``client`` with this loss."""
        turn = self._turn
        if turn is None:
            return
        turn.batches_done += 1
        turn.images_done += num_images
        turn.loss_sum += loss
        turn.last_loss = loss
        row = self._row(client)
        row.losses.append(loss)
        row.train_loss = loss
        self._refresh_at_times()

    def turn_done(self) -> None:
        """The current turn counts; a training turn's mean loss replaces its last batch's in the table."""
        turn = self._turn
        if turn is None:
            return
        turn.is_over = True
        rows = [self._row(name) for name in turn.clients]
        for row in rows:
            row.state = "waits"
            if row.losses:
                row.train_loss = sum(row.losses) / len(row.losses)
            row.losses = []
        if turn.kind == "train":
            self._turns_done += len(rows)
            self._turns_done_in_round += len(rows)
            if not self.is_live:
                log.info("%s", self._line(turn))
        self._refresh()

    def client_state(self, client: str, state: str) -> None:
        """Anything else that a client does, in a word or two: "lost", "rolled back", "waits", "finished"."""
        self._row(client).state = state
        if self._turn is not None and client in self._turn.clients:
            self._turn.is_over = True
        self._refresh()

    def scores(self, client: str, phase: str, scores: Mapping[str, float]) -> None:
        """What an evaluation gave; once there are test scores the table no longer shows validation scores."""
        headline = ", ".join(f"{NAMES[key]} {scores[key]:.3f}" for key in HEADLINES if key in scores)
        row = self._row(client)
        if phase == "test" or not row.has_test_scores:
            row.scores = f"{phase}: {headline or NOTHING}"
            row.has_test_scores = phase == "test"
        if not self.is_live:
            log.info("%s %s: %s", client, phase, headline or "no scores")
        self._refresh()

    def round_done(self, round: int, best_round: int) -> None:
        """A round is over; ``best_round`` is the best so far by validation, 0 where no client validates."""
        self._best_round = best_round
        if not self.is_live and best_round:
            log.info(
                "round %d of %d is over; best by validation so far: %d", round, self._num_rounds, best_round
            )
        self._refresh()

    def warned(self, warned: Warned) -> None:
        """Something that a person should look at."""
        self._warnings.append(warned.text)
        log.warning("%s", warned.text)
        self._refresh()

    def finished(self) -> None:
        """The run is over, well or not: leave the last picture, give the cursor back. May be repeated."""
        self._is_finished = True
        self._leave()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finished()

    def seconds_left(self) -> float | None:
        """Time to the end of the last round: by the rounds that were seen whole, in the first one by its turns, None
        before there is a pace.
        """
        if (by_rounds := self._pace.seconds_left(self._num_rounds)) is not None:
            return by_rounds
        turn, num_clients = self._turn, sum(row.state != "lost" for row in self._rows.values())
        if turn is None or num_clients == 0:
            return None
        part = 0.0
        if turn.kind == "train" and not turn.is_over and turn.num_batches:
            part = min(1.0, turn.batches_done / turn.num_batches) * len(turn.clients)
        done = self._turns_done + part
        if done == 0:
            return None
        in_round = min(float(num_clients), self._turns_done_in_round + part)
        left = max(0.0, (self._num_rounds - turn.round + 1) * num_clients - in_round)
        return (self._clock() - self._started) / done * left

    def _row(self, client: str) -> _Row:
        return self._rows.setdefault(client, _Row())

    def _line(self, turn: _CurrentTurn) -> str:
        seconds = max(self._clock() - turn.started, 1e-9)
        mean = turn.loss_sum / turn.batches_done if turn.batches_done else None
        return (
            f"round {turn.round} of {self._num_rounds}, turn {turn.turn}: {_shown(turn.clients)} trained "
            f"{turn.batches_done} batches, loss {shown(mean, 4)}, {turn.images_done / seconds:.0f} images/s"
            f", {duration(self.seconds_left())} left"
        )

    def _picture(self) -> Group:
        """The whole display, drawn anew at each refresh."""
        table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
        for name, justify in (
            ("client", "left"),
            ("", "left"),
            ("train loss", "right"),
            ("last scores", "left"),
        ):
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for client, row in self._rows.items():
            state = Text(row.state, style=_STYLES.get(row.state, "dim"))
            table.add_row(Text(client), state, shown(row.train_loss, 4), row.scores)
        said = [Text(f"! {text}", style="yellow") for text in self._warnings[-_WARNINGS_SHOWN:]]
        if self._best_round:
            said.insert(0, Text(f"best round by validation so far: {self._best_round}", style="dim"))
        return Group(self._headline(), "", table, *said)

    def _headline(self) -> Group | Text:
        turn = self._turn
        if turn is None:
            return Text(f"waiting for the first of {self._num_rounds} rounds", style="dim")
        if self._is_finished:
            return Text(f"ended in round {turn.round} of {self._num_rounds}", style="bold")
        grid = Table.grid(padding=(0, 2, 0, 0))
        total = turn.batches_done if turn.is_over else turn.num_batches
        seconds = max(self._clock() - turn.started, 1e-9)
        verb = "" if turn.is_over else _DOES[turn.kind]
        place = (
            Text(f"round {turn.round} of {self._num_rounds}", style="bold"),
            Text(f"{_shown(turn.clients)} {verb}".rstrip(), style="bold cyan"),
        )
        if turn.kind != "train":
            grid.add_row(*place)
            return Group(grid, Text(f"{duration(self.seconds_left())} left"))
        grid.add_row(
            *place,
            ProgressBar(total=total or 1, completed=turn.batches_done, width=24, pulse=total is None),
            Text(f"{turn.batches_done}/{'?' if total is None else total} batches"),
        )
        speed = "" if turn.is_over else f"{turn.images_done / seconds:.0f} images/s, "
        return Group(
            grid, Text(f"loss {shown(turn.last_loss, 4)}, {speed}{duration(self.seconds_left())} left")
        )


def _shown(clients: Clients) -> str:
    """Who has the turn, short enough for a line."""
    return ", ".join(clients) if len(clients) <= 3 else f"{len(clients)} clients"
