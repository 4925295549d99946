"""Who trains when: pure Python, no torch, no network."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from runtime.errors import ConfigError


class TurnKind(StrEnum):
    """What a client is asked to do next."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    WAIT = "wait"
    END = "end"


@dataclass(frozen=True, slots=True)
class Turn:
    """One client's turn.

    Attributes:
        kind: train, evaluate, wait (ask again) or end.
        client: whose turn it is.
        round: from 1.
        number: counts the turns of the whole run from 1; a turn that was rolled back gives its number back.
        step: train batches of the whole run before this turn.
        handoff: number of the turn that sealed the newest hand-off, 0 while there is none.
        reason: with kind end, why the run stopped early, else empty.
        error: with a reason, the name of the error's class; see ``errors.ERRORS``.
    """

    kind: TurnKind
    client: str = ""
    round: int = 0
    number: int = 0
    step: int = 0
    handoff: int = 0
    reason: str = ""
    error: str = ""


class Scheduler(Protocol):
    """Orders the training turns of a round."""

    def order(self, round: int, clients: Sequence[str]) -> list[str]:
        """The names of ``clients`` (in the order of joining) in the order in which they train in ``round``."""


class RoundRobin:
    """Every client once a round, always in the same order (Gupta and Raskar 2018, arXiv 1810.06060)."""

    def order(self, round: int, clients: Sequence[str]) -> list[str]:
        return list(clients)


class Shuffled:
    """Every client once a round, in an order drawn from (seed, round)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def order(self, round: int, clients: Sequence[str]) -> list[str]:
        order = list(clients)
        # The order of turns is the server's own choice, so the public seed may decide it.
        random.Random(f"suture/turns/{self._seed}/{round}").shuffle(order)
        return order


class Replay:
    """Exactly the training turns that counted in another run, from its turns.jsonl.

    Raises:
        ConfigError: the file is missing, is not a list of turns, or names a client that is not in this run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            self._turns = [
                (line["round"], line["client"]) for line in lines if line["kind"] == TurnKind.TRAIN
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"cannot replay turns from {path}: {error}; name a run's turns.jsonl"
            ) from error

    def order(self, round: int, clients: Sequence[str]) -> list[str]:
        order = [client for turn_round, client in self._turns if turn_round == round]
        for client in order:
            if client not in clients:
                # Its turn would be waited for in vain.
                raise ConfigError(
                    f"{self._path} has a turn of {client} in round {round}, who is not in this run; start as many "
                    "clients as the run that it is from"
                )
        return order


SCHEDULES = ("round-robin", "shuffled", "replay:FILE")


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
    if name == "replay" and argument:
        return Replay(Path(argument))
    raise ConfigError(f"schedule must be one of {', '.join(SCHEDULES)}, got {spec!r}")
