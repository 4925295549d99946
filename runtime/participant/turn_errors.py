"""What becomes of a turn that fails: which errors end the turn only, which leave the run, what the server is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from suture.runtime.client.wishes import Parting
from suture.runtime.errors import (
    BadHandoffError,
    CheckpointError,
    MemberLostError,
    StoppedError,
    SutureError,
    TurnUndoneError,
)
from suture.runtime.exchange.exchange import Exchange
from suture.runtime.participant import errands
from suture.runtime.participant.participant import Participant
from suture.runtime.scheduler import Turn

log = logging.getLogger(__name__)


@contextmanager
def turn_errors(participant: Participant[Exchange], turn: Turn) -> Iterator[None]:
    """Within it the turn is taken: whole, or not at all.

    Two errors end the turn only, and the client asks for the next one: the server has rolled the turn back
    (`TurnUndoneError`), or the hand-off that it starts from is bad and its author was accused (`BadHandoffError`).
    All others go on to the caller.

    Raises:
        Parting: the client's own people want it to go at once; the turn is not over, and the server hears it elsewhere.
        CheckpointError: the server's disk is full; it knows.
        MemberLostError: see `_give_up`.
        SutureError: the turn failed; its text names client and turn, and the server was told the same.
        Exception: a defect, or a disk of the client's; the server was told its kind only.
    """
    client, observer = participant.client, participant.observer
    try:
        yield
    except Parting as parting:
        observer.undone(turn, parting.wish)
        raise
    except TurnUndoneError as undone:
        log.info("%s", undone)
        observer.undone(turn, str(undone))
        client.undo()
    except BadHandoffError as bad:
        observer.undone(turn, str(bad))
        if not errands.accuse(participant, bad):
            raise
        client.undo()
    except CheckpointError:  # the server's disk: it has stopped the run, and tells everyone in the same words
        raise
    except SutureError as error:
        reason = str(error)
        observer.undone(turn, reason)
        named = type(error)(reason if client.name in reason else f"{_where(client.name, turn)}: {reason}")
        _give_up(participant.exchange, named)
        raise named from None
    except Exception as error:  # the others must not wait for it
        # Its text stays here, where it is raised: it may name a file, and so a patient.
        kind = type(error).__name__
        what = StoppedError(f"{_where(client.name, turn)}: {kind}; see the client's own log")
        _give_up(participant.exchange, what)
        raise


def _where(client: str, turn: Turn) -> str:
    return f"{client}: round {turn.round}, turn {turn.number}"


def _give_up(exchange: Exchange, error: SutureError) -> None:
    """Tells the server why the turn cannot be finished.

    Raises:
        MemberLostError: the server had given this client up before, frozen or cut off for too long. Then whatever
            else failed only followed from that, and joining again mends it.
    """
    try:
        exchange.abort(error)
    except MemberLostError as lost:
        raise lost from None
    except SutureError as deaf:
        log.debug("the server did not hear that the turn was given up: %s", deaf)
