"""Who is at the other end where a proxy opens TLS: site and server sign fresh keys for one session.

    site    ->   certificate, X25519 key, 32 random bytes; a signature over them
    server  ->   its own of the same; a signature over them and the digest of the site's message

Each checks the other's certificate against the authority of its kit, then the signature. HKDF makes two keys of the
X25519 secret and of both messages, one for each direction, and the session's name: who alters a byte of either message
leaves the two ends with different keys.

A site's message that was recorded and is sent again is answered, too. The session that comes of it stays empty: its
keys take the X25519 key that only the site had. So the server believes a site at its first tag (``tags``), not here.

References: H. Krawczyk, "SIGMA: the SIGn-and-MAc approach to authenticated Diffie-Hellman" (CRYPTO 2003); RFC 7748
(X25519); RFC 5869 (HKDF); FIPS 186-5 (ECDSA).
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from suture.runtime.consortium.credentials import Credentials, Role, common_name
from suture.runtime.errors import ConfigError, WireError
from suture.runtime.grpc.peer_certificate import PeerCertificates, takes_all
from suture.runtime.wire.messages import PROTOCOL

MOST_BYTES = 2**14
"""Of a handshake's message: a chain of certificates in PEM, and little beside it."""
_SIGNED_BY = {
    role: f"suture/{PROTOCOL} proxy mode, handshake of a {role.name.lower()}\0".encode() for role in Role
}
"""What a signature is for. No message of TLS or of a run, which the same key may sign, begins so."""
_KEYS_FOR = f"suture/{PROTOCOL} proxy mode, keys of a session".encode()
_LENGTH = struct.Struct("<H")
_PUBLIC = 32
_RANDOM = 32
_KEY = 32
_NAME = 16


@dataclass(frozen=True)
class Keys:
    """What the two ends of a session share.

    Attributes:
        session: its name, which goes with every call in clear.
        site: authenticates what the site says.
        server: authenticates what the server says.
    """

    session: str
    site: bytes = field(repr=False)
    server: bytes = field(repr=False)


class Identity:
    """What one end signs with, and whom it believes.

    Args:
        credentials: of its kit.
        role: its own; the other end must have the other one.
        refuses: why a certificate (PEM) of the other end's counts no more, empty where it does.

    Raises:
        ConfigError: the kit's key is not ECDSA on P-256.
    """

    def __init__(
        self, credentials: Credentials, role: Role, refuses: Callable[[bytes], str] = takes_all
    ) -> None:
        key = load_pem_private_key(credentials.key, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ConfigError(
                f"--tls proxy signs with an ECDSA key on P-256, and that of {credentials.name} is another one; have a "
                "certificate made for such a key"
            )
        self.role = role
        self._key, self._certificate = key, credentials.certificate
        other = Role.CLIENT if role is Role.SERVER else Role.SERVER
        self._others = PeerCertificates(credentials.authority, other, refuses)

    def signed(self, ephemeral: X25519PrivateKey, over: bytes = b"") -> bytes:
        """A message of this end's, signed together with ``over``."""
        body = ephemeral.public_key().public_bytes_raw() + secrets.token_bytes(_RANDOM) + self._certificate
        signature = self._key.sign(_SIGNED_BY[self.role] + over + body, ec.ECDSA(SHA256()))
        return _LENGTH.pack(len(signature)) + signature + body

    def checked(self, message: bytes, over: bytes = b"") -> tuple[str, X25519PublicKey]:
        """The name and the fresh key of the other end, whose message this is.

        Raises:
            ConfigError: its certificate is not to be trusted.
            WireError: it is no such message, or was not signed with that certificate's key.
        """
        begin = _LENGTH.size + (_LENGTH.unpack(message[: _LENGTH.size])[0] if len(message) > 2 else 0)
        signature, body = message[_LENGTH.size : begin], message[begin:]
        if len(message) > MOST_BYTES or len(body) <= _PUBLIC + _RANDOM:
            raise WireError(f"a handshake of {len(message)} bytes that is none")
        role, certificate = self._others.role, self._others.check(body[_PUBLIC + _RANDOM :])
        key: Any = certificate.public_key()
        try:
            key.verify(signature, _SIGNED_BY[role] + over + body, ec.ECDSA(SHA256()))
        except InvalidSignature:
            raise WireError("a handshake that its certificate's key did not sign") from None
        return common_name(certificate), X25519PublicKey.from_public_bytes(body[:_PUBLIC])


class SiteHandshake:
    """A site's side of one handshake; ``message`` is what it says first.

    Args:
        identity: the site's.
    """

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._ephemeral = X25519PrivateKey.generate()
        self.message = identity.signed(self._ephemeral)

    def finish(self, answer: bytes) -> Keys:
        """The session's keys, by what the server answered.

        Raises:
            ConfigError: the server's certificate is not to be trusted.
            WireError: the answer is none to this handshake.
        """
        said = _digest(self.message)
        _, public = self._identity.checked(answer, said)
        return _keys(self._ephemeral, public, said + _digest(answer))


def answered(identity: Identity, message: bytes) -> tuple[str, bytes, Keys]:
    """The site whose handshake this is, what the server answers, and the session's keys.

    Raises:
        ConfigError: the site's certificate is not to be trusted.
        WireError: it is no handshake, or was not signed with that certificate's key.
    """
    site, public = identity.checked(message)
    ephemeral, said = X25519PrivateKey.generate(), _digest(message)
    answer = identity.signed(ephemeral, said)
    return site, answer, _keys(ephemeral, public, said + _digest(answer))


def shown_certificate(message: bytes) -> bytes:
    """The certificates in a handshake's message that has been checked, PEM."""
    begin = _LENGTH.size + _LENGTH.unpack(message[: _LENGTH.size])[0]
    return message[begin + _PUBLIC + _RANDOM :]


def _digest(message: bytes) -> bytes:
    return hashlib.sha256(message).digest()


def _keys(own: X25519PrivateKey, other: X25519PublicKey, transcript: bytes) -> Keys:
    try:
        secret = own.exchange(other)
    except ValueError:  # a point of small order: everybody would know the secret
        raise WireError("a handshake whose X25519 key is none") from None
    salt = _digest(transcript)
    made = HKDF(SHA256(), 2 * _KEY + _NAME, salt, _KEYS_FOR).derive(secret)
    return Keys(made[2 * _KEY :].hex(), made[:_KEY], made[_KEY : 2 * _KEY])
