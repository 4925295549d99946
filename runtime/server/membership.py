"""Who is in a run: members, the options they agreed on, and who was heard of when."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.futures import Future

from suture.runtime.errors import (
    ConfigError,
    EvictedError,
    NameTakenError,
    SutureError,
    TurnUndoneError,
    WireError,
)
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.client_turn import ClientTurn
from suture.runtime.wire.messages import Farewell, Heads, Hello, Refusal


@dataclass(eq=False)
class Member:
    """What the server knows of one who has joined, or is about to. Clients never see inside.

    ``refused`` is what its calls are answered with while it is no member. ``turn`` is its open turn, and ``undone``
    says why that was rolled back, until it has been told and asks for another. ``told_end`` is when it was told that
    the run is over, and ``end_heard`` when it last went on with its goodbye.
    """

    name: str = ""
    refused: SutureError | None = field(
        default_factory=lambda: WireError("a stranger is no member of this run; it must join first")
    )
    turn: ClientTurn | None = None
    hello: Hello | None = None
    waiting: Future[Turn | Refusal] | None = None
    waiting_since: float = 0.0
    last_seen: float = 0.0
    undone: str = ""
    told_end: float = 0.0
    end_heard: float = 0.0
    farewell: Farewell | None = None
    left: bool = False
    ping: Future[Tensor] | None = None
    heads: Future[Heads | Refusal] | None = None

    @property
    def open_turn(self) -> ClientTurn | None:
        """Its part in the turn that is being played, as long as something of it is left to do."""
        return self.turn if self.turn is not None and self.turn.is_open else None

    def without_turn(self) -> SutureError:
        """Why it may do nothing in a turn: it has none."""
        if self.undone:
            return TurnUndoneError(self.undone)
        return WireError(f"{self.name}: it was granted no turn, or has ended it; refused")

    def refuse(self, error: SutureError) -> None:
        """Answers whatever the client waits for."""
        self.answer(Refusal.of(error))
        heads, self.heads = self.heads, None
        if heads is not None:
            heads.set_result(Refusal.of(error))

    def answer(self, turn: Turn | Refusal) -> None:
        """Answers the client's waiting call, if there is one."""
        waiting, self.waiting = self.waiting, None
        if waiting is None:
            return
        if isinstance(turn, Turn) and turn.kind is TurnKind.END and not self.told_end:
            self.told_end = self.end_heard = time.monotonic()
        waiting.set_result(turn)


@dataclass(frozen=True, kw_only=True)
class OpenMembership:
    """Members come and go by themselves: one that is refused, fails or is lost costs the others nothing.

    Attributes:
        least: with so many present the run begins (or goes on after a restart) once ``grace`` is over; with all
            that are expected it begins at once.
        grace: seconds to wait, for the rest of those expected at the start and for whoever is lost at the end.
    """

    least: int
    grace: float

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ConfigError(f"min_clients must be at least 1, got {self.least}")
        if not self.grace >= 0:
            raise ConfigError(f"grace must be at least 0 seconds, got {self.grace}")


class Membership:
    """The members of one run.

    Args:
        expected: how many the run waits for before it begins.
        agreement: options that every member must share, as strings; "run" is the run's id where members were told it
            before they joined, so that a rank of another run that reached this port is refused.
        door: how members come and go; None where they were started as a whole and are not replaced.
    """

    def __init__(
        self, expected: int, agreement: Mapping[str, str], door: OpenMembership | None = None
    ) -> None:
        self._expected = expected
        self._agreement = dict(agreement)
        self.door = door
        self._enough_since: float | None = None
        self._members: dict[str, Member] = {}
        self.lost: list[str] = []
        self._shut_out: dict[str, EvictedError] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def __len__(self) -> int:
        return len(self._members)

    def get(self, name: str) -> Member | None:
        """The member of that name, None where there is none."""
        return self._members.get(name)

    @property
    def complete(self) -> bool:
        """Whether those have joined that the run waits for."""
        if self.door is None:
            return len(self._members) >= self._expected
        num_present, now = len(self.present()), time.monotonic()
        if num_present < self.door.least:
            self._enough_since = None
            return False
        self._enough_since = self._enough_since or now
        expected = self._expected - len(self._shut_out)  # who was put out is not waited for
        return num_present >= expected or now - self._enough_since >= self.door.grace

    @property
    def all_left(self) -> bool:
        """Whether there were members and none is left."""
        return bool(self._members) and all(member.left for member in self._members.values())

    def present(self) -> list[str]:
        """Those who are not lost, in the order in which people count: joining is a race, turns must not be."""
        return sorted((name for name in self._members if name not in self.lost), key=natural)

    def admit(self, member: Member, hello: Hello) -> None:
        """Takes a member in, whose ``hello`` has been checked for its form.

        Raises:
            ConfigError: an option that must agree differs; both values are named.
            NameTakenError: a client of that name is in the run.
            EvictedError: it was put out of it.
        """
        name = hello.client
        if name in self._shut_out:
            raise self._shut_out[name]
        run = self._agreement.get("run")
        if run is not None and hello.agreement.get("run") != run:
            raise ConfigError(
                f"{name} was started for another run than this server's; start all ranks of a run together, and two "
                "runs of one machine with a --master_port each"
            )
        for option in sorted(self._agreement.keys() | hello.agreement.keys()):
            ours, theirs = self._agreement.get(option), hello.agreement.get(option)
            if ours != theirs:
                raise ConfigError(
                    f"{name} has {option} = {theirs!s:.80}, the server has {ours}; start both with the same"
                )
        present = self._members.get(name)
        if present is not None and not present.left:
            raise NameTakenError(f"{name} is in the run already; give every client a name of its own")
        if present is not None:
            present.refused = WireError(f"{name} is no member of this run any more: it has joined anew")
        member.name, member.hello, member.last_seen = name, hello, time.monotonic()
        self._members[name], member.refused = member, None
        if name in self.lost:
            self.lost.remove(name)

    def training(self) -> list[str]:
        """Those of `present` that train; others only evaluate."""
        hellos = {name: self._members[name].hello for name in self.present()}
        return [name for name, hello in hellos.items() if hello is None or hello.num_batches > 0]

    def shut_out(self, name: str, why: str) -> EvictedError:
        """Lets a member in no more; what it is told."""
        error = self._shut_out.setdefault(name, EvictedError(f"{name} was put out of this run: {why}"))
        if (member := self.get(name)) is not None:
            member.refused = error
        return error

    @property
    def gone_for_good(self) -> set[str]:
        """Those who were put out, or left for good: nobody waits for them."""
        return set(self._shut_out)

    def lose(self, member: Member, error: SutureError) -> None:
        """Answers a member from now on with ``error``."""
        member.left = True
        member.refused = self._shut_out.get(member.name, error)
        member.refuse(error)


def natural(name: str) -> tuple[str, int, str]:
    """Sorts client2 before client10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or -1), name
