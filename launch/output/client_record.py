"""What a client writes down of its own training: RUN/clients/NAME/metrics.jsonl, summary.json and figures.

As the server's files, and of this client alone: its losses, its scores, and what each of its turns took. A turn's lines
count when its event "turn" has been written; those of a turn that never came to its end are taken back.
"""

from __future__ import annotations

import json
import logging
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from suture.launch.options.options import RunOptions
from suture.launch.output import figures
from suture.launch.output.round_warnings import ROUND_DONE, RoundWarnings, Warned, WarningRecorder
from suture.models.plugins import split
from suture.runtime.client.client import Client
from suture.runtime.data.client_data import Batch, ClientData
from suture.runtime.data.source import Task
from suture.runtime.errors import CheckpointError
from suture.runtime.participant.participant import NoClientObserver
from suture.runtime.records.tracking import METRICS_FILE, Tracker, read_events, read_metrics
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.state.checkpoint import write_atomically
from suture.runtime.training.objectives import main_score
from suture.runtime.wire.messages import Release, Welcome

log = logging.getLogger(__name__)

COUNTED = "turn"
"""The event of a turn that counted."""
_DOES = {TurnKind.TRAIN: "training", TurnKind.AVERAGE: "averaging", TurnKind.EVALUATE: "evaluating"}


@dataclass(frozen=True)
class Earlier:
    """What earlier processes of a client left in its folder.

    Attributes:
        lines: of the turns that counted, as `read_metrics` gives them.
        turns: the event of each of those turns.
        torn: numbers of turns that an interruption left unfinished.
        closed: the last round that was done.
    """

    lines: list[dict[str, Any]]
    turns: list[dict[str, Any]]
    torn: set[int]
    closed: int

    @classmethod
    def read(cls, folder: Path) -> Earlier:
        """What is there, which may be nothing."""
        path = folder / METRICS_FILE
        lines, events = (read_metrics(path), read_events(path)) if path.exists() else ([], [])
        turns = [event for event in events if event["event"] == COUNTED]
        torn = {line["turn"] for line in lines} - {event["turn"] for event in turns}
        closed = max((event["round"] for event in events if event["event"] == ROUND_DONE), default=0)
        return cls([line for line in lines if line["turn"] not in torn], turns, torn, closed)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was written."""
        return not (self.lines or self.torn)

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes that went up and came down in those turns."""
        return sum(turn["bytes_up"] for turn in self.turns), sum(turn["bytes_down"] for turn in self.turns)

    def seconds(self, kind: TurnKind) -> float:
        """Seconds that those turns of one kind took."""
        return float(sum(turn["seconds"] for turn in self.turns if turn["kind"] == kind.value))

    @property
    def waited(self) -> float:
        """Seconds that the client waited before them."""
        return float(sum(turn["waited"] for turn in self.turns))


