"""What a site holds of its consortium in one run: who it is, whom it believes, the keys that it was given or has made.

    epoch 1     a site makes the first key and seals the initial parts: hand-off 0
    admit       who has the key releases it to those of its own roster who ask
    epoch n     one was put out: who has the key seals the newest hand-off again under a new one
    farewell    every site signs the hand-off that it ends with; a server with two histories is found

A server that is hostile can keep all of this back, and stop the run. It gets no key, and changes no word.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import suppress
from typing import Any

from suture.runtime.consortium import evidence
from suture.runtime.consortium.epochs import EpochChain
from suture.runtime.consortium.identity import Identity, Trust
from suture.runtime.consortium.keys import GRANT, KeyRequest, grant
from suture.runtime.errors import ConfigError, HandoffError, UntrustedError
from suture.runtime.state.handoff import SHARE, commitment, handoff_digest
from suture.runtime.state.rollback_guard import RollbackGuard
from suture.runtime.wire.messages import Board, Heads, SealedHandoff, Share, Statement
from suture.runtime.wire.statements import digest

log = logging.getLogger(__name__)

KEY_BYTES = 32
HEAD, REFUSAL = "head", "key refusal"


class SiteConsortium:
    """A site's identity, trust, hand-off keys and evidence in one run; what to do with them it leaves to `errands`.

    Holds private keys, and refuses to be pickled.

    Args:
        identity: the site.
        trust: whom it believes.
        shared_key: the first epoch's key, where people have given it to every site; else None.
    """

    def __init__(self, identity: Identity, trust: Trust, shared_key: bytes | None = None) -> None:
        self.identity = identity
        self.trust = trust
        trust.is_of(identity)
        self._shared = shared_key
        self._keys: dict[int, bytes] = {}
        self._pending: int | None = None
        self._run = ""
        self._share = (0, "")
        self._seen: set[str] = set()
        self._was_renewed = False

    def renew(self, identity: Identity) -> None:
        """Signs with a renewed certificate from now on. Any thread may say so.

        Raises:
            ConfigError: it is another site's.
        """
        if identity.name != self.identity.name:
            raise ConfigError(f"a certificate of {identity.name} is none for {self.identity.name}")
        self.identity = identity
        if self._run:
            self._request.identity = identity
        self._was_renewed = True

    def takes_renewal(self) -> bool:
        """Whether the others have not been shown the renewed certificate yet; says so once."""
        was, self._was_renewed = self._was_renewed, False
        return was

    def join(self, run: str, memory: RollbackGuard) -> None:
        """Begins with a run, or goes on with it: keys that were kept are taken up."""
        self._memory = memory
        if self._run == run:
            return
        self._run = run
        self._chain = EpochChain(self.trust, run)
        self._made: dict[str, str] = dict(memory.recall_extra("made", {}))
        self._keys = {
            int(number): bytes.fromhex(key) for number, key in memory.recall_extra("keys", {}).items()
        }
        self._request = KeyRequest(self.identity, run)

    # Keys ----------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Number of the newest epoch that this site has checked, 0 before the first."""
        return len(self._chain) if self._pending is None else self._pending

    @property
    def epoch_of_key(self) -> int:
        """The newest epoch whose key this site has."""
        return max(self._keys, default=0)

    def request(self) -> Statement:
        """This site's question for whatever key it lacks."""
        return self._request.ask(self.epoch_of_key)

    def key(self, epoch: int) -> bytes:
        """The hand-off key of an epoch.

        Raises:
            HandoffError: this site was never given it.
        """
        if epoch not in self._keys:
            raise HandoffError(
                f"this site has no hand-off key of epoch {epoch}: nobody who has it has released it to this site; see "
                "suture roster show at the other sites"
            )
        return self._keys[epoch]

    def take(self, board: Board) -> None:
        """Takes up what the other sites have stated since: epochs, and the newest one's key.

        Raises:
            UntrustedError: it does not hold.
            ConfigError: this site's --handoff-key is another than the others'.
        """
        if board.revoked and self.trust.revocations is not None:
            self.trust.revocations.take(board.revoked.encode())
        self._chain.take(board, anew=self._memory.recall()[0] == 0)
        self._seen |= {one.author for one in (*board.epochs, *board.requests, *board.grants)}
        newest = len(self._chain)
        for number in list(self._keys):
            if number <= newest and commitment(self._keys[number]) != self._chain.commitment(number):
                del self._keys[number]  # of a first epoch that came to nothing
        if newest == 1 and self._shared is not None and 1 not in self._keys:
            self._keep(1, self._shared)
        for number in range(1, newest + 1):
            made = self._made.get(digest(self._chain.statements[number - 1]))
            if number not in self._keys and made is not None:
                self._keep(number, bytes.fromhex(made))
        for statement in board.grants:
            if newest and newest not in self._keys:
                with suppress(UntrustedError):  # another one may release it
                    self._take_grant(statement, newest)

    def _take_grant(self, statement: Statement, newest: int) -> None:
        content = self.trust.check(statement, GRANT, fresh=True)
        if content.get("to") != self.identity.name or content.get("run") != self._run:
            return
        if content.get("epoch") != digest(self._chain.statements[newest - 1]):
            return
        key = self._request.open(content)
        if key is None:
            return
        if len(key) != KEY_BYTES or commitment(key) != self._chain.commitment(newest):
            log.warning(
                "%s released a hand-off key that is not that of epoch %d; refused", statement.author, newest
            )
            return
        self._keep(newest, key)

    def _keep(self, number: int, key: bytes) -> None:
        if commitment(key) != self._chain.commitment(number):
            raise ConfigError(
                f"this site's --handoff-key is another than that of {self._chain.statements[number - 1].author}, which "
                "began the run; give every site the same, or none: then they agree on one themselves"
            )
        self._keys[number] = key
        self._memory.keep_extra("keys", {str(one): key.hex() for one, key in self._keys.items()})

    def distrust(self, board: Board, why: str) -> Statement | None:
        """Says that this site takes no key of whoever made the first one; None where it has taken one already."""
        if len(self._chain) or not board.epochs:
            return None
        first = board.epochs[0]
        return self.identity.state(REFUSAL, run=self._run, to=first.author, epoch=digest(first), why=why)

    def new_epoch(self, board: Board, handoff: SealedHandoff | None) -> Statement:
        """Makes the key of the next epoch, keeps it, and states the epoch.

        Args:
            board: what has been stated.
            handoff: with which the epoch begins; None for the initial parts.

        Raises:
            UntrustedError: there is no reason for another epoch.
        """
        self.take(board)
        first = not len(self._chain)
        key = self._shared if first and self._shared is not None else secrets.token_bytes(KEY_BYTES)
        removed = self._chain.removed | self._to_remove(board)
        if not first and handoff is not None and removed.keys() == self._chain.removed.keys():
            raise UntrustedError("the server asks for a new hand-off key, and nobody was put out; refused")
        statement = self._chain.next(
            self.identity, board, removed, commitment(key), handoff_digest(handoff).hex()
        )
        # Kept before it is stated: an epoch whose key no site has would end the run.
        self._made[digest(statement)] = key.hex()
        self._memory.keep_extra("made", self._made)
        self._pending = len(self._chain) + 1
        self._keys[self._pending] = key
        return statement

    def end_new_epoch(self) -> None:
        """The new epoch has been stated, or nothing came of it; `take` takes it up from the board as the others do."""
        if self._pending is not None:
            del self._keys[self._pending]
            self._pending = None

    def _to_remove(self, board: Board) -> dict[str, str]:
        check = self.trust.check
        found = {one.guilty: one.why for one in evidence.convictions(self._run, board.evidence, check)}
        found |= dict.fromkeys(evidence.withdrawn(self._run, board.evidence, check), "it left for good")
        # A site that only this one knows to be revoked gets no key; the server would refuse an epoch without it.
        for statement in (*board.epochs, *board.requests, *board.evidence):
            if self.trust.is_revoked_by(board.revoked, statement):
                found[statement.author] = statement.certificate
        return {name: why for name, why in found.items() if name != self.identity.name}

    def answer_requests(self, board: Board) -> list[Statement]:
        """Releases the newest key to those who ask for it and are of this site's roster; says whom it refuses."""
        self.take(board)
        newest = len(self._chain)
        if newest not in self._keys:
            return []
        epoch, said = self._chain.statements[-1], []
        for request in board.requests:
            if request.author in (self.identity.name, *self._chain.removed):
                continue
            try:
                said.append(grant(self.identity, self.trust, request, self._run, epoch, self._keys[newest]))
            except UntrustedError as error:
                said.append(
                    self.identity.state(
                        REFUSAL, run=self._run, to=request.author, request=digest(request), why=str(error)
                    )
                )
        return said

    # Hand-offs -----------------------------------------------------------------------------------

    def sign(self, kind: str, **content: Any) -> Statement:
        """Signs what this site sealed."""
        statement = self.identity.state(kind, **content)
        if kind == SHARE:
            self._share = (content["turn"], digest(statement))
        return statement

    def forget_share(self) -> None:
        """The turn in which this site sealed a share may not count."""
        self._share = (0, "")

    def check(self, handoff: SealedHandoff, kind: str) -> dict[str, Any]:
        """What the author of a hand-off signed of it.

        Raises:
            UntrustedError: this site does not believe its signer.
            HandoffError: it is a mean in which this site's own share was left out.
        """
        content = self.trust.check(handoff.statement, kind)
        if handoff.statement is not None:
            self._seen.add(handoff.statement.author)
        turn, share = self._share
        if (
            "shares" in content
            and content.get("turn") == turn + 1
            and share
            and share not in content["shares"]
        ):
            raise HandoffError(
                f"the mean of turn {turn} leaves this site's share out, which the server had taken: the server did not "
                f"pass it on, or {handoff.statement.author if handoff.statement else 'its author'}, which made the "
                "mean, left it out; ask both"
            )
        return content

    def takes_in_place(self, statement: dict[str, Any], seen: bytes) -> bool:
        """Whether a hand-off replaces the one that this site has seen: a checked epoch began with it."""
        replaced, epoch = statement.get("replaces"), statement.get("epoch")
        if not isinstance(epoch, int) or not 1 <= epoch <= len(self._chain):
            return False
        return bool(replaced) and replaced == self._chain.replaces(epoch) == seen.hex()

    def accuse(self, accused: Share, why: str) -> Statement:
        """Accuses the author of a hand-off."""
        return evidence.accuse(self.identity, self._run, accused, why)

    def pending_accusation(self, board: Board) -> Statement | None:
        """The newest accusation that has no verdict yet."""
        given = {
            self.trust.check(one, evidence.VERDICT).get("accusation")
            for one in board.evidence
            if one.kind == evidence.VERDICT
        }
        accusations = [one for one in board.evidence if one.kind == evidence.ACCUSATION]
        return next((one for one in reversed(accusations) if digest(one) not in given), None)

    def check_exhibit(self, accusation: Statement, exhibit: Share) -> None:
        """Whether what the server shows is what is accused.

        Raises:
            HandoffError: it is something else.
        """
        signed = evidence.accused_handoff(self.trust.check(accusation, evidence.ACCUSATION))
        if exhibit.sealed.statement != signed or exhibit.client != signed.author:
            raise HandoffError(
                f"the server shows another hand-off than the one that {accusation.author} accuses; ask its operator"
            )

    def give_verdict(self, accusation: Statement, why: str) -> Statement:
        """Confirms an accusation, or with an empty ``why`` denies it."""
        return evidence.give_verdict(self.identity, self._run, accusation, why)

    def withdraw(self) -> Statement:
        """Says that this site leaves for good."""
        return self.identity.state(evidence.WITHDRAWAL, run=self._run)

    # Farewell ------------------------------------------------------------------------------------

    def head(self, handoff: SealedHandoff) -> Statement:
        """Signs the hand-off with which the run ends for this site."""
        return self.identity.state(HEAD, **self._head(handoff))

    def _head(self, handoff: SealedHandoff) -> dict[str, Any]:
        return {
            "run": self._run,
            "epoch": handoff.epoch,
            "turn": handoff.turn,
            "handoff": handoff_digest(handoff).hex(),
        }

    def compare(self, heads: Heads, handoff: SealedHandoff) -> list[str]:
        """The sites, this one among them, that end with the same hand-off as this one.

        Fewer that end with another cannot take the model from the rest: one of them may lie. They are warned of.

        Raises:
            HandoffError: as many or more end with another: the server has shown this site another history.
            UntrustedError: a head is not signed by whom this site believes.
        """
        own = self._head(handoff)
        ends = [(one.author, self.trust.check(one, HEAD)) for one in heads.statements]
        others = {name: end for name, end in ends if end != own}
        same = sorted({name for name, _ in ends} - others.keys())
        if not others:
            return same
        differ = ", ".join(
            f"{name} ends with the hand-off of turn {end.get('turn')!s:.10} ({end.get('handoff')!s:.16})"
            for name, end in sorted(others.items())
        )
        differ += f"; this site with that of turn {own['turn']} ({own['handoff']:.16})"
        if len(others) >= len(same):
            raise HandoffError(
                f"{differ}: the server has shown them different histories, or they lie; keep no model of this run, and "
                "ask the server's operator"
            )
        log.warning(
            "%s, as %d of %d do: the fewer were shown another history by the server, or lie; ask them, and the "
            "server's operator",
            differ,
            len(same),
            len(same) + len(others),
        )
        return same

    def silent(self, heads: Heads) -> list[str]:
        """Sites of the roster that took part as far as this one has seen, were not put out, and whose head is not
        among ``heads``: gone, or the server keeps back what they signed.
        """
        known = set() if self.trust.roster is None else self.trust.roster.fingerprints().keys()
        said = {self.identity.name} | {one.author for one in heads.statements}
        return sorted((self._seen & known) - self._chain.removed.keys() - said)

    def __reduce__(self) -> str:
        raise TypeError("SiteConsortium holds a site's keys and refuses to be pickled")
