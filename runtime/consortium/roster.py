"""The roster: which sites a site takes part with, by the fingerprints of their keys.

The authority that signs certificates could sign one for a site that does not exist, and the server could let it in. So
each site keeps a list of its own, which people compare by telephone, and which no message from outside changes.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from pathlib import Path

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from suture.runtime.consortium.credentials import SITE_NAME
from suture.runtime.errors import ConfigError
from suture.runtime.host.private_files import replace_private

FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_OTHERS_WRITE = 0o022
_GROUPS, _DIGITS = 6, 5
CODE_BITS = 99
"""Bits of the code: 30 decimal digits."""
_COST, _BLOCKS = 2**14, 8
"""Of scrypt: some 50 ms and 16 MB for each code. Who makes all keys may look for two rosters with one code, and by the
birthday paradox needs 2**50 tries for 99 bits: cheap with a bare hash, out of reach with this one."""
_HEADING = (
    "# The sites that this site takes part with: the SHA-256 of each one's public key.\n"
    "# Compare the code of 'suture roster show' by telephone; change this file with 'suture roster add'.\n"
)


def fingerprint(certificate: x509.Certificate) -> str:
    """The SHA-256 of a certificate's public key (DER, SubjectPublicKeyInfo), in 64 hex digits.

    Of the key, not of the certificate: a certificate that is renewed with the same key keeps its fingerprint.
    """
    return fingerprint_of_key(certificate.public_key())


def fingerprint_of_key(key: CertificatePublicKeyTypes) -> str:
    """As `fingerprint`, where there is no certificate yet."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


class Roster:
    """A site's roster file. It is read again when it has changed, so that an entry counts while a run goes on.

    Any thread may use it.

    Args:
        path: roster.toml. A copy that others than its owner may write is refused: they could list a site.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[tuple[int, int, int], dict[str, str]] | None = None

    @classmethod
    def create(cls, path: Path, fingerprints: dict[str, str]) -> Roster:
        """Writes a new roster with these sites, mode 0600; replaces one that is there.

        Raises:
            ConfigError: a name or a fingerprint is none, or the file cannot be written.
        """
        made = cls(path)
        made._write(fingerprints)
        return made

    def approves(self, name: str, fingerprint: str) -> bool:
        """Whether the site ``name`` is listed with exactly this key.

        Raises:
            ConfigError: as `fingerprints`.
        """
        return self.fingerprints().get(name) == fingerprint

    def fingerprints(self) -> dict[str, str]:
        """By site's name, as the file has them now.

        Raises:
            ConfigError: the file cannot be read, is no roster, or others may write it.
        """
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            read = self._read
            if read is None or read[0] != stamp:
                self._check_owner(found)
                read = (stamp, _parse(self._path.read_text(encoding="utf-8"), str(self._path)))
                self._read = read
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(
                f"cannot read the roster {self._path}: {reason}; it lists the sites that this one takes part with: put "
                "the one of the kit back"
            ) from None
        return dict(read[1])

    def code(self) -> str:
        """A short code of the whole roster for people to compare by telephone: six groups of five digits, 99 bits.

        Equal at two sites if they list the same names with the same keys. The SHA-256 over names and fingerprints, in
        the names' order, is made slow to compute (scrypt, RFC 7914).

        Raises:
            ConfigError: as `fingerprints`.
        """
        lines = "".join(f"{name} {of_key}\n" for name, of_key in sorted(self.fingerprints().items()))
        digest = hashlib.sha256(lines.encode()).digest()
        slow = hashlib.scrypt(digest, salt=b"suture roster code 1", n=_COST, r=_BLOCKS, p=1, dklen=32)
        digits = str(int.from_bytes(slow, "big") % 10 ** (_GROUPS * _DIGITS)).zfill(_GROUPS * _DIGITS)
        return " ".join(digits[start : start + _DIGITS] for start in range(0, len(digits), _DIGITS))

    def add(self, name: str, fingerprint: str, *, replace: bool = False) -> None:
        """Lists a site; a crash leaves the old file or the new one.

        Args:
            name: the site's.
            fingerprint: of its key, in 64 hex digits.
            replace: whether it may take the place of another key of that name.

        Raises:
            ConfigError: the name is listed with another key and ``replace`` is not set; name or fingerprint are none;
                the file cannot be read or written.
        """
        listed = self.fingerprints()
        if listed.get(name, fingerprint) != fingerprint and not replace:
            raise ConfigError(
                f"the roster {self._path} lists {name} with another key, {listed[name]}; ask {name} by telephone "
                "whether it has a new one, then give --replace"
            )
        self._write(listed | {name: fingerprint})

    def _write(self, fingerprints: dict[str, str]) -> None:
        _check(fingerprints, str(self._path))
        lines = tomli_w.dumps({"sites": dict(sorted(fingerprints.items()))})
        try:
            replace_private(self._path, f"{_HEADING}\n{lines}".encode())
        except OSError as error:
            raise ConfigError(
                f"cannot write the roster {self._path}: {error.strerror}; make the kit's folder your own, on a disk "
                "that can be written"
            ) from None

    def _check_owner(self, found: os.stat_result) -> None:
        if found.st_mode & _OTHERS_WRITE:
            raise ConfigError(
                f"the roster {self._path} has mode {found.st_mode & 0o777:o}: others may write it, and could list a "
                f"site; chmod 600 {self._path}"
            )
        if found.st_uid not in (os.geteuid(), 0):
            raise ConfigError(
                f"the roster {self._path} belongs to user {found.st_uid}, who could list a site, but this program runs "
                f"as user {os.geteuid()}: make it your own with chown"
            )


def _parse(text: str, origin: str) -> dict[str, str]:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin} is not TOML ({error}); put the roster of the kit back") from None
    sites = values.pop("sites", None)
    if values or not isinstance(sites, dict) or not all(isinstance(key, str) for key in sites.values()):
        raise ConfigError(
            f'{origin} is no roster: expected one table [sites] with a line NAME = "FINGERPRINT" for each; see '
            "'suture roster add'"
        )
    _check(sites, origin)
    return sites


def _check(sites: dict[str, str], origin: str) -> None:
    owners: dict[str, str] = {}
    for name, of_key in sites.items():
        if not SITE_NAME.fullmatch(name) or name == "server":
            raise ConfigError(
                f"{origin}: {name!r:.60} is no name of a site: a letter and then up to 39 letters, digits or "
                "underscores, and not 'server'"
            )
        if not FINGERPRINT.fullmatch(of_key):
            raise ConfigError(
                f"{origin}: {of_key!r:.80} is no fingerprint of {name}: expected 64 hex digits in lower case, as "
                "'suture roster show' prints them"
            )
        if (other := owners.setdefault(of_key, name)) != name:
            raise ConfigError(
                f"{origin}: {other} and {name} have one and the same key, {of_key}; each site has its own: ask both by "
                "telephone for theirs"
            )
