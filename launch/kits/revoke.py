"""The authority's list of certificates that count no more, a standard one (X.509 CRL): ``revoked.pem``."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from suture.launch.kits.authority import Authority
from suture.runtime.consortium.credentials import common_name
from suture.runtime.consortium.revocations import REVOKED, SignedList, read_list
from suture.runtime.consortium.roster import fingerprint
from suture.runtime.errors import ConfigError, UntrustedError
from suture.runtime.host.private_files import replace_private

REASONS = {
    "unspecified": x509.ReasonFlags.unspecified,
    "key-compromise": x509.ReasonFlags.key_compromise,
    "affiliation-changed": x509.ReasonFlags.affiliation_changed,
    "superseded": x509.ReasonFlags.superseded,
    "cessation-of-operation": x509.ReasonFlags.cessation_of_operation,
}


@dataclass(frozen=True)
class Taken:
    """What `revoke` has done.

    Attributes:
        number: of the new list.
        certificates: those that count no more since.
    """

    number: int
    certificates: tuple[x509.Certificate, ...]


def read_revoked(authority: Authority) -> SignedList:
    """An authority's newest list; an empty one with number 0 where it has none.

    Raises:
        ConfigError: it cannot be read, or is not this authority's.
    """
    path = authority.folder / REVOKED
    try:
        return read_list(path.read_bytes(), [authority.certificate])
    except FileNotFoundError:
        return SignedList.none()
    except (OSError, UntrustedError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}; put the newest one back, from the server's kit or a site's: a new list "
            "would let those in again whom it names"
        ) from None


def of_name(authority: Authority, name: str) -> list[x509.Certificate]:
    """All certificates that were signed for a name.

    Raises:
        ConfigError: there are none.
    """
    issued = authority.issued()
    found = [one for one in issued if common_name(one) == name]
    if not found:
        known = sorted({common_name(one) for one in issued})
        raise ConfigError(
            f"no certificate was signed for {name!r:.60}; known: {', '.join(known) or 'none'}; give a name or "
            "the file of a certificate"
        )
    return found


def of_key(authority: Authority, certificate: bytes) -> list[x509.Certificate]:
    """A certificate, and all that were signed for the same key: who has lost a key has lost it in each of them.

    Raises:
        ConfigError: it is none, or not this authority's.
    """
    try:
        given = x509.load_pem_x509_certificate(certificate)
    except ValueError:
        raise ConfigError("that file holds no certificate in PEM (-----BEGIN CERTIFICATE-----)") from None
    try:
        given.verify_directly_issued_by(authority.certificate)
    except Exception:  # of the library's: a signature, a name or an algorithm that is not this authority's
        raise ConfigError(
            f"the certificate of {common_name(given)!r:.60} was not signed by the authority in {authority.folder}; it "
            "can only take back its own"
        ) from None
    same = [one for one in authority.issued() if fingerprint(one) == fingerprint(given)]
    return same if given in same else [*same, given]


def revoke(
    authority: Authority, certificates: Sequence[x509.Certificate], reason: str = "unspecified"
) -> Taken:
    """Puts certificates on a new list, which takes the place of the old one in a single step.

    Raises:
        ConfigError: all of them stand there already; the list cannot be read or written.
    """
    before = read_revoked(authority)
    gone = {entry.serial_number for entry in before.entries}
    new = tuple(one for one in certificates if one.serial_number not in gone)
    if not new:
        raise ConfigError(
            f"{', '.join(sorted({common_name(one) for one in certificates}))}: revoked already, by list {before.number}"
        )
    number = before.number + 1
    signed = authority.sign_list([*before.entries, *(_entry(one, reason) for one in new)], number)
    try:
        replace_private(authority.folder / REVOKED, signed)
    except OSError as error:
        raise ConfigError(f"cannot write {authority.folder / REVOKED}: {error.strerror}") from None
    return Taken(number, new)


def _entry(certificate: x509.Certificate, reason: str) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
    builder = builder.revocation_date(datetime.datetime.now(datetime.UTC))
    if (flag := REASONS[reason]) is not x509.ReasonFlags.unspecified:  # which RFC 5280 says by saying nothing
        builder = builder.add_extension(x509.CRLReason(flag), False)
    return builder.build()
