"""What the sites of a run have stated, at the server, which passes it on and asks one of them to do what comes next.

It judges none of them: each site checks for itself what it does here. A hostile server can only keep things back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Protocol

from cryptography import x509

from suture.runtime.consortium.epochs import EPOCH
from suture.runtime.consortium.evidence import (
    ACCUSATION,
    VERDICT,
    WITHDRAWAL,
    Conviction,
    accused_handoff,
    convictions,
)
from suture.runtime.consortium.identity import Trust
from suture.runtime.consortium.keys import GRANT, REQUEST
from suture.runtime.errors import UntrustedError, WireError
from suture.runtime.scheduler import TurnKind
from suture.runtime.state.handoff import HANDOFF, SHARE, handoff_digest, says_of
from suture.runtime.wire.messages import Board, SealedHandoff, Share, Statement
from suture.runtime.wire.statements import digest

log = logging.getLogger(__name__)

KEY_REFUSAL = REFUSAL = "key refusal"
_MOST_EVIDENCE = 200
"""A site that accuses without end is refused; a run of a hundred sites needs a few."""


class SignedList(Protocol):
    """The authority's list of certificates that were taken back."""

    @property
    def pem(self) -> bytes: ...


@dataclass
class Errand:
    """What one site was asked to do.

    Attributes:
        kind: key, admit or witness.
        client: who.
        since: when, a time.
        heard: when it last went on with it, a time.
    """

    kind: TurnKind
    client: str
    since: float
    heard: float


