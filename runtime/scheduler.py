"""Who trains when: pure Python, no torch, no network."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from suture.runtime.errors import ConfigError


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
    """How clients that train at once share the server; the page ``together`` has what it does."""

    PARALLEL = "parallel"
    SPLITFED = "splitfed"
    CONCAT = "concat"


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


class _Unwritten:
    """What schedules have in common that write no order of steps down; each client has a turn of its own by default."""

    together: Together | None = None

    def steps(self, round: int, clients: Sequence[str]) -> Sequence[str] | None:
        return None


class RoundRobin(_Unwritten):
    """Every client once a round, always in the same order (Gupta and Raskar 2018, arXiv 1810.06060)."""

    def order(self, round: int, clients: Sequence[str]) -> list[Group]:
        return [(client,) for client in clients]


class Shuffled(_Unwritten):
    """Every client once a round, in an order drawn from (seed, round)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def order(self, round: int, clients: Sequence[str]) -> list[Group]:
        order = list(clients)
        # The order of turns is the server's own choice, so the public seed may decide it.
        random.Random(f"suture/turns/{self._seed}/{round}").shuffle(order)
        return [(client,) for client in order]


class AtOnce(_Unwritten):
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
            lines = [json.loads(line) for line in path.read_text().splitlines()]
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


SCHEDULES = ("round-robin", "shuffled", *Together, "replay:FILE")


def parse_schedule(spec: str, seed: int) -> Scheduler:
    """The scheduler that ``--schedule`` names.

    Raises:
        ConfigError: the name is unknown.
    """
    name, _, argument = spec.partition(":")
    if name == "round-robin" and not argument:
        return RoundRobin()
    if name == "shuffled" and not argument:
        return Shuffled(seed)
    if name in tuple(Together) and not argument:
        return AtOnce(Together(name))
    if name == "replay" and argument:
        return Replay(Path(argument))
    raise ConfigError(f"schedule must be one of {', '.join(SCHEDULES)}, got {spec!r}")
