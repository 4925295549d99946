"""Where a step's time goes (``--profile``): a timer that parts of a step start and stop, and one that does nothing.

A part that begins inside another stops the other's clock until it ends, so that a step's parts add up. Times are
those of one process alone: a client's timer knows nothing of the server's and the other way round.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from suture.runtime.data.client_data import Batch
from suture.runtime.scheduler import Turn

SENDING, WAITING, SERVER = "sending", "waiting", "server"
"""A client that hands its message over, and one that waits for the answer; and what the server computes meanwhile."""


T = TypeVar("T")


@dataclass
class Lap:
    """One step, so far.

    Attributes:
        seconds: by part.
        spans: what of it was sending, waiting or the server's: its name, and when it began and ended, on this
            host's clock since its start, which all its processes share.
        window: when the step began and ended.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    window: tuple[float, float] = (0.0, 0.0)


class StepTimer(Protocol):
    """What takes a step's times."""

    @property
    def part(self) -> Callable[[str], AbstractContextManager[Any]]:
        """A context in which the time counts for a name."""

    def loading(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, from the loader."""

    def steps(self, turn: Turn, done: Iterator[T]) -> Iterator[T]:
        """What a turn's steps lead to, one after the other, as it comes."""


class NoStepTimer:
    """Takes no time."""

    def __init__(self) -> None:
        self.part: Callable[[str], AbstractContextManager[Any]] = nullcontext

    def loading(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return batches

    def steps(self, turn: Turn, done: Iterator[T]) -> Iterator[T]:
        return done


class RunningStepTimer:
    """Takes times of one thread at a time.

    Args:
        keep: is given each step that has ended: its turn, its batch's number and its times.
    """

    def __init__(self, keep: Callable[[Turn, int, Lap], None] = lambda turn, batch, lap: None) -> None:
        self._keep = keep
        self._lap = Lap()
        self._open: list[str] = []
        self._since = 0.0

    def take(self) -> Lap:
        """What was measured since the last call."""
        lap, self._lap = self._lap, Lap()
        return lap

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begun = self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            ended = self._switch()
            self._open.pop()
            if name in (SENDING, WAITING, SERVER):
                self._lap.spans.append((name, begun, ended))

    def _switch(self) -> float:
        """Counts the time since the last change for what was running."""
        now = time.perf_counter()
        if self._open:
            running = self._open[-1]
            self._lap.seconds[running] = self._lap.seconds.get(running, 0.0) + now - self._since
        self._since = now
        return now

    def loading(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            with self.part("loader"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def steps(self, turn: Turn, done: Iterator[T]) -> Iterator[T]:
        self.take()
        for number in itertools.count():
            begun = time.perf_counter()
            step = next(done, None)
            if step is None:
                return
            lap = self.take()
            lap.window = begun, time.perf_counter()
            self._keep(turn, number, lap)
            yield step
