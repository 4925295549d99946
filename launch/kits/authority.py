"""The authority of a consortium: what it signs for the server and the sites.

Reference: RFC 5280. Keys are ECDSA P-256.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from suture.launch.kits.keys import new_key, private_pem
from suture.launch.kits.kit import Certificates
from suture.launch.kits.server_address import PLACES, Places
from suture.runtime.consortium.credentials import Role, common_name
from suture.runtime.consortium.roster import fingerprint
from suture.runtime.errors import ConfigError
from suture.runtime.host.private_files import check_private, write_private

DAY = datetime.timedelta(days=1)
AUTHORITY_DAYS = 3650
"""How long an authority is valid; no certificate of its outlasts it."""
_MOST_OF_A_NAME = 64  # characters of a common name, by X.520


class Authority:
    """Signs certificates, and keeps a copy of each: ``issued/NAME.SERIAL.pem``.

    Args:
        folder: a new authority's, made where missing, mode 0700: gets ca.pem, authority.key (mode 0600) and
            authority.toml, which says where the server is.
        hosts: addresses and names at which the server is found.
        name: of the authority; by default made of the folder's.
        server: HOST:PORT at which sites reach the server, for those who come late; may be empty.

    Attributes:
        folder: see there.
        ca: its own certificate.
        places: where the server is.
        ends: when the authority itself does.

    Raises:
        FileExistsError: the folder holds an authority; nothing is overwritten.
        OSError: it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        hosts: tuple[str, ...] = ("127.0.0.1", "localhost"),
        name: str = "",
        server: str = "",
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key, places = new_key(), Places(hosts, server)
        common = (name or f"authority of {folder.name}")[:_MOST_OF_A_NAME]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
        self._set(folder, places, key, subject, datetime.datetime.max.replace(tzinfo=datetime.UTC))
        write_private(folder / "authority.key", private_pem(key))
        own: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (_key_usage(signs=True), True),
        ]
        signed = self._sign(subject, key.public_key(), own, ends=AUTHORITY_DAYS * DAY)
        self.ends = x509.load_pem_x509_certificate(signed).not_valid_after_utc
        write_private(self.ca, signed)
        places.write(folder)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """An authority that was made before.

        Raises:
            ConfigError: a file cannot be read; ca.pem and authority.key do not belong together; others may read the
                key.
        """
        ca, path = folder / "ca.pem", folder / "authority.key"
        try:
            check_private(path, "key file")
            certificate = x509.load_pem_x509_certificate(ca.read_bytes())
            key = load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise ConfigError(
                f"{folder} is no authority: cannot read {error.filename}: {error.strerror}; name the folder "
                "'authority' that 'suture provision' made"
            ) from None
        except (ValueError, TypeError):
            raise ConfigError(
                f"{folder} is no authority: {ca} must hold its certificate and {path} its private key, both in PEM and "
                "without a password"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError(f"{path} is not the key of {ca}; give the two that go together")
        made = cls.__new__(cls)
        made._set(folder, Places.read(folder), key, certificate.subject, certificate.not_valid_after_utc)
        return made

    def _set(
        self,
        folder: Path,
        places: Places,
        key: ec.EllipticCurvePrivateKey,
        name: x509.Name,
        ends: datetime.datetime,
    ) -> None:
        self.folder, self.ca, self.ends = folder, folder / "ca.pem", ends
        self.places, self._key, self._name = places, key, name

    @property
    def certificate(self) -> x509.Certificate:
        """Its own."""
        return x509.load_pem_x509_certificate(self.ca.read_bytes())

    def issue(
        self,
        name: str,
        role: Role = Role.CLIENT,
        *,
        begins: datetime.timedelta = -DAY,
        ends: datetime.timedelta = 30 * DAY,
        files: Certificates | None = None,
    ) -> Certificates:
        """Makes a private key, mode 0600, and its certificate.

        Args:
            name: the common name.
            role: what the certificate is for.
            begins: when it begins to count, from now on.
            ends: when it ceases to.
            files: where they go, with a copy of ca.pem; None for NAME.pem and NAME.key in the authority's folder, where
                those of before are replaced.
        """
        key = new_key()
        signed = self.sign(name, role, key.public_key(), begins=begins, ends=ends)
        if files is None:
            own = self.folder / f"{name}.pem", self.folder / f"{name}.key"
            files = Certificates(cert=own[0], key=own[1], ca=self.ca)
            for file in own:
                file.unlink(missing_ok=True)
        else:
            write_private(files.ca, self.ca.read_bytes())
        write_private(files.cert, signed)
        write_private(files.key, private_pem(key))
        return files

    def sign(
        self,
        name: str,
        role: Role,
        key: ec.EllipticCurvePublicKey,
        *,
        begins: datetime.timedelta = -DAY,
        ends: datetime.timedelta = 30 * DAY,
    ) -> bytes:
        """The certificate of a public key, in PEM; a copy is kept.

        Args:
            name: the common name.
            role: what the certificate is for; a server's lists the authority's ``hosts``.
            key: of whom the certificate is for.
            begins: when it begins to count, from now on.
            ends: when it ceases to; not after the authority's own end.

        Raises:
            ConfigError: it is for a server, and the folder does not say where; the authority itself has ended.
        """
        if datetime.datetime.now(datetime.UTC) > self.ends:
            raise ConfigError(
                f"the authority in {self.folder} ended on {self.ends:%Y-%m-%d}, and what it signs counts for nothing; "
                "make a new one, with new kits: suture provision"
            )
        if role is Role.SERVER and not self.places.hosts:
            raise ConfigError(
                f"{self.folder / PLACES} names no host, and a server's certificate must name where the sites find it; "
                'write there: hosts = ["suture.example.org"]'
            )
        kinds: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_key_usage(signs=False), True),
            (x509.ExtendedKeyUsage([role.usage]), False),
        ]
        if role is Role.SERVER:
            kinds.append((x509.SubjectAlternativeName([_host(host) for host in self.places.hosts]), False))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signed = self._sign(subject, key, kinds, begins, ends)
        issued = self.folder / "issued"
        issued.mkdir(mode=0o700, exist_ok=True)
        serial = x509.load_pem_x509_certificate(signed).serial_number
        write_private(issued / f"{name}.{serial:x}.pem", signed)
        return signed

    def sites(self) -> dict[str, str]:
        """By name, the fingerprint of each site for which a certificate was signed; of several the newest."""
        return {common_name(one): fingerprint(one) for one in self.issued() if _is_for(one, Role.CLIENT)}

    def issued(self) -> list[x509.Certificate]:
        """All that was signed so far, the newest last."""
        signed = [
            x509.load_pem_x509_certificate(path.read_bytes())
            for path in (self.folder / "issued").glob("*.pem")
        ]
        return sorted(signed, key=lambda one: one.not_valid_before_utc)

    def sign_list(self, entries: Sequence[x509.RevokedCertificate], number: int) -> bytes:
        """The list of what counts no more, in PEM (RFC 5280, section 5).

        Args:
            entries: certificates that were taken back.
            number: higher than that of every list before.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(datetime.datetime.now(datetime.UTC))
            # A list has no end of its own: who has none newer goes by this one.
            .next_update(self.ends)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False)
            .add_extension(x509.CRLNumber(number), False)
        )
        for entry in entries:
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        kinds: list[tuple[x509.ExtensionType, bool]],
        begins: datetime.timedelta = -DAY,
        ends: datetime.timedelta = 30 * DAY,
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(min(now + ends, self.ends))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False)
        )
        for kind, critical in kinds:
            builder = builder.add_extension(kind, critical)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    """An authority signs certificates and what it has withdrawn; everybody else signs TLS's handshake, and no more."""
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _is_for(certificate: x509.Certificate, role: Role) -> bool:
    return role.usage in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
