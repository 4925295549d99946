"""What a client's own people may want while a run goes on: that it leaves for good, or pauses."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class Wish(StrEnum):
    """What a client is to do instead of its next turn."""

    LEAVE = "leave"
    PAUSE = "pause"


class Parting(Exception):
    """The client goes, because its own people want it to: no error, and nothing that the server is told as one.

    Attributes:
        wish: whether it comes back.
    """

    def __init__(self, wish: Wish) -> None:
        super().__init__(wish.value)
        self.wish = wish


class Wishes(Protocol):
    """Where a client looks for what its people want. Both methods are called often and must not wait for a disk."""

    def between_turns(self, awaits_mean: bool) -> None:
        """Is called before a turn is asked for, and again and again while one is waited for.

        Args:
            awaits_mean: the client has trained at once with others, and the mean of their parts is not made yet. A
                client that leaves for good before that undoes the turn for all of them.

        Raises:
            Parting: the client is to go now.
        """

    def in_turn(self) -> None:
        """Is called between two batches.

        Raises:
            Parting: the client is to go now, and what it did in this turn never happened.
        """


class NoWishes:
    """Nobody wants anything: the client takes part to the end."""

    def between_turns(self, awaits_mean: bool) -> None: ...
    def in_turn(self) -> None: ...
