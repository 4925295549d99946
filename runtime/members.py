"""Who is in a run: seats, the options they agreed on, and who was heard of when."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch.futures import Future

from runtime.errors import ConfigError, StoppedError, WireError
from runtime.scheduler import Turn
from runtime.wire import Farewell, Hello, Refusal


@dataclass(eq=False)
class Seat:
    """One member's place at the server. Clients hold references to it and never see inside."""

    name: str = ""
    rpc_name: str = ""
    hello: Hello | None = None
    waiting: Future[Turn | Refusal] | None = None
    waiting_since: float = 0.0
    last_seen: float = 0.0
    uploaded: tuple[int, int] = (0, -1)
    num_stepped: int = 0
    farewell: Farewell | None = None
    left: bool = False

    def answer(self, turn: Turn) -> None:
        """Answers the client's waiting call, if there is one."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.set_result(turn)


class Members:
    """The members of one run.

    Args:
        expected: how many the run waits for before it begins.
        agreement: options that every member must share, as strings.
    """

    def __init__(self, expected: int, agreement: Mapping[str, str]) -> None:
        self._expected = expected
        self._agreement = dict(agreement)
        self._seats: dict[str, Seat] = {}
        self.lost: list[str] = []

    def __iter__(self) -> Iterator[Seat]:
        return iter(list(self._seats.values()))

    def __len__(self) -> int:
        return len(self._seats)

    def get(self, name: str) -> Seat | None:
        """The seat of a member, None where there is none of that name."""
        return self._seats.get(name)

    @property
    def complete(self) -> bool:
        """Whether as many have joined as the run waits for."""
        return len(self._seats) >= self._expected

    @property
    def all_left(self) -> bool:
        """Whether there were members and none is left."""
        return bool(self._seats) and all(seat.left for seat in self._seats.values())

    def present(self) -> list[str]:
        """Those who are not lost, in the order in which people count: joining is a race, turns must not be."""
        return sorted((name for name in self._seats if name not in self.lost), key=natural)

    def admit(self, seat: Seat, hello: Hello, rpc_name: str) -> None:
        """Takes a member in, whose ``hello`` has been checked for its form.

        Raises:
            ConfigError: an option that must agree differs; both values are named.
            WireError: the name is taken.
        """
        name = hello.client
        for option in sorted(self._agreement.keys() | hello.agreement.keys()):
            ours, theirs = self._agreement.get(option), hello.agreement.get(option)
            if ours != theirs:
                raise ConfigError(
                    f"{name} has {option} = {theirs!s:.80}, the server has {ours}; start both with the same"
                )
        present = self._seats.get(name)
        if present is not None and not present.left:
            raise WireError(f"{name} is in the run already; give every client a name of its own")
        seat.name, seat.hello, seat.rpc_name, seat.last_seen = name, hello, rpc_name, time.monotonic()
        self._seats[name] = seat
        if name in self.lost:
            self.lost.remove(name)

    def heard(self, seat: Seat) -> None:
        """A member called.

        Raises:
            WireError: it has not joined.
            StoppedError: it was given up in the meantime.
        """
        if self._seats.get(seat.name) is not seat:
            raise WireError(f"{seat.name or 'a stranger'} has no seat in this run; it must join first")
        if seat.left and seat.name in self.lost:
            raise StoppedError(f"{seat.name} was lost: the server did not hear from it; join again")
        seat.last_seen = time.monotonic()


def natural(name: str) -> tuple[str, int, str]:
    """Sorts client2 before client10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or -1), name
