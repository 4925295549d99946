"""metrics.jsonl while it is still written: each reading goes on where the last one ended.

What counts is what `read_metrics` says counts, kept small: a training step takes 16 bytes.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suture.launch.output.report.values import number
from suture.launch.output.step_times import EVENT as PROFILED

_AT_ONCE = 4 << 20
_MOST_EVENTS = 1000
_OUTCOMES = {"lost": "lost", "put_out": "put out"}


@dataclass
class Steps:
    """Training steps of one client.

    Attributes:
        steps: numbers over the whole run.
        losses: of each; nan where it was not finite.
    """

    steps: array[int] = field(default_factory=lambda: array("q"))
    losses: array[float] = field(default_factory=lambda: array("d"))


@dataclass
class Cost:
    """What the turns of one client cost, from the events "turn".

    Attributes:
        seconds: by kind of turn ("train", "evaluate", "average", ...).
        waited: seconds for its turns.
        images: trained on.
        up: bytes sent.
        down: bytes received.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    waited: float = 0.0
    images: float = 0.0
    up: float = 0.0
    down: float = 0.0


class MetricsReader:
    """The numbers of a run's metrics.jsonl so far.

    Attributes:
        turns: training steps by turn and client, of the turns that count.
        scores: lines of evaluations that count, by turn.
        events: the newest other events, each with the round that it fell into.
        costs: by client; a turn that was rolled back has cost its time as well.
        states: what became of a client, where it does not take part: "lost" or "put out".
        clients: every name that occurred, in order.
        round: the last one that a line names.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reset()

    def _reset(self) -> None:
        self._offset, self._file = 0, -1
        self.turns: dict[int, dict[str, Steps]] = {}
        self.scores: dict[int, list[dict[str, Any]]] = {}
        self.events: list[dict[str, Any]] = []
        self.costs: dict[str, Cost] = {}
        self.states: dict[str, str] = {}
        self.clients: list[str] = []
        self.round = 0

    def read(self) -> None:
        """Takes in the whole lines that were added; no file is no lines.

        Raises:
            OSError: the file is there and cannot be read.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            self._reset()
            return
        with file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._file or found.st_size < self._offset:
                self._reset()  # another file has its place
                self._file = found.st_ino
            file.seek(self._offset)
            while lines := file.readlines(_AT_ONCE):
                if not lines[-1].endswith(b"\n"):
                    lines.pop()  # half written: next time
                    if not lines:
                        return
                for line in lines:
                    self._offset += len(line)
                    self._take(line)
                file.seek(self._offset)

    def curves(self) -> dict[str, Steps]:
        """The training steps of each client in the order of their numbers."""
        joined: dict[str, Steps] = {}
        for turn in sorted(self.turns):
            for client, steps in self.turns[turn].items():
                whole = joined.setdefault(client, Steps())
                whole.steps.extend(steps.steps)
                whole.losses.extend(steps.losses)
        return joined

    def last_losses(self) -> dict[str, float]:
        """Mean loss of each client's last turn, of the finite ones."""
        last = {
            client: steps.losses for turn in sorted(self.turns) for client, steps in self.turns[turn].items()
        }
        finite = {client: [loss for loss in losses if math.isfinite(loss)] for client, losses in last.items()}
        return {client: sum(losses) / len(losses) for client, losses in finite.items() if losses}

    def evaluations(self) -> list[dict[str, Any]]:
        """Lines of evaluations in the order of their turns."""
        return [line for turn in sorted(self.scores) for line in self.scores[turn]]

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                return
            if "event" in record:
                self._event(record)
            elif record.get("phase") == "train":
                self._step(record)
            elif "phase" in record:
                self.round = int(record["round"])
                known = record | {"client": self._met(record["client"]), "round": self.round}
                self.scores.setdefault(int(record["turn"]), []).append(known)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return  # torn by a crash, or not of ours: a page can do without a line

    def _step(self, record: Mapping[str, Any]) -> None:
        loss = math.nan if record["loss"] is None else float(record["loss"])
        turn, step, self.round = int(record["turn"]), int(record["step"]), int(record["round"])
        steps = self.turns.setdefault(turn, {}).setdefault(self._met(record["client"]), Steps())
        steps.steps.append(step)
        steps.losses.append(loss)

    def _event(self, record: dict[str, Any]) -> None:
        name = record["event"]
        if name == PROFILED:
            return
        if name == "turn":
            self._cost(record)
            return
        self.events.append({"round": self.round} | record)
        del self.events[:-_MOST_EVENTS]
        if name == "rolled_back":
            self._void({int(record["turn"])})
        elif name in ("resumed", "went_back"):
            after = int(record["after_turn"])
            self._void({turn for turn in (*self.turns, *self.scores) if turn > after})
        elif name in _OUTCOMES:
            self.states[str(record["client"])] = _OUTCOMES[name]
        elif name == "joined":
            self._met(record["client"])
        elif name == "begun":
            for client in record["clients"]:
                self._met(client)

    def _void(self, turns: set[int]) -> None:
        for turn in turns:
            self.turns.pop(turn, None)
            self.scores.pop(turn, None)

    def _cost(self, record: Mapping[str, Any]) -> None:
        cost, kind = (
            self.costs.setdefault(self._met(record["client"]), Cost()),
            str(record.get("kind", "train")),
        )
        cost.seconds[kind] = cost.seconds.get(kind, 0.0) + _amount(record.get("seconds"))
        cost.waited += _amount(record.get("waited"))
        cost.images += _amount(record.get("images")) if kind == "train" else 0.0
        cost.up += _amount(record.get("bytes_up"))
        cost.down += _amount(record.get("bytes_down"))

    def _met(self, client: object) -> str:
        name = str(client)
        self.states.pop(name, None)
        if name not in self.clients:
            self.clients.append(name)
        return name


def _amount(value: object) -> float:
    """A number of at least 0; 0 for what is none."""
    return max(0.0, number(value) or 0.0)
