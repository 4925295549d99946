"""How a hand-off key goes from one site to another through a server that must not have it.

Who asks draws an ephemeral X25519 key and signs its public half with its kit's key; who grants does the same. The
key travels under AES-256-GCM with what both ephemerals agree on. A signature key is never used to agree on a key.

References: X25519 RFC 7748; HKDF RFC 5869; sign-and-MAC of ephemerals, Krawczyk 2003 (SIGMA).
"""

from __future__ import annotations

from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from suture.runtime.consortium.identity import Identity, Trust
from suture.runtime.errors import UntrustedError
from suture.runtime.wire.messages import Statement
from suture.runtime.wire.statements import digest

REQUEST, GRANT = "key request", "key grant"
_NONCE = bytes(12)  # every key that a grant is sealed with is used once


class KeyRequest:
    """A site's question for the keys of ``run``, with the secret that opens the answers.

    Args:
        identity: who asks; with a renewed certificate it is another one.
        run: the run's id.
    """

    def __init__(self, identity: Identity, run: str) -> None:
        self.identity, self._run = identity, run
        self._ephemeral = X25519PrivateKey.generate()
        self._asked: set[str] = set()

    def ask(self, has: int) -> Statement:
        """What the others are told: ``has`` is the newest epoch whose key the site has, 0 for none."""
        public = self._ephemeral.public_key().public_bytes_raw().hex()
        statement = self.identity.state(REQUEST, run=self._run, has=has, ephemeral=public)
        self._asked.add(digest(statement))
        return statement

    def open(self, content: dict[str, Any]) -> bytes | None:
        """The key in a grant, whose ``content`` has been checked; None where it answers another question.

        Raises:
            UntrustedError: it does not open.
        """
        if content.get("request") not in self._asked:
            return None
        try:
            theirs = X25519PublicKey.from_public_bytes(bytes.fromhex(content["ephemeral"]))
            cipher = _cipher(self._ephemeral.exchange(theirs), content["request"], content["epoch"])
            return cipher.decrypt(_NONCE, bytes.fromhex(content["sealed"]), None)
        except (KeyError, TypeError, ValueError, InvalidTag):
            raise UntrustedError("a grant of the hand-off key that does not open; refused") from None


def grant(
    identity: Identity, trust: Trust, request: Statement, run: str, epoch: Statement, key: bytes
) -> Statement:
    """Releases ``key`` of ``epoch`` to whoever signed ``request``.

    Raises:
        UntrustedError: its author is not in this site's roster, or it asks for another run's key.
    """
    content = trust.check(request, REQUEST, fresh=True)
    try:
        if content["run"] != run:
            raise ValueError
        theirs = X25519PublicKey.from_public_bytes(bytes.fromhex(content["ephemeral"]))
        ephemeral = X25519PrivateKey.generate()
        shared = ephemeral.exchange(theirs)
    except (KeyError, TypeError, ValueError):
        raise UntrustedError(f"a request of {request.author:.40} for a key of another run; refused") from None
    asked, stated = digest(request), digest(epoch)
    return identity.state(
        GRANT,
        run=run,
        epoch=stated,
        to=request.author,
        request=asked,
        ephemeral=ephemeral.public_key().public_bytes_raw().hex(),
        sealed=_cipher(shared, asked, stated).encrypt(_NONCE, key, None).hex(),
    )


def _cipher(shared: bytes, request: str, epoch: str) -> AESGCM:
    info = f"suture/grant/{request}/{epoch}".encode()
    return AESGCM(HKDF(SHA256(), length=32, salt=None, info=info).derive(shared))