class ServerBoard:
    """Keeps and passes on the sites' statements, and says which site has which errand; it trusts and judges none.

    Every method runs under the coordinator's lock.

    Args:
        trust: the consortium's authority and its revocations; no roster.
        run: the run's id.
    """

    def __init__(self, trust: Trust, run: str) -> None:
        self._trust, self._run = trust, run
        self.epochs: list[Statement] = []
        self.evidence: list[Statement] = []
        self._requests: dict[str, Statement] = {}
        self._list = b""
        self._certified: dict[str, Statement] = {}  # the last request of each: with which certificate it came
        self._grants: dict[str, Statement] = {}
        self._refused: dict[str, set[str]] = {}
        self._failed: dict[tuple[str, str], int] = {}
        self._distrusting: set[str] = set()
        self.holders: set[str] = set()
        self.removed: dict[str, str] = {}
        self.accused: Share | None = None
        self.accusation: Statement | None = None
        self.errand: Errand | None = None

    @property
    def epoch(self) -> int:
        """Number of the newest epoch."""
        return len(self.epochs)

    def shown(self) -> Board:
        """What a site is told."""
        return Board(
            epochs=list(self.epochs),
            evidence=list(self.evidence),
            requests=[one for name, one in self._requests.items() if name not in self.holders],
            grants=list(self._grants.values()),
            revoked=self._list.decode(),
        )

    # What sites state ----------------------------------------------------------------------------

    def post(self, client: str, statement: Statement, handoffs: Sequence[SealedHandoff]) -> None:
        """Takes a statement.

        Args:
            client: who brings it.
            statement: it must be its own.
            handoffs: the newest hand-off, or shares, which alone may be accused.

        Raises:
            WireError: it may not say that now.
            UntrustedError: it is not signed by the caller.
        """
        if statement.author != client:
            raise WireError(f"{client}: post: a statement of {statement.author!r:.40}; refused")
        kinds = (REQUEST, GRANT, REFUSAL, ACCUSATION, VERDICT, WITHDRAWAL)
        if statement.kind not in kinds:
            raise WireError(f"{client}: post: a {statement.kind!r:.20} is not posted; refused")
        content = self._trust.check(statement, statement.kind, fresh=True)
        if content.get("run") != self._run:
            raise WireError(f"{client}: post: a {statement.kind} of another run; refused")
        if statement.kind == REQUEST:
            self._asked(client, statement, content.get("has"))
        elif statement.kind == REFUSAL and "epoch" in content:
            self._distrust(client, content)
        elif statement.kind in (GRANT, REFUSAL):
            self._granted(client, statement, content)
        elif len(self.evidence) >= _MOST_EVIDENCE:
            raise WireError(
                f"{client}: post: {_MOST_EVIDENCE} accusations and verdicts are the most; refused"
            )
        elif statement.kind == ACCUSATION:
            self._accuse(client, statement, content, handoffs)
        elif statement.kind == VERDICT:
            if self.errand is None or (self.errand.kind, self.errand.client) != (TurnKind.WITNESS, client):
                raise WireError(f"{client}: post: nobody asked for its verdict; refused")
            if self.accusation is None or content.get("accusation") != digest(self.accusation):
                raise WireError(f"{client}: post: a verdict on another accusation; refused")
            if type(content.get("is_bad")) is not bool:
                raise WireError(f"{client}: post: a verdict that says neither good nor bad; refused")
            self.evidence.append(statement)
            self._did(TurnKind.WITNESS, client)
        else:
            self.evidence.append(statement)

    def _asked(self, client: str, statement: Statement, has: Any) -> None:
        """A site says which key it has, and asks for the newest one."""
        self._requests[client] = self._certified[client] = statement
        self._did(TurnKind.TAKE, client)
        grant = self._grants.pop(client, None)
        if has == self.epoch > 0:
            self.holders.add(client)
            self._refused.pop(client, None)
        elif grant is not None:
            log.warning("%s has taken no key from what %s released to it", client, grant.author)
            self._refused.setdefault(client, set()).add(grant.author)
            if self.epoch == 1 and grant.author == self.founder:
                self._distrusting.add(client)

    def _distrust(self, client: str, content: dict[str, Any]) -> None:
        """A site does not know the one that made the first key, and takes none from it."""
        if len(self.epochs) != 1 or content["epoch"] != digest(self.epochs[0]):
            raise WireError(f"{client}: post: a refusal of another epoch; refused")
        if client in self.holders:
            raise WireError(f"{client}: post: it has taken that key, and refuses it now; refused")
        self._grants.pop(client, None)
        self._distrusting.add(client)
        log.warning(
            "%s does not trust %s, which made the key: %.300s", client, self.founder, content.get("why")
        )

    @property
    def founder(self) -> str:
        """The site that made the first key; empty where there is none yet."""
        return self.epochs[0].author if self.epochs else ""

    def is_founder_distrusted(self, present: Collection[str]) -> bool:
        """Whether most of the sites that are there, but for the one that made the first key, do not know it."""
        others = {name for name in present if name != self.founder}
        return 2 * len(self._distrusting & others) > len(others)

    def start_over(self) -> None:
        """Drops the first key: the others do not know its maker, or that one has gone before another site had it."""
        self.epochs, self.holders, self._grants = [], set(), {}
        self._distrusting = set()

    def _granted(self, client: str, statement: Statement, content: dict[str, Any]) -> None:
        if client in self.holders:  # also where the one that asked has left meanwhile
            self._did(TurnKind.ADMIT, client)
        asked = self._requests.get(str(content.get("to")))
        if (
            client not in self.holders
            or asked is None
            or asked.author in self.holders
            or content.get("request") != digest(asked)
        ):
            raise WireError(f"{client}: post: a {statement.kind} that nobody waits for; refused")
        if client in self._refused.get(asked.author, set()):
            raise WireError(
                f"{client}: post: a {statement.kind} for {asked.author}, which took no key from it; refused"
            )
        if statement.kind == REFUSAL:
            self._refused.setdefault(asked.author, set()).add(client)
            log.warning(
                "%s does not release the hand-off key to %s: %.300s", client, asked.author, content.get("why")
            )
        else:
            self._grants[asked.author] = statement

    def _accuse(
        self, client: str, statement: Statement, content: dict[str, Any], handoffs: Sequence[SealedHandoff]
    ) -> None:
        signed = accused_handoff(content)
        if self.accused is not None:
            raise WireError(f"{client}: post: another accusation waits for its verdict; refused")
        if signed.author == client:
            raise WireError(f"{client}: post: it accuses itself; refused")
        for handoff in handoffs:
            if handoff.statement == signed:
                self.accused = Share(signed.author, handoff)
        if self.accused is None:
            raise WireError(f"{client}: post: it accuses a hand-off that there is not; refused")
        self.evidence.append(statement)
        self.accusation = statement
        log.warning("%s accuses %s: %.300s", client, signed.author, content.get("why"))

    def check_handoff(self, client: str, handoff: SealedHandoff, kind: str) -> None:
        """What a client seals must be signed by it, to the byte, under the newest epoch's key.

        Raises:
            WireError, UntrustedError: it is not.
        """
        content = self._trust.check(handoff.statement, kind)
        assert handoff.statement is not None
        if handoff.statement.author != client or not says_of(content, handoff, self._run):
            raise WireError(f"{client}: handoff: it is not what its statement says; refused")
        if handoff.epoch != self.epoch:
            raise WireError(f"{client}: handoff.epoch: expected {self.epoch}, got {handoff.epoch}; refused")

    def begin_epoch(
        self, client: str, epoch: Statement, handoff: SealedHandoff, newest: SealedHandoff | None
    ) -> None:
        """Takes up an epoch that a site was asked to begin.

        Raises:
            WireError, UntrustedError: it was not asked to, or it does not go on from what there is.
        """
        if self.errand is None or (self.errand.kind, self.errand.client) != (TurnKind.KEY, client):
            raise WireError(f"{client}: begin_epoch: nobody asked it to; refused")
        content = self._trust.check(epoch, EPOCH, fresh=True)
        before = digest(self.epochs[-1]) if self.epochs else ""
        expected = [client, self._run, self.epoch + 1, before, handoff_digest(newest).hex()]
        said = [epoch.author, *(content.get(name) for name in ("run", "number", "before", "handoff"))]
        removed = content.get("removed")
        if said != expected or not isinstance(removed, dict) or removed.keys() != self.removed.keys():
            raise WireError(f"{client}: begin_epoch: it does not follow what there is; refused")
        turn = 0 if newest is None else newest.turn
        if handoff.turn != turn or handoff.previous:
            raise WireError(f"{client}: begin_epoch: expected the parts of turn {turn} anew; refused")
        self.epochs.append(epoch)
        try:
            self.check_handoff(client, handoff, HANDOFF)
        except (WireError, UntrustedError):
            self.epochs.pop()
            raise
        self.holders, self._grants = {client}, {}
        self._did(TurnKind.KEY, client)

    # What comes next -----------------------------------------------------------------------------

    def joined(self, client: str) -> None:
        """A site has come; its request will say which key it has."""
        self.holders.discard(client)
        self._requests.pop(client, None)
        self._grants.pop(client, None)
        self._refused.pop(client, None)

    def convict(self) -> Conviction | None:
        """Whom the verdict that has just come puts out; None while one is waited for."""
        verdict = self.evidence[-1]
        if self.accusation is None or verdict.kind != VERDICT:
            return None
        found = convictions(self._run, [self.accusation, verdict], self._trust.check)
        self.accused = self.accusation = None
        return found[-1] if found else None

    @property
    def pair(self) -> tuple[str, str]:
        """Who accuses and who is accused, while a verdict is waited for."""
        assert self.accused is not None and self.accusation is not None
        return self.accusation.author, self.accused.client

    def put_out(self, client: str, why: str) -> None:
        """A site has no part in this run any more."""
        self.removed[client] = why
        self.holders.discard(client)
        self._grants.pop(client, None)
        if client in self._certified:  # it shows the others the certificate that was revoked
            self._requests[client] = self._certified[client]

    def newly_revoked(self) -> list[str]:
        """Sites whose certificate the authority has taken back since they came, whether they are here or not. The list
        that says so is shown from now on: a site that knew it while the epoch of one of them counts could not go on.
        """
        self._list = getattr(self._trust.revocations, "pem", b"") or b""
        return [
            name
            for name, request in self._certified.items()
            if name not in self.removed and self._trust.is_revoked_statement(request)
        ]

    def why_refused(self, certificate: bytes) -> str:
        """Why a certificate does not count any more, empty where it does."""
        revoked = self._trust.is_revoked(x509.load_pem_x509_certificate(certificate))
        return "its certificate was revoked" if revoked else ""

    def next_errand(
        self, waiting: Collection[str], present: Collection[str]
    ) -> tuple[TurnKind, list[str]] | None:
        """What must be done before the next turn, and the sites that wait and may do it; None where nothing must.

        Args:
            waiting: sites that wait for a turn.
            present: sites that are there.
        """
        if self.accused is not None:
            able = [n for n in present if n in self.holders and n not in self.pair]
            return TurnKind.WITNESS, self._willing(TurnKind.WITNESS, able, waiting)
        if not self.epochs:
            # The first in the names' order, not the first to come: fixed secrets must give fixed initial weights.
            first = sorted(present, key=lambda name: self.tries(TurnKind.KEY, name))[:1]
            return TurnKind.KEY, [name for name in first if name in waiting]
        without = [n for n in present if n not in self.holders and n in self._requests and n in waiting]
        granted = [n for n in without if n in self._grants]
        able = [n for n in present if n in self.holders]
        if self._removed_by_newest() != self.removed.keys() and (able or not granted):
            return TurnKind.KEY, self._willing(TurnKind.KEY, able, waiting)
        if granted:  # before a new epoch only where the one site that had the key has released it and left
            return TurnKind.TAKE, granted
        for name in without:
            if asked := [n for n in able if n not in self._refused.get(name, set())]:
                return TurnKind.ADMIT, self._willing(TurnKind.ADMIT, asked, waiting)
        return (TurnKind.ADMIT, []) if self._undecided(present) or (without and not able) else None

    def _undecided(self, present: Collection[str]) -> set[str]:
        """The sites that have yet to say whether they take the founder's key, once one of them could not.

        Else the first site to find the founder's release worthless is shut out before the next one can say the same.
        """
        if len(self.epochs) != 1 or not self._distrusting & set(present):
            return set()
        asking = {name for name in present if name in self._requests and name not in self._refused}
        coming = {name for name in present if name not in self._certified}
        return (asking | coming) - {self.founder, *self.holders, *self._distrusting, *self.removed}

    def unknown_to_all(self, present: Collection[str]) -> dict[str, set[str]]:
        """Sites that ask for the key and that every site which has it has refused, by whom."""
        if self._grants:  # there will be more who have it, and may release it
            return {}
        able = {n for n in present if n in self.holders}
        asking = {n: who for n, who in self._refused.items() if n in present and n not in self.holders}
        if self._undecided(present):
            asking = {n: who for n, who in asking.items() if n not in self._distrusting}
        return {n: who for n, who in asking.items() if able and able <= who}

    def no_witness(self, present: Collection[str]) -> bool:
        """Whether an accusation waits for a verdict that no site present can give."""
        if self.accused is None:
            return False
        return not any(n in self.holders and n not in self.pair for n in present)

    def _removed_by_newest(self) -> Collection[str]:
        if not self.epochs:
            return set()
        removed = self._trust.check(self.epochs[-1], EPOCH).get("removed")
        return removed.keys() if isinstance(removed, dict) else set()

    def _willing(self, kind: TurnKind, able: Sequence[str], waiting: Collection[str]) -> list[str]:
        """Those of ``able`` that wait, fewest failures first."""
        ready = [name for name in able if name in waiting]
        return sorted(ready, key=lambda name: self.tries(kind, name))

    def sent(self, kind: TurnKind, client: str) -> None:
        """A site was asked."""
        now = time.monotonic()
        self.errand = Errand(kind, client, now, now)
        self._failed[(kind, client)] = self._failed.get((kind, client), 0) + 1

    def tries(self, kind: TurnKind, client: str) -> int:
        """How often a site was asked for the same since it last did it."""
        return self._failed.get((kind, client), 0)

    def is_asked(self, client: str) -> bool:
        """Whether a site is on an errand."""
        return self.errand is not None and self.errand.client == client

    def goes_on(self, client: str, seconds: float) -> None:
        """Bytes of a site's are on their way, which may take so many seconds in all; see `Transaction.transfers`."""
        now = time.monotonic()
        if self.errand is not None and self.errand.client == client and now - self.errand.since < seconds:
            self.errand.heard = now

    def is_late(self, client: str, lease: float) -> bool:
        """Whether a site does not do what it was asked."""
        return (
            self.errand is not None
            and self.errand.client == client
            and time.monotonic() - self.errand.heard > lease
        )

    def _did(self, kind: TurnKind, client: str) -> None:
        self._failed.pop((kind, client), None)

    def ended(self, client: str) -> None:
        """A site asks for its next turn, or is gone: what it was asked to do is done, or will not be."""
        if self.errand is not None and self.errand.client == client:
            self.errand = None

    # To keep -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What outlives the server: plain types."""
        return {
            "epochs": [list(astuple(one)) for one in self.epochs],
            "evidence": [list(astuple(one)) for one in self.evidence],
            "removed": dict(self.removed),
            "requests": [list(astuple(one)) for name, one in self._requests.items() if name in self.removed],
            "certified": [list(astuple(one)) for one in self._certified.values()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with it; sites ask again for what they had asked for."""
        self.epochs = [Statement(*fields) for fields in state["epochs"]]
        self.evidence = [Statement(*fields) for fields in state["evidence"]]
        self.removed = dict(state["removed"])
        requests = [Statement(*fields) for fields in state["requests"]]
        self._requests |= {one.author: one for one in requests}
        certified = [Statement(*fields) for fields in state.get("certified", [])]
        self._certified |= {one.author: one for one in certified}


__all__ = ["SHARE", "Errand", "ServerBoard"]
