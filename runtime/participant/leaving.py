"""How a client goes before the run is over: its own people want it to, or it stops."""

from __future__ import annotations

import logging

from suture.runtime.client.wishes import Parting, Wish
from suture.runtime.errors import SutureError
from suture.runtime.exchange.exchange import Exchange
from suture.runtime.participant import errands
from suture.runtime.participant.participant import Participant

log = logging.getLogger(__name__)


def part(participant: Participant[Exchange], parting: Parting) -> None:
    """Goes, for good or until it joins again; the turn that the client is in, if it is in one, is rolled back.

    Raises:
        SutureError: the server did not hear it. A client that leaves for good must tell it, and try again.
    """
    participant.client.undo()
    if parting.wish is Wish.LEAVE:
        errands.withdraw(participant)
    else:
        leave_quietly(participant)


def leave_quietly(participant: Participant[Exchange]) -> None:
    """Ends the membership at a server that may be gone already."""
    try:
        participant.exchange.leave()
    except SutureError as error:
        log.debug("the server did not hear the goodbye: %s", error)
