"""Which turns counted and which comes next: the run's position, in plain Python.

A turn counts when it was committed; one that was rolled back never happened. The list of counted turns is
RUN/turns.jsonl, and ``--schedule replay:FILE`` runs exactly those.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runtime.scheduler import Scheduler, Turn, TurnKind


@dataclass(frozen=True, slots=True)
class Entry:
    """One turn that counted; see `Turn` for the fields. ``num_batches`` is 0 for an evaluation."""

    number: int
    round: int
    client: str
    kind: str
    num_batches: int


class Ledger:
    """The plan of the current round and what of it has been done.

    Args:
        scheduler: orders the training turns of a round.
        rounds: how many rounds the run has.
    """

    def __init__(self, scheduler: Scheduler, rounds: int) -> None:
        self._scheduler = scheduler
        self.rounds = rounds
        self.entries: list[Entry] = []
        self.round = 0
        self.step = 0
        self.handoff = 0
        self._plan: list[tuple[TurnKind, str]] = []

    @property
    def round_done(self) -> bool:
        """Whether nothing is left of the current round."""
        return not self._plan

    @property
    def finished(self) -> bool:
        """Whether nothing is left of the run."""
        return self.round_done and self.round >= self.rounds

    def start_round(self, clients: Sequence[str]) -> None:
        """Plans the next round: every client trains in the scheduler's order, then every client evaluates."""
        self.round += 1
        order = self._scheduler.order(self.round, clients)
        self._plan = [(TurnKind.TRAIN, client) for client in order]
        self._plan += [(TurnKind.EVALUATE, client) for client in clients]

    def next_turn(self, lost: Collection[str] = ()) -> Turn | None:
        """The turn to run now, None where the round is done; turns of lost clients fall out of the round."""
        self._plan = [(kind, client) for kind, client in self._plan if client not in lost]
        if not self._plan:
            return None
        kind, client = self._plan[0]
        return Turn(
            kind=kind,
            client=client,
            round=self.round,
            number=len(self.entries) + 1,
            step=self.step,
            handoff=self.handoff,
        )

    def planned(self) -> list[str]:
        """The clients that have a turn left in the current round, each once."""
        return list(dict.fromkeys(client for _, client in self._plan))

    def trained(self) -> set[str]:
        """The clients that have a counted turn."""
        return {entry.client for entry in self.entries}

    def expects_evaluation(self, client: str) -> bool:
        """Whether ``client`` has yet to evaluate in the current round."""
        return (TurnKind.EVALUATE, client) in self._plan

    def count(self, turn: Turn, num_batches: int) -> None:
        """Writes ``turn`` down as done."""
        self._plan.remove((turn.kind, turn.client))
        self.entries.append(Entry(turn.number, turn.round, turn.client, turn.kind.value, num_batches))
        if turn.kind is TurnKind.TRAIN:
            self.step += num_batches
            self.handoff = turn.number

    def lines(self) -> bytes:
        """RUN/turns.jsonl."""
        return "".join(json.dumps(asdict(entry)) + "\n" for entry in self.entries).encode()

    def state_dict(self) -> dict[str, Any]:
        """Plain types only."""
        return {
            "entries": [asdict(entry) for entry in self.entries],
            "round": self.round,
            "plan": [[kind.value, client] for kind, client in self._plan],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to ``state``."""
        self.entries = [Entry(**entry) for entry in state["entries"]]
        self.round = state["round"]
        self._plan = [(TurnKind(kind), client) for kind, client in state["plan"]]
        trained = [entry for entry in self.entries if entry.kind == TurnKind.TRAIN]
        self.step = sum(entry.num_batches for entry in trained)
        self.handoff = trained[-1].number if trained else 0
