"""Which turns counted and which comes next: the run's position, in plain Python.

A turn counts when it was committed; one that was rolled back never happened. The list of counted turns is
RUN/turns.jsonl, and ``--schedule replay:FILE`` runs exactly those.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from suture.runtime.scheduler import Group, Scheduler, Together, Turn, TurnKind


@dataclass(frozen=True, slots=True)
class Entry:
    """One turn that counted; see `Turn` for the fields.

    Attributes:
        client: its name; of clients that trained at once the names, with "+" between them.
        num_batches: 0 for what is no training.
        together: how those clients shared the server, else empty.
        order: whose batch the server took when, names with a blank between them, where that was a race.
    """

    number: int
    round: int
    client: str
    kind: str
    num_batches: int
    together: str = ""
    order: str = ""

    @property
    def clients(self) -> Group:
        """Those whose turn it was."""
        return tuple(self.client.split("+"))


class TurnLog:
    """The plan of the current round and what of it has been done.

    Args:
        scheduler: orders the training turns of a round.
        rounds: how many rounds the run has.
    """

    def __init__(self, scheduler: Scheduler, rounds: int) -> None:
        self._scheduler = scheduler
        self.rounds = rounds
        self.entries: list[Entry] = []
        self._lines = bytearray()  # a turn is put into words once: each turn writes those of the whole run
        self.round = 0
        self.step = 0
        self.handoff = 0
        self._plan: list[tuple[TurnKind, Group]] = []

    @property
    def round_done(self) -> bool:
        """Whether nothing is left of the current round."""
        return not self._plan

    @property
    def finished(self) -> bool:
        """Whether nothing is left of the run."""
        return self.round_done and self.round >= self.rounds

    @property
    def together(self) -> Together | None:
        """How clients that train at once share the server; None where each has a turn of its own."""
        return self._scheduler.together

    def steps(self, round: int, clients: Group) -> Sequence[str] | None:
        """See `Scheduler.steps`."""
        return self._scheduler.steps(round, clients)

    def start_round(self, clients: Sequence[str], evaluating: Sequence[str] | None = None) -> None:
        """Plans the next round: ``clients`` train in the scheduler's order, then they, or ``evaluating``, evaluate."""
        self.round += 1
        for group in self._scheduler.order(self.round, clients):
            self._plan.append((TurnKind.TRAIN, group))
            if self.together is not None and len(group) > 1:  # a mean of one is that one
                self._plan.append((TurnKind.AVERAGE, ()))
        self._plan += [
            (TurnKind.EVALUATE, (client,)) for client in (clients if evaluating is None else evaluating)
        ]

    def needs_training(self) -> bool:
        """Whether nothing but evaluations is left to do without a client that trains."""
        if self.round_done:
            return not self.finished
        return self._plan[0][0] in (TurnKind.TRAIN, TurnKind.AVERAGE)

    def next_turns(self, present: Collection[str], training: Collection[str] | None = None) -> list[Turn]:
        """The turn to run now, one for each client that takes part in it; empty where there is none.

        Turns of clients that are not ``present`` fall out of the round; a mean is for whichever of them comes first
        (of those in ``training``, where some only evaluate), and waits where nobody is there.
        """
        self._plan = [(kind, tuple(c for c in group if c in present)) for kind, group in self._plan]
        # A mean whose turn counted stays: the round's bottoms would fall behind its top.
        while self._plan and self._plan[0][0] is not TurnKind.AVERAGE and not self._plan[0][1]:
            del self._plan[: 2 if self._averages() else 1]
        if not self._plan:
            return []
        kind, group = self._plan[0]
        averaging = list(present if training is None else training)
        return [
            Turn(
                kind=kind,
                client=client,
                round=self.round,
                number=len(self.entries) + 1,
                step=self.step,
                handoff=self.handoff,
                together=self._averages(),
            )
            for client in (group if kind is not TurnKind.AVERAGE else averaging[:1])
        ]

    def _averages(self) -> bool:
        """Whether the next turn is a training turn that a mean follows."""
        return self._plan[0][0] is TurnKind.TRAIN and (TurnKind.AVERAGE, ()) in self._plan[1:2]

    def planned(self) -> list[str]:
        """The clients that have a turn left in the current round, each once."""
        return list(dict.fromkeys(client for _, group in self._plan for client in group))

    def trained(self) -> set[str]:
        """The clients that have a counted turn."""
        return {client for entry in self.entries for client in entry.clients}

    def expects_evaluation(self, client: str) -> bool:
        """Whether ``client`` has yet to evaluate in the current round."""
        return (TurnKind.EVALUATE, (client,)) in self._plan

    def count(self, turns: Sequence[Turn], num_batches: int, order: str = "") -> None:
        """Writes the running turn down as done, ``turns`` being what each of its clients was asked.

        Raises:
            ValueError: it is not the next one of the plan.
        """
        turn, group = turns[0], tuple(turn.client for turn in turns)
        clients = "+".join(group)
        # A mean is planned for whoever comes first.
        if (turn.kind, () if turn.kind is TurnKind.AVERAGE else group) not in self._plan[:1]:
            raise ValueError(f"turn {turn.number} ({turn.kind}) of {clients} is not the next one")
        del self._plan[0]
        way = (self.together or "") if turn.together else ""
        entry = Entry(turn.number, turn.round, clients, turn.kind.value, num_batches, str(way), order)
        self.entries.append(entry)
        self._lines += (json.dumps(_plain(entry)) + "\n").encode()
        self.step += num_batches
        if turn.kind is TurnKind.AVERAGE or (turn.kind is TurnKind.TRAIN and not turn.together):
            self.handoff = turn.number

    def lines(self) -> bytes:
        """RUN/turns.jsonl."""
        return bytes(self._lines)

    def state_dict(self) -> dict[str, Any]:
        """Plain types only."""
        return {
            "lines": self._lines.decode(),
            "round": self.round,
            "handoff": self.handoff,
            "plan": [[kind.value, list(group)] for kind, group in self._plan],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to ``state``."""
        self.entries = [Entry(**json.loads(line)) for line in state["lines"].splitlines()]
        self._lines = bytearray(state["lines"].encode())
        self.round, self.handoff = state["round"], state["handoff"]
        self._plan = [(TurnKind(kind), tuple(group)) for kind, group in state["plan"]]
        self.step = sum(entry.num_batches for entry in self.entries)


def _plain(entry: Entry) -> dict[str, Any]:
    """``entry`` as turns.jsonl has it: what does not concern it is left out."""
    return {name: value for name, value in asdict(entry).items() if value != ""}
