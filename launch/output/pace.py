"""How much time a run has left, from the rounds that it has played."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import timedelta

_ROUNDS_THAT_COUNT = 3


class Pace:
    """Takes the time of rounds; those before this process do not count.

    Args:
        clock: seconds from any origin, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rounds: list[float] = []
        self._round = 0
        self._begun = 0.0
        self._is_whole = True

    def round_began(self, round: int, is_whole: bool = True) -> None:
        """Round ``round`` goes on; the first call with another number ends the one before.

        Args:
            round: its number.
            is_whole: whether it was seen from its beginning: the time of another one says nothing.
        """
        if round == self._round:
            return
        now = self._clock()
        if self._round and self._is_whole and round == self._round + 1:
            self._rounds.append(now - self._begun)
        self._round, self._begun, self._is_whole = round, now, is_whole

    def seconds_left(self, num_rounds: int) -> float | None:
        """Seconds to the end of the last round, number ``num_rounds``; None before a whole round was seen."""
        if not self._rounds:
            return None
        each = statistics.median(self._rounds[-_ROUNDS_THAT_COUNT:])
        spent, after = self._clock() - self._begun, max(0, num_rounds - self._round)
        return max(0.0, each - spent) + after * each


def duration(seconds: float | None) -> str:
    """``seconds`` as H:MM:SS, a question mark for None."""
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))
