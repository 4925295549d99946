"""Who trains when, and the schedules by name: pure Python, no torch, no network.

A new schedule is a class and a line of ``SCHEDULES``. One of one's own is a class, or a function, that is called with
what follows its name and with the run's seed: ``module:FILE_OR_PACKAGE:NAME[:ARGUMENT]``, or an entry point.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from suture.models.plugins import FORM, is_outside, nearest, split
from suture.runtime.errors import ConfigError
from suture.runtime.plugins import load


class TurnKind(StrEnum):
    """What a client is asked to do next."""

    TRAIN = "train"
    AVERAGE = "average"
    KEY = "key"
    TAKE = "take"
    ADMIT = "admit"
    WITNESS = "witness"
    EVALUATE = "evaluate"
    WAIT = "wait"
    END = "end"


class Together(StrEnum):
    """How clients that train at once share the server: what its queue of steps does with their batches."""

    PARALLEL = "parallel"
    SPLITFED = "splitfed"
    CONCAT = "concat"

    @property
    def server_waits_for_all(self) -> bool:
        """Whether no client computes while the server does, so that it may use all cores."""
        return self is Together.CONCAT


Group = tuple[str, ...]
"""The clients of one training turn: one, or those that train at once."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One client's turn.

    Attributes:
        kind: train, average (open what each client of the last turn posted, seal the mean), evaluate, wait (ask
            again) or end. Between hospitals also an errand, which is no turn of the run's: key (make a new hand-off
            key and seal the newest parts under it), take (take the key that was released, and say so), admit
            (release the key to those who ask), witness (say whether a hand-off that another site accuses is bad).
        client: whose turn it is.
        round: from 1.
        number: counts the turns of the whole run from 1; a turn that was rolled back gives its number back.
        step: train batches of the whole run before this turn.
        handoff: number of the turn that sealed the newest hand-off, 0 while there is none.
        reason: with kind end, why the run stopped early, else empty.
        error: with a reason, the name of the error's class; see ``errors.ERRORS``.
        together: kind train: others train in this turn, too, so what is sealed at its end is this client's share
            of a mean and not the next client's start.
        epoch: number of the newest hand-off key's epoch, 0 where sites sign nothing.
        meanwhile: with kind wait, what ``client`` (one, or several with a comma between) does now: train, average or
            evaluate, in ``round`` and turn ``number``; empty where nobody has a turn.
    """

    kind: TurnKind
    client: str = ""
    round: int = 0
    number: int = 0
    step: int = 0
    handoff: int = 0
    reason: str = ""
    error: str = ""
    together: bool = False
    epoch: int = 0
    meanwhile: str = ""


class Scheduler(Protocol):
    """Orders the training turns of a round.

    Attributes:
        together: how the clients of one turn share the server; None where each has a turn of its own.
    """

    together: Together | None

    def order(self, round: int, clients: Sequence[str]) -> list[Group]:
        """The training turns of ``round``, each with the names of those of ``clients`` who train in it."""

    def steps(self, round: int, clients: Sequence[str]) -> Sequence[str] | None:
        """The order in which the server takes the batches of a turn, where it was written down; else None."""


class InTurns:
    """Base of the schedules that write no order of steps down: each client has a turn of its own."""

    together: Together | None = None

    def steps(self, round: int, clients: Sequence[str]) -> Sequence[str] | None:
        return None


class RoundRobin(InTurns):
    """Every client once a round, always in the same order (Gupta and Raskar 2018, arXiv 1810.06060)."""

    def order(self, round: int, clients: Sequence[str]) -> list[Group]:
        return [(client,) for client in clients]


class Shuffled(InTurns):
    """Every client once a round, in an order drawn from (seed, round)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def order(self, round: int, clients: Sequence[str]) -> list[Group]:
        order = list(clients)
        # The order of turns is the server's own choice, so the public seed may decide it.
        random.Random(f"suture/turns/{self._seed}/{round}").shuffle(order)
        return [(client,) for client in order]


class AtOnce(InTurns):
    """All clients in one turn a round (Thapa et al., AAAI 2022, arXiv 2004.12088)."""

    def __init__(self, together: Together) -> None:
        self.together = together

    def order(self, round: int, clients: Sequence[str]) -> list[Group]:
        return [tuple(clients)]


