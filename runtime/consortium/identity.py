"""Who says what: a site signs with the key of its kit, and the others check that it was one of their roster.

The server relays what sites state to each other. It can keep a statement back, but not make or change one.

References: ECDSA with P-256 and SHA-256 (FIPS 186-5); certificates RFC 5280.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from suture.runtime.consortium.credentials import Credentials, common_name
from suture.runtime.consortium.roster import Roster, fingerprint
from suture.runtime.errors import ConfigError, UntrustedError
from suture.runtime.wire.messages import Statement, printable
from suture.runtime.wire.statements import signed_bytes

MAX_CONTENT = 2**17
"""Most characters of a statement; an epoch names all sites that were put out, an accusation holds a statement."""


class Revoked(Protocol):
    """Knows which certificates the authority has taken back."""

    def revoked(self, certificate: x509.Certificate) -> bool: ...
    def take(self, signed_list: bytes) -> None: ...
    def says(self, signed_list: bytes, certificate: x509.Certificate) -> bool: ...


@dataclass(frozen=True)
class Identity:
    """A site that signs.

    Attributes:
        name: its certificate's.
        certificate: in PEM.
    """

    name: str
    certificate: str
    _key: EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def of(cls, credentials: Credentials) -> Identity:
        """The identity of a kit.

        Raises:
            ConfigError: its key is not one that signs with ECDSA on P-256.
        """
        key = load_pem_private_key(credentials.key, password=None)
        if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise ConfigError(
                f"the key of {credentials.name} is no ECDSA key on P-256; have a kit made by suture provision, or "
                "a key by suture request"
            )
        own = x509.load_pem_x509_certificates(credentials.certificate)[0]
        return cls(credentials.name, own.public_bytes(Encoding.PEM).decode(), key)

    def state(self, kind: str, **content: Any) -> Statement:
        """Says ``content`` (plain values) and signs it."""
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        signature = self._key.sign(signed_bytes(kind, self.name, text), ECDSA(SHA256())).hex()
        return Statement(kind, self.name, text, self.certificate, signature)

    def __reduce__(self) -> str:
        raise TypeError("an Identity holds a site's private key and refuses to be pickled")


class Trust:
    """Whom one side believes.

    Args:
        authority: certificates of those who sign for the consortium.
        roster: the fingerprints that this site has approved itself; None at the server, which judges no site.
        revocations: which certificates do not count any more.
    """

    def __init__(
        self, authority: bytes, roster: Roster | None = None, revocations: Revoked | None = None
    ) -> None:
        self._authority: Sequence[x509.Certificate] = x509.load_pem_x509_certificates(authority)
        self.roster = roster
        self.revocations = revocations
        self.own: tuple[str, str] | None = None

    def is_of(self, identity: Identity) -> None:
        """Says whose trust this is. A site trusts the key that it holds, whatever its roster lists by now: the roster
        may list the next key already, while a run goes on with this one.
        """
        own = x509.load_pem_x509_certificate(identity.certificate.encode())
        self.own = identity.name, fingerprint(own)

    def check(self, statement: Statement | None, kind: str, *, fresh: bool = False) -> dict[str, Any]:
        """What a statement of that kind says.

        Args:
            statement: as it came.
            kind: what it must be.
            fresh: whether its author must be in good standing now, too: its certificate valid and not revoked. What a
                site said before it was revoked still counts.

        Raises:
            UntrustedError: it is no such statement, its signature is wrong, or its author is not believed.
        """
        if statement is None:
            raise UntrustedError(f"a {kind} that nobody has signed; refused")
        name = printable(statement.author[:40])
        if statement.kind != kind or len(statement.content) > MAX_CONTENT:
            raise UntrustedError(f"a statement of {name} that is no {kind}; refused")
        certificate = self._certificate(statement)
        self.check_certificate(certificate, statement.author, fresh=fresh)
        key = certificate.public_key()
        try:
            signature, signed = (
                bytes.fromhex(statement.signature),
                signed_bytes(kind, statement.author, statement.content),
            )
            assert isinstance(key, EllipticCurvePublicKey)
            key.verify(signature, signed, ECDSA(SHA256()))
            content = json.loads(statement.content)
        except (ValueError, RecursionError, InvalidSignature, AssertionError):
            raise UntrustedError(f"a {kind} of {name} whose signature is not its; refused") from None
        if not isinstance(content, dict):
            raise UntrustedError(f"a {kind} of {name} that says nothing; refused")
        return content

    def check_certificate(self, certificate: x509.Certificate, name: str, *, fresh: bool = False) -> None:
        """Whether a certificate is ``name``'s, of this consortium, and counts.

        Raises:
            UntrustedError: says why not.
        """
        shown, now = printable(name[:40]), datetime.now(UTC)
        if common_name(certificate) != name or not any(
            _signed_by(certificate, one) for one in self._authority
        ):
            raise UntrustedError(
                f"a certificate of {shown} that the consortium's authority has not signed for it; refused"
            )
        if fresh and not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise UntrustedError(f"the certificate of {shown} is not valid now; it must be renewed")
        if fresh and self.is_revoked(certificate):
            raise UntrustedError(f"the certificate of {shown} was revoked; refused")
        own = fingerprint(certificate)
        if self.roster is not None and (name, own) != self.own and not self.roster.approves(name, own):
            raise UntrustedError(
                f"{shown} with fingerprint {own[:16]} is not in this site's roster; if it belongs to the consortium, "
                f"ask it for its fingerprint by telephone and say: suture roster add KIT {shown} {own}"
            )

    def is_revoked(self, certificate: x509.Certificate) -> bool:
        """Whether the authority has taken a certificate back."""
        return self.revocations is not None and self.revocations.revoked(certificate)

    def is_revoked_statement(self, statement: Statement) -> bool:
        """Whether the certificate that a statement was made with has been taken back since."""
        try:
            return self.is_revoked(self._certificate(statement))
        except UntrustedError:
            return False

    def is_revoked_by(self, signed_list: str, statement: Statement) -> bool:
        """Whether a list of the authority's has taken the certificate back that a statement was made with."""
        try:
            certificate = self._certificate(statement)
        except UntrustedError:
            return False
        return self.revocations is not None and self.revocations.says(signed_list.encode(), certificate)

    @staticmethod
    def _certificate(statement: Statement) -> x509.Certificate:
        try:
            return x509.load_pem_x509_certificate(statement.certificate.encode())
        except ValueError:
            raise UntrustedError(
                f"a {statement.kind:.20} of {printable(statement.author[:40])} without a certificate; refused"
            ) from None


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
