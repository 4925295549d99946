"""Which certificates the authority has taken back: the newest of its lists that this machine has seen.

A list is signed by the authority, so it may come over any way: a file, or the server. Whoever passes it on can keep a
newer one back. No one can change a list, and an older one never replaces a newer one.

References: RFC 5280, section 5 (certificate revocation lists).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from suture.runtime.errors import ConfigError, UntrustedError
from suture.runtime.host.private_files import replace_private

log = logging.getLogger(__name__)

REVOKED = "revoked.pem"
_MOST_BYTES = 2**18
"""Most characters of a list: thousands of certificates. It crosses with statements, which have a bound."""
_MOST_KEPT = 1000
"""Most certificates whose answer is kept; a consortium has fewer."""


@dataclass(frozen=True)
class SignedList:
    """One of the authority's lists.

    Attributes:
        number: grows from list to list.
        entries: what was taken back.
        pem: as it was signed; empty where there has been none.
        issuer: who signed it.
    """

    number: int
    entries: tuple[x509.RevokedCertificate, ...]
    pem: bytes
    issuer: x509.Name | None

    @classmethod
    def none(cls) -> SignedList:
        """The empty list: there has been none yet."""
        return cls(0, (), b"", None)

    def entry(self, certificate: x509.Certificate) -> x509.RevokedCertificate | None:
        """The list's entry for a certificate; None where it has none."""
        if certificate.issuer != self.issuer:
            return None
        return next((one for one in self.entries if one.serial_number == certificate.serial_number), None)


def read_list(pem: bytes, authority: Sequence[x509.Certificate]) -> SignedList:
    """Reads a list and checks who signed it.

    Args:
        pem: as `SignedList.pem`.
        authority: who may sign it.

    Raises:
        UntrustedError: it is none, or none of theirs; says why.
    """
    if len(pem) > _MOST_BYTES:
        raise UntrustedError(f"it has more than {_MOST_BYTES} bytes")
    try:
        found = x509.load_pem_x509_crl(pem)
        signed = any(
            found.issuer == one.subject and found.is_signature_valid(key)
            for one in authority
            if (key := _key_that_signs_lists(one)) is not None
        )
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        # A list that says in such a way that it is not the whole one would be misread (RFC 5280, 5.2).
        is_whole = not any(extension.critical for extension in found.extensions)
        entries = tuple(found)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        raise UntrustedError(
            "it is no list of revoked certificates in PEM (-----BEGIN X509 CRL-----)"
        ) from None
    if not signed:
        raise UntrustedError("the consortium's authority has not signed it")
    if not is_whole or number < 1:
        raise UntrustedError("it is not a whole list with a number; one is made by suture revoke")
    return SignedList(number, entries, pem, found.issuer)


def _key_that_signs_lists(authority: x509.Certificate) -> Any:
    try:
        if not authority.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign:
            return None
    except x509.ExtensionNotFound:
        pass
    return authority.public_key()


