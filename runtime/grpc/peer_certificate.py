"""Whether the certificate that the other end shows is to be trusted, where a proxy opens TLS; otherwise TLS asks this.

References: RFC 5280 (6: paths; 4.2.1.9 basic constraints; 4.2.1.12 extended key usage).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from suture.runtime.consortium.credentials import SITE_NAME, Role, common_name
from suture.runtime.errors import ConfigError, WireError

_MOST_CERTIFICATES = 4
_MOST_BETWEEN = 2
"""Authorities between the kit's and a certificate."""


def takes_all(certificate: bytes) -> str:
    """Refuses none: where no list of revoked certificates is known."""
    return ""


class PeerCertificates:
    """Checks the certificates of peers of one role.

    Args:
        authority: certificates of those who may sign them, PEM.
        role: the peers'.
        refuses: why a certificate (PEM) counts no more, empty where it does.
    """

    def __init__(self, authority: bytes, role: Role, refuses: Callable[[bytes], str] = takes_all) -> None:
        self.role = role
        self._refuses = refuses
        # A site's certificate names no host, which the library's own policy wants; what it must have is checked below.
        signers = ExtensionPolicy.permit_all()
        signers = signers.require_present(
            x509.BasicConstraints, Criticality.AGNOSTIC, None
        )  # that it says CA
        signers = signers.may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_certificates)
        self._policy = (
            PolicyBuilder()
            .store(Store(x509.load_pem_x509_certificates(authority)))
            .max_chain_depth(_MOST_BETWEEN)
            .extension_policies(ca_policy=signers, ee_policy=ExtensionPolicy.permit_all())
        )

    def check(self, chain: bytes) -> x509.Certificate:
        """The certificate that a peer shows, once it is known to be good.

        Args:
            chain: it, and those between it and the authority; PEM.

        Raises:
            ConfigError: it is not to be trusted; the message says why.
            WireError: it is no certificate.
        """
        own, between = _read(chain)
        _check_dates(own)
        try:
            self._policy.build_client_verifier().verify(own, between)
        except (VerificationError, ValueError, UnsupportedAlgorithm):
            raise ConfigError(
                f"the certificate of {_named(own)} was not signed by the authority of this kit; one consortium has one "
                "authority"
            ) from None
        if self.role.usage not in _usages(own):
            raise ConfigError(f"the certificate of {_named(own)} is not one of a {self.role.name.lower()}")
        if self.role is Role.CLIENT and (
            not SITE_NAME.fullmatch(common_name(own)) or common_name(own) == "server"
        ):
            raise ConfigError(f"the certificate of {_named(own)} names no site")
        key = own.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ConfigError(f"the certificate of {_named(own)} is not for an ECDSA key on P-256")
        if reason := self._refuses(own.public_bytes(Encoding.PEM)):
            raise ConfigError(f"{_named(own)} is not let in: {reason}")
        return own


def _read(chain: bytes) -> tuple[x509.Certificate, list[x509.Certificate]]:
    try:
        own, *between = x509.load_pem_x509_certificates(chain)
        own.public_key()
        _usages(own)
        common_name(own)
    except Exception:  # anybody may have written it, and the library has an error of its own for every field
        raise WireError("a handshake whose certificate cannot be read") from None
    if len(between) >= _MOST_CERTIFICATES:
        raise WireError(f"a handshake with {len(between) + 1} certificates")
    return own, between


def _named(certificate: x509.Certificate) -> str:
    return repr(common_name(certificate)[:60])


def _usages(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return []


def _check_dates(certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= now <= ends:
        when = f"begins on {begins:%Y-%m-%d}" if now < begins else f"expired on {ends:%Y-%m-%d}"
        raise ConfigError(
            f"the certificate of {_named(certificate)} {when}, and the clock here says {now:%Y-%m-%d %H:%M} UTC; set "
            "the clock right, or have the certificate renewed"
        )


def _signs_certificates(_: Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("a certificate whose key may not sign others")
