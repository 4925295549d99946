"""The whole session with all roles in one process: a server, and clients that take their turns as they are granted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from suture.runtime.exchange.local import LocalExchange
from suture.runtime.exchange.turnstile import side_by_side
from suture.runtime.participant.leaving import leave_quietly
from suture.runtime.participant.participant import Participant
from suture.runtime.scheduler import TurnKind
from suture.runtime.session import end, join, take_turn
from suture.runtime.wire.messages import unwrap


def run_local(participants: Sequence[Participant[LocalExchange]], agreement: Mapping[str, str]) -> None:
    """All clients' whole runs: whoever's turn it is takes it.

    Raises:
        SutureError: as `session.take_part`.
    """
    for participant in participants:
        join(participant, agreement)
    waiting = {
        participant.client.name: (participant, participant.exchange.ask_turn())
        for participant in participants
    }
    try:
        while waiting:
            done = [name for name, (_, turn) in waiting.items() if turn.done()]
            granted = [(participant, unwrap(turn.value())) for participant, turn in map(waiting.pop, done)]
            for participant, turn in granted:
                if turn.kind is TurnKind.END:
                    end(participant, turn)
            playing = [(participant, turn) for participant, turn in granted if turn.kind is not TurnKind.END]
            side_by_side([partial(take_turn, participant, turn) for participant, turn in playing])
            for participant, _ in playing:
                waiting[participant.client.name] = (participant, participant.exchange.ask_turn())
    finally:
        for participant in participants:
            leave_quietly(participant)