class Revocations:
    """The newest list of the authority's. Any thread may use it.

    Args:
        authority: the consortium's, in PEM.
        path: a list that people put there; it is read again when it has changed, and may be missing.
        memory: where the newest list that others have shown is kept, so that a restart does not forget it; None to
            keep it for the length of the process.

    Raises:
        ConfigError: one of the two files is there and is no list of that authority.
    """

    def __init__(self, authority: bytes, path: Path | None = None, memory: Path | None = None) -> None:
        self._authority = x509.load_pem_x509_certificates(authority)
        self._path, self._memory = path, memory
        self._lock = threading.RLock()
        self._newest = SignedList.none()
        self._stamp: tuple[int, int, int] | None = None
        self._said: set[str] = set()
        self._reasons: dict[bytes, str] = {}
        for file in (memory, path):
            if file is not None and file.exists():
                self._begin_with(file)

    @property
    def number(self) -> int:
        """Of the newest list, 0 before the first."""
        return self._current().number

    @property
    def pem(self) -> bytes:
        """The newest list, to be shown to others; empty before the first."""
        return self._current().pem

    def look(self) -> None:
        """Reads the file again where it has changed, as everything else here does before it answers."""
        self._current()

    def revoked(self, certificate: x509.Certificate) -> bool:
        """Whether the authority has taken a certificate back."""
        return self._current().entry(certificate) is not None

    def why_refused(self, certificate: bytes) -> str:
        """Why a certificate (PEM) counts no more, empty where it does; cheap when it is asked again."""
        with self._lock:
            newest = self._current()
            if certificate not in self._reasons:
                if len(self._reasons) >= _MOST_KEPT:
                    self._reasons.clear()
                entry = newest.entry(x509.load_pem_x509_certificate(certificate))
                self._reasons[certificate] = "" if entry is None else _in_words(entry)
            return self._reasons[certificate]

    def says(self, signed_list: bytes, certificate: x509.Certificate) -> bool:
        """Whether a list that another side shows takes a certificate back; not where it is none of the authority's."""
        try:
            return read_list(signed_list, self._authority).entry(certificate) is not None
        except UntrustedError:
            return False

    def take(self, signed_list: bytes) -> None:
        """Adopts a list that another side shows, if the authority has signed it and it is newer; else says why not."""
        with self._lock:
            newest = self._current()
            if signed_list == newest.pem:
                return
            try:
                shown = read_list(signed_list, self._authority)
            except UntrustedError as error:
                self._say(f"the server shows a list of revoked certificates that is not used: {error}")
                return
            if not self._adopt(shown, "the server shows a list of revoked certificates"):
                return
            if self._memory is not None:
                try:
                    replace_private(self._memory, signed_list)
                except OSError as error:
                    self._say(
                        f"cannot keep the list of revoked certificates in {self._memory}: {error.strerror}"
                    )

    def _begin_with(self, file: Path) -> None:
        try:
            found = file.stat()
            shown = read_list(file.read_bytes(), self._authority)
        except (OSError, UntrustedError) as error:
            raise ConfigError(
                f"cannot use {file}: {error}; it must be the revoked.pem of the kit's own authority: put the newest "
                "one there, or remove the file where there never was one"
            ) from None
        if file == self._path:
            self._stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        self._adopt(shown, f"{file} holds a list of revoked certificates")

    def _current(self) -> SignedList:
        """The newest list, after another look at the file."""
        with self._lock:
            if self._path is not None:
                self._look_at(self._path)
            return self._newest

    def _look_at(self, path: Path) -> None:
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            shown = read_list(path.read_bytes(), self._authority)
        except FileNotFoundError:
            return
        except (OSError, UntrustedError) as error:
            self._say(f"{path} is not used, and the list before it still counts: {error}")
            return
        self._adopt(shown, f"{path} holds a list of revoked certificates")

    def _adopt(self, shown: SignedList, what: str) -> bool:
        """Takes a list whose signature is good, if it is newer."""
        newest = self._newest
        if shown.pem == newest.pem:
            return False
        if newest.issuer not in (None, shown.issuer):
            self._say(f"{what} of another authority than list {newest.number}; not used")
            return False
        if shown.number <= newest.number:
            self._say(
                f"{what} with number {shown.number}, and this machine has seen number {newest.number}; not used"
            )
            return False
        self._newest, self._reasons, self._said = shown, {}, set()
        log.info("list %d of revoked certificates: %d in all", shown.number, len(shown.entries))
        return True

    def _say(self, words: str) -> None:
        """Warns, once until there is a newer list."""
        if words not in self._said:
            self._said.add(words)
            log.warning("%s", words)


def _in_words(entry: x509.RevokedCertificate) -> str:
    try:
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
        why = f" ({reason.name.replace('_', ' ')})"
    except (x509.ExtensionNotFound, ValueError):
        why = ""
    return f"its certificate was revoked on {entry.revocation_date_utc:%Y-%m-%d}{why}"
