"""Who is told how a run goes: a recorder of its numbers and a watcher for a person; either may be a null object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from suture.runtime.errors import CheckpointError
from suture.runtime.scheduler import Group, Turn


class Recorder(Protocol):
    """What is told of a run's numbers; see `tracking.Tracker`."""

    def train_step(
        self, step: int, round: int, turn: int, client: str, loss: float, num_images: int
    ) -> None: ...
    def scores(
        self, step: int, round: int, turn: int, client: str, phase: str, scores: Mapping[str, float]
    ) -> None: ...
    def event(self, name: str, **fields: object) -> None: ...
    def flush(self) -> None: ...


class Watcher(Protocol):
    """What is told of a run's progress, for a person; see ``suture.launch.output.progress``."""

    def turn_started(self, round: int, turn: int, clients: Group, kind: str, num_batches: int) -> None: ...
    def batch_done(self, client: str, loss: float, num_images: int) -> None: ...
    def turn_done(self) -> None: ...
    def client_state(self, client: str, state: str) -> None: ...
    def scores(self, client: str, phase: str, scores: Mapping[str, float]) -> None: ...
    def round_done(self, round: int, best_round: int) -> None: ...


class StoppingRecorder:
    """Stops the run when another recorder cannot write any more: a turn whose numbers are lost must not count.

    An event that is lost stops the run, too, but does not interrupt what it tells of, such as losing a member.

    Args:
        recorder: writes the numbers.
        stop: ends the run; is called once.
    """

    def __init__(self, recorder: Recorder, stop: Callable[[CheckpointError], None]) -> None:
        self._recorder, self._stop = recorder, stop
        self._error: CheckpointError | None = None

    def train_step(self, step: int, round: int, turn: int, client: str, loss: float, num_images: int) -> None:
        self._or_stop(lambda: self._recorder.train_step(step, round, turn, client, loss, num_images))

    def scores(
        self, step: int, round: int, turn: int, client: str, phase: str, scores: Mapping[str, float]
    ) -> None:
        self._or_stop(lambda: self._recorder.scores(step, round, turn, client, phase, scores))

    def event(self, name: str, **fields: object) -> None:
        with suppress(CheckpointError):
            self._or_stop(lambda: self._recorder.event(name, **fields))

    def flush(self) -> None:
        self._or_stop(self._recorder.flush)

    def _or_stop(self, write: Callable[[], None]) -> None:
        if self._error is not None:
            raise self._error
        try:
            write()
        except CheckpointError as error:
            self._error = error
            self._stop(error)
            raise


class StepLog:
    """Writes the steps of the turn that is being played down.

    Args:
        watcher: is told the progress.
    """

    def __init__(self, watcher: Watcher) -> None:
        self.recorder: Recorder = NoRecorder()
        self.num_done = 0
        self._watcher = watcher

    def step_done(self, turn: Turn, loss: float, num_images: int) -> None:
        """A step of ``turn`` has been computed."""
        self.num_done += 1
        step = turn.step + self.num_done
        self.recorder.train_step(step, turn.round, turn.number, turn.client, loss, num_images)
        self._watcher.batch_done(turn.client, loss, num_images)


class NoRecorder:
    """Keeps nothing."""

    def train_step(
        self, step: int, round: int, turn: int, client: str, loss: float, num_images: int
    ) -> None: ...
    def scores(
        self, step: int, round: int, turn: int, client: str, phase: str, scores: Mapping[str, float]
    ) -> None: ...
    def event(self, name: str, **fields: object) -> None: ...
    def flush(self) -> None: ...


class NoWatcher:
    """Shows nothing."""

    def turn_started(self, round: int, turn: int, clients: Group, kind: str, num_batches: int) -> None: ...
    def batch_done(self, client: str, loss: float, num_images: int) -> None: ...
    def turn_done(self) -> None: ...
    def client_state(self, client: str, state: str) -> None: ...
    def scores(self, client: str, phase: str, scores: Mapping[str, float]) -> None: ...
    def round_done(self, round: int, best_round: int) -> None: ...
