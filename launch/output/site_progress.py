"""What a site shows of its own training: one live display on its terminal, log lines where there is no terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from suture.launch.output.client_record import Earlier, mean_loss, plain_scores
from suture.launch.output.final_table import COLUMNS, shown
from suture.launch.output.live import LivePicture
from suture.launch.output.pace import Pace, duration
from suture.launch.output.round_warnings import Warned
from suture.runtime.client.client import Client
from suture.runtime.data.client_data import Batch
from suture.runtime.participant.participant import NoClientObserver
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.training.objectives import main_metric
from suture.runtime.wire.messages import Release, Welcome, printable

log = logging.getLogger(__name__)

_DOES = {"train": "trains", "average": "averages", "evaluate": "scores the model"}
_ROUNDS_SHOWN = 6


@dataclass
class _Round:
    """What one round gave here."""

    train_loss: float | None = None
    validation: Mapping[str, float] = field(default_factory=dict)


class SiteProgress(LivePicture, NoClientObserver):
    """Shows how the run goes at this site; see `session.ClientObserver`.

    Without a picture it logs a line for each of the site's own turns instead.

    Args:
        task: "classification" or "segmentation".
        num_rounds: last round's number.
        traffic: bytes that have gone up and come down so far in this process.
        folder: RUN/clients/NAME, from which rounds and costs of earlier processes are taken up; None for none.
        console: where to draw, stderr when None.
        clock: seconds from any origin, never going back; tests pass their own.
    """

    def __init__(
        self,
        task: str,
        num_rounds: int,
        traffic: Callable[[], tuple[int, int]],
        folder: Path | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(console, clock)
        self._task, self._columns, self._num_rounds = task, COLUMNS[task], num_rounds
        self._traffic, self._pace = traffic, Pace(clock)
        self._earlier_traffic = (0, 0)
        self._rounds: dict[int, _Round] = {}
        self._round = 0
        self._does = "waits for the run to begin"
        self._num_batches: int | None = None
        self._batches: list[tuple[float, int]] = []
        self._begun = self._ended = clock()
        self._trained = self._waited = 0.0
        self._warnings: list[str] = []
        self._is_over = False
        if folder is not None:
            self._take_up(Earlier.read(folder))

    def _take_up(self, earlier: Earlier) -> None:
        batches: dict[int, list[tuple[float, int]]] = {}
        for line in earlier.lines:
            if line["phase"] == "train":
                batches.setdefault(line["round"], []).append((line["loss"], line["images"]))
            elif line["phase"] == "validation":
                self._of(line["round"]).validation = plain_scores(line)
        for number, losses in batches.items():
            self._of(number).train_loss = mean_loss(losses)
        self._trained, self._waited = earlier.seconds(TurnKind.TRAIN), earlier.waited
        self._earlier_traffic = earlier.traffic

    def joined(self, client: Client, welcome: Welcome) -> None:
        """The site is in."""
        self._client = client
        self._show()
        self._refresh()

    def waits(self, turn: Turn) -> None:
        """Others have the turn."""
        if turn.meanwhile:
            self._goes_on(turn.round)
            self._does = f"{printable(turn.client)[:60]} {_DOES.get(turn.meanwhile, 'has the turn')}"
            self._refresh()

    def began(self, turn: Turn) -> None:
        """This site has the turn."""
        if turn.kind not in (TurnKind.TRAIN, TurnKind.EVALUATE, TurnKind.AVERAGE):
            self._does = "this site looks after the hand-off key"
            self._refresh()
            return
        self._goes_on(turn.round)
        now = self._clock()
        self._waited += max(0.0, now - self._ended)
        self._begun, self._batches = now, []
        self._does = f"this site {_DOES[turn.kind.value]}"
        trains = turn.kind is TurnKind.TRAIN
        batch_size = self._client.model.config.batch_size
        self._num_batches = self._client.model.data.num_train_batches(batch_size) if trains else None
        self._refresh()

    def _goes_on(self, round: int) -> None:
        # A site that comes late, or back, has not seen the round's beginning.
        self._pace.round_began(round, is_whole=round == 1 or self._round == round - 1)
        self._round = round

    def trained(self, turn: Turn, batch: Batch, loss: float) -> None:
        """One batch of this site's turn."""
        self._batches.append((loss, len(batch.inputs)))
        self._refresh_at_times()

    def scored(self, turn: Turn, scores: Mapping[str, Mapping[str, float]]) -> None:
        """What this site's images say of the model."""
        for phase, values in scores.items():
            if phase == "validation":
                self._of(turn.round).validation = values
            if not self.is_live:
                log.info("round %d of %d: %s: %s", turn.round, self._num_rounds, phase, self._said(values))
        self._refresh()

    def counted(self, turn: Turn) -> None:
        """The turn counts."""
        self._ended = self._clock()
        seconds = self._ended - self._begun
        if turn.kind is TurnKind.TRAIN and self._batches:
            self._trained += seconds
            self._of(turn.round).train_loss = loss = mean_loss(self._batches)
            images = sum(number for _, number in self._batches)
            if not self.is_live:
                log.info(
                    "round %d of %d: trained %d batches in %.1f s: loss %.4f, %.0f images/s; %s",
                    *(turn.round, self._num_rounds, len(self._batches), seconds, loss),
                    *(images / max(seconds, 1e-9), self._left()),
                )
        self._does = "waits"
        self._refresh()

    def undone(self, turn: Turn, why: str) -> None:
        """The turn never happened."""
        self._ended, self._does = self._clock(), "waits: its turn was rolled back"
        self._refresh()

    def warned(self, warned: Warned) -> None:
        """Something that a person should look at."""
        self._warnings.append(warned.text)
        log.warning("%s", warned.text)
        self._refresh()

    def finished(self, client: Client, release: Release) -> None:
        """The run is over, and this site has its model."""
        self._is_over, self._does = True, "the run is over"
        self._refresh()

    def close(self) -> None:
        """The run is over here, well or not: leaves the last picture, gives the cursor back. May be repeated."""
        self._leave()

    def seconds_left(self) -> float | None:
        """Seconds to the end of the run, None where that is not known."""
        return 0.0 if self._is_over else self._pace.seconds_left(self._num_rounds)

    def _of(self, round: int) -> _Round:
        return self._rounds.setdefault(round, _Round())

    def _left(self) -> str:
        seconds = self.seconds_left()
        return "time left is known after a whole round" if seconds is None else f"{duration(seconds)} left"

    def _said(self, scores: Mapping[str, float]) -> str:
        named = [f"{name} {scores[key]:.3f}" for key, name in self._columns.items() if key in scores]
        return ", ".join([f"loss {scores['loss']:.4f}", *named, f"n {scores.get('num_images', 0):.0f}"])

    def _picture(self) -> Group:
        parts: list[Table | Text | str] = [self._headline(), self._costs()]
        if self._rounds:
            parts += ["", self._table()]
        parts += [Text(f"! {text}", style="yellow") for text in self._warnings[-3:]]
        return Group(*parts)

    def _headline(self) -> Table:
        grid = Table.grid(padding=(0, 2, 0, 0))
        place = f"round {self._round} of {self._num_rounds}" if self._round else "not begun"
        row: list[Text | ProgressBar] = [Text(place, style="bold"), Text(self._does, style="bold cyan")]
        if self._num_batches and self._does == "this site trains":
            done = len(self._batches)
            row += [
                ProgressBar(total=self._num_batches, completed=done, width=24),
                Text(f"{done}/{self._num_batches} batches"),
            ]
        grid.add_row(*row)
        return grid

    def _costs(self) -> Text:
        up, down = (sum(both) for both in zip(self._earlier_traffic, self._traffic(), strict=True))
        said = []
        if self._does == "this site trains" and self._batches:
            seconds = max(self._clock() - self._begun, 1e-9)
            images = sum(number for _, number in self._batches)
            said.append(f"loss {self._batches[-1][0]:.4f}, {images / seconds:.0f} images/s")
        if self._round and not self._is_over:
            said.append(self._left())
        said.append(f"up {size(up)}, down {size(down)}")
        said.append(f"{duration(self._trained)} training, {duration(self._waited)} waiting")
        return Text("; ".join(said))

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("round", "train loss", "validation loss", *self._columns.values(), "n"):
            # Each word on a line of its own: the table fits into eighty columns.
            table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True, vertical="bottom")
        before = None
        main = main_metric(self._task)
        for number in sorted(self._rounds)[-_ROUNDS_SHOWN:]:
            one = self._rounds[number]
            now = one.validation.get(main)
            values = [
                shown(one.validation.get(key)) + (_trend(before, now) if key == main else "")
                for key in self._columns
            ]
            before = now
            table.add_row(
                str(number),
                shown(one.train_loss, 4),
                shown(one.validation.get("loss"), 4),
                *values,
                f"{one.validation.get('num_images', 0):.0f}",
            )
        return table


