"""Who is still there: a dead process is noticed by the end of its connection, a frozen one by its lease."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from torch import Tensor
from torch.futures import Future

from suture.runtime.server.membership import Seat
from suture.runtime.server.step import Running

log = logging.getLogger(__name__)

SECONDS_BETWEEN_KNOCKS = 0.5

Knock = Callable[[str, float], Future[Tensor]]
"""Asks the process of that name for a sign of life, with so many seconds' patience; fails where there is none."""


def why_lost(seat: Seat, running: Running | None, lease: float, knock: Knock | None) -> str:
    """Why a member counts as lost, empty while it is there.

    Args:
        seat: the member's.
        running: the turn that it holds, if it holds one.
        lease: seconds that it may be silent.
        knock: None where members live in this process.
    """
    now = time.monotonic()
    if knock is not None and not _answers(seat, knock, lease):
        return "its process is gone or does not answer"
    if running is not None and running.owed is not None:
        return ""  # it waits for the server, which waits for others
    # Asking for another turn does not renew the lease of the one that it holds.
    if running is not None and now - running.heard > lease:
        return f"it did not go on with its turn for {lease:g} s"
    if seat.waiting is None and now - seat.last_seen > lease:
        return f"no word from it for {lease:g} s"
    return ""


def _answers(seat: Seat, knock: Knock, patience: float) -> bool:
    """Knocks at a member's process unless a knock is under way; False if the last one was not answered."""
    try:
        if seat.knock is not None and seat.knock.done():
            seat.knock.wait()
            seat.knock = None
        if seat.knock is None:
            seat.knock = knock(seat.name, patience)
    except RuntimeError as error:
        log.debug("%s does not answer: %s", seat.name, error)
        return False
    return True