class ClientRecord(NoClientObserver):
    """One client's numbers, for its own people; see `session.ClientObserver`.

    A disk that takes no more costs the numbers, not the training; a person is told once.

    Args:
        options: the run's, resolved.
        folder: where to write, None for RUN/clients/NAME in the folder that the server names.
        curves: whether to draw TensorBoard curves; where the server's lie on the same disk they say the same.
        traffic: bytes that have gone up and come down so far, where somebody counts them.
        warn: is given each warning.

    Attributes:
        scores: the newest, by phase.
        best_round: at the end, the best by validation over all clients; 0 where nothing was validated.
        is_finished: whether the run is over and this client has had its part of it.
    """

    def __init__(
        self,
        options: RunOptions,
        folder: Path | None = None,
        *,
        curves: bool = False,
        traffic: Callable[[], tuple[int, int]] | None = None,
        warn: Callable[[Warned], None] = lambda warned: None,
    ) -> None:
        self._options, self._folder, self._curves = options, folder, curves
        self._traffic = traffic or (lambda: (0, 0))
        self._warn = warn
        self._recorder: WarningRecorder | None = None
        self._tracker: Tracker | None = None
        self._newest = 0
        self._round, self._closed, self._best = 0, 0, (0, float("-inf"))
        self.scores: dict[str, dict[str, float]] = {}
        self.best_round = 0
        self.is_finished = False
        self._seconds = dict.fromkeys((*_DOES.values(), "waiting"), 0.0)
        self._num_trained = 0
        self._turn_begun = self._turn_ended = time.monotonic()
        self._batches: list[tuple[float, int]] = []
        self._crossed = self._earlier_traffic = (0, 0)
        self._is_broken = False

    def joined(self, client: Client, welcome: Welcome) -> None:
        """Opens the files, once a process; takes back what an earlier process had begun and not ended."""
        self._client = client
        if self._recorder is not None or self._is_broken:
            return
        self._folder = self._folder or Path(welcome.run_dir) / "clients" / client.name
        self._write(self._open)

    def _open(self) -> None:
        assert self._folder is not None
        warnings, earlier = RoundWarnings(len(self._client.model.data.classes)), Earlier.read(self._folder)
        step = max((line["step"] for line in earlier.lines), default=0)
        resume = None if earlier.is_empty else step
        self._tracker = Tracker(self._folder, resume_step=resume, of_client=True, curves=self._curves)
        self._recorder = WarningRecorder(self._tracker, warnings, self._warn)
        for turn in sorted(earlier.torn):
            self._event("rolled_back", turn=turn, client=self._client.name, reason="interrupted")
        for line in earlier.lines:
            warnings.take(line)
            self._newest, self._round = max(self._newest, line["turn"]), line["round"]
            if line["phase"] != "train":
                self._scored(line["round"], line["phase"], plain_scores(line))
        for kind, does in _DOES.items():
            self._seconds[does] += earlier.seconds(kind)
        self._seconds["waiting"] += earlier.waited
        self._num_trained += sum(turn["images"] for turn in earlier.turns)
        self._closed, self._earlier_traffic = earlier.closed, earlier.traffic
        if earlier.torn:
            log.info("a turn that an interruption left unfinished does not count: %s", sorted(earlier.torn))

    def began(self, turn: Turn) -> None:
        """One of the run's turns begins here; what is written of later ones never happened."""
        if turn.kind not in _DOES:
            return
        self._turn_begun, self._batches = time.monotonic(), []
        if turn.number <= self._newest:
            self._newest = turn.number - 1
            self._write(lambda: self._event("went_back", after_turn=turn.number - 1, step=turn.step))
        if turn.round != self._round:
            self._close_round()
        self._round = turn.round

    def trained(self, turn: Turn, batch: Batch, loss: float) -> None:
        """Writes a batch's loss."""
        num_images, step = len(batch.inputs), turn.step + batch.number + 1
        self._batches.append((loss, num_images))
        self._newest = max(self._newest, turn.number)
        recorder = self._recorder
        if recorder is not None:
            self._write(
                lambda: recorder.train_step(step, turn.round, turn.number, turn.client, loss, num_images)
            )

    def scored(self, turn: Turn, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Writes what an evaluation gave."""
        self._newest = max(self._newest, turn.number)
        recorder = self._recorder
        for phase, values in scores.items():
            self._scored(turn.round, phase, dict(values))
            if recorder is not None:
                place = (turn.step, turn.round, turn.number, turn.client, phase)
                self._write(partial(recorder.scores, *place, values))

    def _scored(self, round: int, phase: str, scores: dict[str, float]) -> None:
        self.scores[phase] = scores
        value = main_score(self._task, scores) if phase == "validation" else None
        if value is not None and value > self._best[1]:
            self._best = (round, value)

    @property
    def _task(self) -> str:
        return self._options.task

    def counted(self, turn: Turn) -> None:
        """The turn counts: what it took."""
        if turn.kind not in _DOES:
            return
        now, crossed = time.monotonic(), self._traffic()
        seconds, waited = now - self._turn_begun, max(0.0, self._turn_begun - self._turn_ended)
        self._turn_ended = now
        self._seconds[_DOES[turn.kind]] += seconds
        self._seconds["waiting"] += waited
        num_images = sum(images for _, images in self._batches)
        fields = {
            "round": turn.round,
            "turn": turn.number,
            "client": turn.client,
            "kind": turn.kind.value,
            "seconds": round(seconds, 6),
            "waited": round(waited, 6),
            "batches": len(self._batches),
            "images": num_images,
            "bytes_up": crossed[0] - self._crossed[0],
            "bytes_down": crossed[1] - self._crossed[1],
        }
        self._num_trained += num_images
        self._crossed, self._newest = crossed, max(self._newest, turn.number)
        if self._batches:
            self.scores["train"] = {"loss": mean_loss(self._batches)}
        self._write(lambda: self._event(COUNTED, **fields))
        if turn.kind is TurnKind.EVALUATE:  # the last that a client does in a round
            self._close_round()

    def undone(self, turn: Turn, why: str) -> None:
        """The turn never happened."""
        if turn.kind in _DOES:
            self._write(lambda: self._event("rolled_back", turn=turn.number, client=turn.client, reason=why))

    def finished(self, client: Client, release: Release) -> None:
        """Writes the summary and draws the figures."""
        self.is_finished, self.best_round = True, release.best_round or self._best[0]
        self._close_round()
        if self._tracker is not None:
            self._write(self._tracker.close)
        self._write(partial(self._summarise, release))
        self._write(self._draw)

    def _close_round(self) -> None:
        if self._round > self._closed:
            self._closed = done = self._round
            best = self._best[0]
            self._write(lambda: self._event(ROUND_DONE, round=done, best_round=best))

    def _event(self, name: str, **fields: Any) -> None:
        if self._recorder is not None:
            self._recorder.event(name, **fields)

    def summary(self, weights: str | None = None) -> dict[str, Any]:
        """What the run has come to at this client so far."""
        client, options = self._client, self._options
        data = client.model.data
        up, down = (sum(both) for both in zip(self._earlier_traffic, self._traffic(), strict=True))
        trained = self._seconds["training"]
        return {
            "client": client.name,
            "task": self._task,
            "model": options.model,
            "cut": options.cut,
            "labels": options.labels,
            "data": split(options.data)[0],
            "images": images_by_set(data),
            "patients": data.num_patients,
            "data_notes": list(data.notes),
            "classes": _class_counts(client),
            "rounds": options.epochs,
            "scores": self.scores,
            "best_round": self.best_round,
            "seconds": {name: round(value, 3) for name, value in self._seconds.items()},
            "wall_seconds": round(sum(self._seconds.values()), 3),
            "images_per_second": self._num_trained / trained if trained else 0.0,
            "bytes": {"up": up, "down": down},
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "weights_sha256": weights,
        }

    def _summarise(self, release: Release) -> None:
        assert self._folder is not None
        # Without a top there is no whole model: the server keeps it to itself.
        weights = (
            self._client.model_digest(self._client.whole_model(release, best=False)) if release.top else None
        )
        text = json.dumps(self.summary(weights), indent=2) + "\n"
        write_atomically(self._folder / "summary.json", text.encode())

    def _draw(self) -> None:
        assert self._folder is not None
        charts, records = self._folder / "figures", read_metrics(self._folder / METRICS_FILE)
        charts.mkdir(exist_ok=True)
        figures.training_loss(records, charts / "training_loss.png")
        figures.metrics_by_round(records, self._task, charts / "metrics_by_round.png")

    def _write(self, write: Callable[[], None]) -> None:
        """Does what touches the disk; the first time that it cannot be done a person is told, and then no more is."""
        if self._is_broken:
            return
        try:
            write()
        except (CheckpointError, OSError) as error:
            self._is_broken, self._recorder = True, None
            cause = error if isinstance(error, OSError) else error.__cause__
            log.warning(
                "%s: cannot write to %s (%s): training goes on and no more numbers are written; make room there",
                self._client.name,
                self._folder,
                getattr(cause, "strerror", None) or error,
            )


def mean_loss(batches: list[tuple[float, int]]) -> float:
    """The mean over the images of (loss, images) of each batch."""
    return sum(loss * images for loss, images in batches) / sum(images for _, images in batches)


def images_by_set(data: ClientData) -> dict[str, int]:
    """How many images a client trains, validates and tests on."""
    return {name: len(getattr(data.share, name)) for name in ("train", "validation", "test")}


def _class_counts(client: Client) -> dict[str, int]:
    if client.model.data.task is Task.SEGMENTATION:
        return {}
    counts = client.model.data.class_counts("train")
    return dict(zip(client.model.data.classes, counts, strict=True))


def plain_scores(line: Mapping[str, Any]) -> dict[str, float]:
    """The scores of a line of metrics.jsonl, without its place."""
    return {
        name: value
        for name, value in line.items()
        if name not in ("step", "round", "turn", "client", "phase") and value is not None
    }