class Replay:
    """Exactly the training turns that counted in another run, from its turns.jsonl.

    Raises:
        ConfigError: the file is missing, is not a list of turns, or names a client that is not in this run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            self._turns: list[tuple[int, Group, list[str]]] = [
                (line["round"], tuple(line["client"].split("+")), line.get("order", "").split())
                for line in lines
                if line["kind"] == TurnKind.TRAIN
            ]
            # A client that was alone in its round trained as in turns, whatever the schedule.
            ways = {
                line["together"] for line in lines if line["kind"] == TurnKind.TRAIN and "together" in line
            }
            self.together = Together(ways.pop()) if ways else None
            if ways:
                raise ValueError("its turns are of several schedules")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"cannot replay turns from {path}: {error}; name a run's turns.jsonl"
            ) from error

    def order(self, round: int, clients: Sequence[str]) -> list[Group]:
        order = [group for turn_round, group, _ in self._turns if turn_round == round]
        for client in (client for group in order for client in group):
            if client not in clients:
                # Its turn would be waited for in vain.
                raise ConfigError(
                    f"{self._path} has a turn of {client} in round {round}, who is not in this run; start as many "
                    "clients as the run that it is from"
                )
        return order

    def steps(self, round: int, clients: Sequence[str]) -> Sequence[str] | None:
        for turn_round, group, steps in self._turns:
            if (turn_round, group) == (round, tuple(clients)) and steps:
                return steps
        return None


@dataclass(frozen=True, kw_only=True)
class ScheduleEntry:
    """A line of the registry. Queue and cores follow from what ``build`` makes, see `Scheduler` and `Together`.

    Attributes:
        name: as on the command line.
        help: one line.
        build: the scheduler, from what follows the colon and the run's seed.
        argument: what follows the colon, such as "FILE"; empty where nothing does.
    """

    name: str
    help: str
    build: Callable[[str, int], Scheduler]
    argument: str = ""

    @property
    def form(self) -> str:
        """How it is written."""
        return f"{self.name}:{self.argument}" if self.argument else self.name


_ENTRIES = (
    ScheduleEntry(
        name="round-robin",
        help="one client after the other, always in the same order",
        build=lambda argument, seed: RoundRobin(),
    ),
    ScheduleEntry(
        name="shuffled",
        help="one after the other, in an order drawn anew for each round",
        build=lambda argument, seed: Shuffled(seed),
    ),
    ScheduleEntry(
        name="parallel",
        help="all at once: one top takes their batches one by one; bottoms are averaged",
        build=lambda argument, seed: AtOnce(Together.PARALLEL),
    ),
    ScheduleEntry(
        name="splitfed",
        help="all at once: a top each; tops and bottoms are averaged",
        build=lambda argument, seed: AtOnce(Together.SPLITFED),
    ),
    ScheduleEntry(
        name="concat",
        help="all at once: their batches are joined to one step; bottoms are averaged",
        build=lambda argument, seed: AtOnce(Together.CONCAT),
    ),
    ScheduleEntry(
        name="replay",
        argument="FILE",
        help="exactly the turns that counted in another run, from its turns.jsonl",
        build=lambda argument, seed: Replay(Path(argument)),
    ),
)
SCHEDULES: dict[str, ScheduleEntry] = {entry.name: entry for entry in _ENTRIES}
KIND = "schedule"


def parse_schedule(spec: str, seed: int) -> Scheduler:
    """The scheduler that ``--schedule`` names.

    Raises:
        ConfigError: the name is unknown, or an argument is missing or superfluous.
    """
    name, argument = split(spec)
    entry = SCHEDULES.get(name)
    if entry is not None and bool(entry.argument) == bool(argument) and (argument is None or entry.argument):
        return entry.build(argument or "", seed)
    if entry is None and is_outside(KIND, name):
        return _outside(name, argument or "", seed)
    forms = ", ".join([*(known.form for known in SCHEDULES.values()), FORM])
    near = nearest(name, SCHEDULES) if entry is None else ""
    raise ConfigError(f"schedule must be one of {forms}, got {spec!r}{near}")


def _outside(name: str, argument: str, seed: int) -> Scheduler:
    build = load(KIND, name)
    scheduler = build(argument, seed) if callable(build) else build
    missing = [part for part in ("together", "order", "steps") if not hasattr(scheduler, part)]
    if missing:
        raise ConfigError(
            f"schedule {name}: {scheduler!r:.60} has no {' and no '.join(missing)}; extend "
            f"{InTurns.__module__}.InTurns"
        )
    made: Scheduler = scheduler
    return made