def print_end(task: str, scores: Mapping[str, Mapping[str, float]], best_round: int, folder: Path) -> None:
    """Prints what the run came to at this site, on stdout.

    Args:
        task: "classification" or "segmentation".
        scores: of the last round, by phase.
        best_round: by validation over all sites, 0 where nothing was validated.
        folder: RUN/clients/NAME.
    """
    table = Table(title="this site's images, the last round's model")
    table.add_column("images", no_wrap=True)
    for name in ("n", "loss", *COLUMNS[task].values()):
        table.add_column(name, justify="right")
    for phase in ("validation", "test"):
        values = scores.get(phase)
        if values:
            cells = [shown(values.get(key)) for key in COLUMNS[task]]
            table.add_row(phase, f"{values.get('num_images', 0):.0f}", shown(values.get("loss"), 4), *cells)
    Console().print(table)
    if best_round:
        print(f"best round by validation over all sites: {best_round}")
    model = folder / "model.pt"
    if model.exists():
        print(f"the model, of the last round and of the best one: {model}")
    print(f"everything is in {folder}; for the curves: tensorboard --logdir {folder}")


def size(num_bytes: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"


def _trend(before: float | None, now: float | None) -> str:
    if before is None or now is None:
        return "  "
    return " ▲" if now > before else " ▼" if now < before else " ="
