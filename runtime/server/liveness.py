"""Who is still there: a dead process is noticed by the end of its connection, a frozen one by its lease."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from torch import Tensor
from torch.futures import Future

from suture.runtime.consortium.board import ServerBoard
from suture.runtime.server.client_turn import ClientTurn
from suture.runtime.server.membership import Member

log = logging.getLogger(__name__)

SECONDS_BETWEEN_PINGS = 0.5

Ping = Callable[[str, float], Future[Tensor]]
"""Asks the process of that name for a sign of life, with so many seconds' patience; fails where there is none."""


def why_lost(
    member: Member, turn: ClientTurn | None, lease: float, ping: Ping | None, board: ServerBoard | None = None
) -> str:
    """Why a member counts as lost, empty while it is there.

    Args:
        member: who may be lost.
        turn: the turn that it holds, if it holds one.
        lease: seconds that it may be silent.
        ping: None where members live in this process.
        board: what sites were asked for, where they sign.
    """
    now = time.monotonic()
    if ping is not None and not _answers(member, ping, lease):
        return "its process is gone or does not answer"
    if turn is None or turn.answer is None:  # else it waits for the server, which waits for others
        # Asking for another turn does not renew the lease of the one that it holds.
        if turn is not None and now - turn.heard > lease:
            return f"it did not go on with its turn for {lease:g} s"
        last_seen = member.last_seen if turn is None else max(member.last_seen, turn.heard)
        if member.waiting is None and now - last_seen > lease:
            return f"no word from it for {lease:g} s"
    if member.told_end and member.farewell is None and now - member.end_heard > lease:
        # The others wait for its word on what it ends with.
        return f"the run is over, and it has not said goodbye for {lease:g} s"
    if board is not None and board.is_late(member.name, lease):
        return f"it was asked for something and did not do it for {lease:g} s"
    return ""


def _answers(member: Member, ping: Ping, patience: float) -> bool:
    """Pings a member's process unless a ping is under way; False if the last one was not answered."""
    try:
        if member.ping is not None and member.ping.done():
            member.ping.wait()
            member.ping = None
        if member.ping is None:
            member.ping = ping(member.name, patience)
    except RuntimeError as error:
        log.debug("%s does not answer: %s", member.name, error)
        return False
    return True
