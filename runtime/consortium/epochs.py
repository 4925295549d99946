"""The hand-off key's epochs: a signed chain that says who made each key, and whom it was kept from.

The first epoch begins with the initial parts. When a site is put out a new one starts: whoever has the key seals the
newest hand-off again under a new key, which it releases to those who are left.
"""

from __future__ import annotations

from typing import Any

from cryptography import x509

from suture.runtime.consortium.credentials import common_name
from suture.runtime.consortium.evidence import convictions, withdrawn
from suture.runtime.consortium.identity import Identity, Trust
from suture.runtime.errors import UntrustedError
from suture.runtime.wire.messages import Board, Statement
from suture.runtime.wire.statements import digest

EPOCH = "epoch"


class EpochChain:
    """The epochs that one site has checked.

    Args:
        trust: whom it believes.
        run: the run's id.
    """

    def __init__(self, trust: Trust, run: str) -> None:
        self._trust, self._run = trust, run
        self.statements: list[Statement] = []
        self._contents: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self.statements)

    @property
    def removed(self) -> dict[str, str]:
        """Who was put out so far, and why."""
        return dict(self._contents[-1]["removed"]) if self._contents else {}

    def commitment(self, number: int) -> str:
        """What the epoch of that number, from 1, says of its key."""
        return str(self._contents[number - 1]["commitment"])

    def replaces(self, number: int) -> str:
        """Digest (hex) of the hand-off that the epoch of that number began with; empty for the initial parts."""
        return str(self._contents[number - 1]["handoff"])

    def next(
        self, identity: Identity, board: Board, removed: dict[str, str], commitment: str, handoff: str
    ) -> Statement:
        """States the epoch after those there are.

        Raises:
            UntrustedError: one is to be put out against whom the board has nothing.
        """
        self._check_removed(removed, board)
        before = digest(self.statements[-1]) if self.statements else ""
        return identity.state(
            EPOCH,
            run=self._run,
            number=len(self) + 1,
            before=before,
            removed=removed,
            commitment=commitment,
            handoff=handoff,
        )

    def take(self, board: Board, anew: bool = False) -> None:
        """Takes up what is new on the board.

        Args:
            board: as the server passes it on.
            anew: whether the first epoch may be another than before: nobody has trained yet.

        Raises:
            UntrustedError: it is not a continuation of what this site knows, or was made by one that may not.
        """
        known = [digest(one) for one in self.statements]
        if anew and len(known) == 1 and [digest(one) for one in board.epochs[:1]] != known:
            self.statements, self._contents, known = [], [], []
        if [digest(one) for one in board.epochs[: len(known)]] != known:
            raise UntrustedError(
                "the server offers another history of the hand-off key than this site knows; ask its operator"
            )
        for statement in board.epochs[len(known) :]:
            content = self._trust.check(statement, EPOCH)
            # Its author's certificate may have ended since, and been renewed: that takes back nothing of what it said.
            if statement is board.epochs[-1] and self._trust.is_revoked_statement(statement):
                raise UntrustedError(f"the certificate of {statement.author:.40} was revoked; refused")
            before = digest(self.statements[-1]) if self.statements else ""
            if [content.get(name) for name in ("run", "number", "before")] != [
                self._run,
                len(self) + 1,
                before,
            ]:
                raise UntrustedError(
                    f"an epoch of {statement.author:.40} that does not follow the one before; refused"
                )
            removed = content.get("removed")
            if not isinstance(removed, dict) or not all(
                isinstance(content.get(n), str) for n in ("commitment", "handoff")
            ):
                raise UntrustedError(f"an epoch of {statement.author:.40} that says too little; refused")
            if statement.author in removed or not self.removed.keys() <= removed.keys():
                raise UntrustedError(
                    f"an epoch of {statement.author:.40}, which was put out, or lets one in again; refused"
                )
            self._check_removed(removed, board)
            self.statements.append(statement)
            self._contents.append(content)

    def _check_removed(self, removed: dict[str, str], board: Board) -> None:
        """Whether each that is put out now was convicted, has left for good, or was revoked.

        Raises:
            UntrustedError: nothing says so.
        """
        new = removed.keys() - self.removed.keys()
        if not new:
            return
        found = {one.guilty for one in convictions(self._run, board.evidence, self._believed)}
        found |= withdrawn(self._run, board.evidence, self._believed)
        for name in new - found:
            if not self._was_revoked(name, removed[name]):
                raise UntrustedError(
                    f"a new epoch puts {name:.40} out, and no two sites have convicted it, nor has it left, nor was it "
                    "revoked; refused"
                )

    def _believed(self, statement: Statement, kind: str) -> dict[str, Any]:
        return self._trust.check(statement, kind)

    def _was_revoked(self, name: str, certificate: str) -> bool:
        try:
            read = x509.load_pem_x509_certificate(certificate.encode())
        except ValueError:
            return False
        return common_name(read) == name and self._trust.is_revoked(read)
