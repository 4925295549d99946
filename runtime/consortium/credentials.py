"""Who a machine is: its certificate, its private key, and the authority that the consortium trusts.

What can be wrong with them is found here, before a connection is tried, and said in a sentence; TLS would say
"handshake failed". A site's name is its certificate's common name. Server and sites are told apart by extended key
usage.

References: RFC 8446 (TLS 1.3); RFC 5280 (certificates; 4.2.1.12 extended key usage).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from suture.runtime.errors import ConfigError
from suture.runtime.host.private_files import check_private

SITE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
"""What a site may be called; never "server"."""


class Role(Enum):
    """What a certificate is for, by its extended key usage."""

    # As text: an ObjectIdentifier cannot be pickled, and a benchmark hands kits to its processes.
    SERVER = ExtendedKeyUsageOID.SERVER_AUTH.dotted_string
    CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH.dotted_string

    @property
    def usage(self) -> ObjectIdentifier:
        """The usage that the certificate must list."""
        return ObjectIdentifier(self.value)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What TLS needs of one machine, in PEM.

    Attributes:
        name: the certificate's common name.
        certificate: its chain.
        key: its private key.
        authority: certificates of those who may sign the other side's.
        expires: when the certificate ends.
    """

    name: str
    certificate: bytes
    key: bytes = field(repr=False)
    authority: bytes
    expires: datetime

    @classmethod
    def read(cls, certificate: Path, key: Path, authority: Path, role: Role) -> Credentials:
        """Reads and checks the three files.

        Raises:
            ConfigError: one cannot be read, others may read the key, or they do not belong together, are not valid now
                or are for the other role.
        """
        own, authorities = _certificates(certificate), _certificates(authority)
        _check_key(key, own[0], certificate)
        _check_signed(own[0], [*own[1:], *authorities], certificate, authority)
        for one, path in ((own[0], certificate), *((known, authority) for known in authorities)):
            _check_dates(one, path)
        _check_usage(own[0], role, certificate)
        name = common_name(own[0])
        if role is Role.CLIENT and (not SITE_NAME.fullmatch(name) or name == "server"):
            raise ConfigError(
                f"the certificate {certificate} is for {name!r:.60}; a site's name is a letter and then up to 39 "
                "letters, digits or underscores, and not 'server': have one made with such a common name"
            )
        return cls(
            name=name,
            certificate=certificate.read_bytes(),
            key=key.read_bytes(),
            authority=authority.read_bytes(),
            expires=own[0].not_valid_after_utc,
        )


def read_authorities(path: Path) -> bytes:
    """The certificates in a file, PEM: who may sign those of the other side.

    Raises:
        ConfigError: it cannot be read, or holds none.
    """
    _certificates(path)
    return path.read_bytes()


def common_name(certificate: x509.Certificate) -> str:
    """The one common name of a certificate's subject, empty where there is none or several."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _certificates(path: Path) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read certificate {path}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)") from None


def _check_key(path: Path, certificate: x509.Certificate, certificate_path: Path) -> None:
    try:
        check_private(path, "key file")
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"cannot read key file {path}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise ConfigError(
            f"{path} holds no private key in PEM, or one under a password; give one without"
        ) from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise ConfigError(
            f"the key {path} is not that of the certificate {certificate_path}; give the two that go together"
        )


def _check_signed(
    certificate: x509.Certificate, signers: Sequence[x509.Certificate], path: Path, authority: Path
) -> None:
    for signer in signers:
        try:
            certificate.verify_directly_issued_by(signer)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return
    raise ConfigError(
        f"the certificate {path} was not signed by the authority in {authority}; get one that was, or the right "
        "authority"
    )


def _check_dates(certificate: x509.Certificate, path: Path) -> None:
    now = datetime.now(UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= now <= ends:
        what = (
            f"is valid from {begins:%Y-%m-%d %H:%M} on"
            if now < begins
            else f"expired on {ends:%Y-%m-%d %H:%M}"
        )
        raise ConfigError(
            f"the certificate {path} {what} UTC, and this machine's clock says {now:%Y-%m-%d %H:%M}; set the clock "
            "right, or have the certificate renewed"
        )


def _check_usage(certificate: x509.Certificate, role: Role, path: Path) -> None:
    try:
        usages = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        usages = []
    if role.usage not in usages:
        needed = "serverAuth" if role is Role.SERVER else "clientAuth"
        raise ConfigError(
            f"the certificate {path} is not one of a {role.name.lower()}: its extended key usage must list {needed}"
        )
