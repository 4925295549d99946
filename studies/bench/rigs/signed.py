"""A hand-off as it goes between hospitals: its author seals and signs it, the server checks it, another opens it."""

from __future__ import annotations

import time
from pathlib import Path

from suture.launch.kits.authority import Authority
from suture.runtime.client.client import Client
from suture.runtime.consortium.board import ServerBoard
from suture.runtime.consortium.credentials import Role
from suture.runtime.consortium.identity import Identity, Trust
from suture.runtime.consortium.roster import Roster
from suture.runtime.consortium.site import SiteConsortium
from suture.runtime.scheduler import TurnKind
from suture.runtime.state.handoff import HANDOFF, HandoffSeal
from suture.runtime.state.rollback_guard import RollbackGuard

_RUN, _SITES = "bench", ("ward_a", "ward_b")


class SignedHandoff:
    """Two sites that have agreed on a key, and the server's board between them.

    Args:
        client: whose parts are handed over.
        folder: empty; for certificates and rosters.
        key: the sites' hand-off key.
    """

    def __init__(self, client: Client, folder: Path, key: bytes) -> None:
        self._state, self._like, self._turn = client.state(), client.state_like(), 0
        authority = Authority(folder / "consortium")
        kits = {name: authority.issue(name).read(Role.CLIENT) for name in _SITES}
        roster = Roster.create(folder / "roster.toml", authority.sites())
        trust = Trust(authority.ca.read_bytes(), roster)
        first, second = (SiteConsortium(Identity.of(kits[name]), trust, key) for name in _SITES)
        self._board = ServerBoard(Trust(authority.ca.read_bytes()), _RUN)
        for name, site in zip(_SITES, (first, second), strict=True):
            site.join(_RUN, RollbackGuard(None, name, _RUN))
        self._author = HandoffSeal(b"", _RUN, signer=first)
        self._opener = HandoffSeal(b"", _RUN, signer=second)
        self._board.sent(TurnKind.KEY, _SITES[0])
        epoch = first.new_epoch(self._board.shown(), None)
        self._board.begin_epoch(_SITES[0], epoch, self._author.seal(self._state, 0, None), None)
        first.end_new_epoch()
        for site in (first, second):
            site.take(self._board.shown())

    def hand_over(self) -> tuple[float, float, float]:
        """Seconds to seal and sign, to check at the server, and to check and open at the next site."""
        self._turn += 1
        times = [time.perf_counter()]
        sealed = self._author.seal(self._state, self._turn, None)
        times.append(time.perf_counter())
        self._board.check_handoff(_SITES[0], sealed, HANDOFF)
        times.append(time.perf_counter())
        self._opener.open(sealed, self._like)
        times.append(time.perf_counter())
        return times[1] - times[0], times[2] - times[1], times[3] - times[2]
