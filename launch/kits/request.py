"""How a machine gets a certificate without handing over its private key: it asks, the authority signs, it installs.

The key is drawn in the kit's folder and stays there. What travels is a request (a public key, a name, and a signature
that shows who has the private one) and what comes back is a certificate.

References: RFC 2986 (PKCS #10 requests).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from suture.launch.host.address import parse_address
from suture.launch.kits.keys import new_key, private_pem
from suture.launch.kits.kit import Certificates, Kit
from suture.launch.kits.provision import check_host, check_site_name, fill_site
from suture.runtime.consortium.credentials import Role, common_name
from suture.runtime.consortium.roster import Roster, fingerprint, fingerprint_of_key
from suture.runtime.errors import ConfigError
from suture.runtime.host.private_files import check_private, replace_private, write_private

SERVER = "server"
"""The name of the server's kit; no site has it."""


def role_of(name: str) -> Role:
    """What the machine of that name is, which its name alone says.

    Raises:
        ConfigError: nothing can be called so.
    """
    if name == SERVER:
        return Role.SERVER
    check_site_name(name)
    return Role.CLIENT


def begin_kit(folder: Path, name: str, server: str) -> Kit:
    """Makes a new kit with a key of its own and a request, all of it or nothing; `install` makes it whole.

    Args:
        folder: must not exist, or be an empty folder.
        name: of the machine: a site's, or "server".
        server: HOST:PORT at which sites reach the server.

    Raises:
        ConfigError: the folder has something in it or cannot be made, or name or address cannot be.
    """
    role = role_of(name)
    check_host(parse_address(server)[0])
    folder = folder.resolve()
    draft = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        kit = Kit(folder=draft / folder.name, role=role, name=name, server=server)
        kit.write()
        key = new_key()
        write_private(kit.certificates.key, private_pem(key))
        write_private(kit.request, _request(name, key))
        kit.folder.rename(folder)
    except OSError as error:
        raise ConfigError(
            f"cannot make {folder}: {error.strerror}; name a folder that can be made and that is not there yet"
        ) from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return Kit.begun(folder)


def ask_again(folder: Path, *, with_new_key: bool = False) -> Kit:
    """Writes the request of a kit that there is: for a renewal, or because the first one was lost.

    Args:
        folder: of the kit.
        with_new_key: whether the certificate is to be for another key, which `install` puts in the old one's place.

    Raises:
        ConfigError: it is no kit, its key cannot be used, or nothing can be written there.
    """
    kit = Kit.begun(folder)
    try:
        if with_new_key:
            key = new_key()
            replace_private(kit.next_key, private_pem(key))
        else:
            key = _read_key(kit.certificates.key)
            kit.next_key.unlink(missing_ok=True)
        replace_private(kit.request, _request(kit.name, key))
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder}: {error.strerror}; make the kit's folder your own, on a disk that can be written"
        ) from None
    return kit


def fingerprint_asked_for(kit: Kit) -> str:
    """The fingerprint of the key in a kit's request."""
    return fingerprint_of_key(x509.load_pem_x509_csr(kit.request.read_bytes()).public_key())


def install(folder: Path, certificate: Path, authority: Path | None = None) -> Kit:
    """Puts a certificate that the authority has signed into the kit that asked for it. May be said again.

    A site that is new gets a roster with itself alone in it, and a policy. One that has another key now lists that
    for itself.

    Args:
        folder: of the kit.
        certificate: what came back from the authority.
        authority: the authority's own certificate; None for that of the kit.

    Raises:
        ConfigError: something does not fit: the certificate's name, key, role, dates or authority; nothing was changed.
    """
    kit = Kit.begun(folder)
    ca = _authority_of(kit, authority)
    key = _key_for(kit, certificate)
    own = Certificates(cert=certificate, key=key, ca=ca).read(kit.role)
    if own.name != kit.name:
        raise ConfigError(
            f"the certificate {certificate} is for {own.name}, and this is the kit of {kit.name}; give {kit.name}'s"
        )
    of_key = fingerprint(x509.load_pem_x509_certificate(own.certificate))
    try:
        if kit.role is Role.CLIENT:
            fill_site(kit, {kit.name: of_key})
        replace_private(kit.certificates.ca, own.authority)
        # The key last: who is stopped here finds it where it was, and may say the same again.
        replace_private(kit.certificates.cert, own.certificate)
        if key == kit.next_key:
            key.replace(kit.certificates.key)
        kit.request.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder}: {error.strerror}; make the kit's folder your own, on a disk that can be written"
        ) from None
    if kit.role is Role.CLIENT:
        Roster(kit.roster).add(kit.name, of_key, replace=True)
    return Kit.read(folder, kit.role)


def _request(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    asked = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return asked.public_bytes(Encoding.PEM)


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        check_private(path, "key file")
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; ask with another key: suture request KIT --new-key"
        ) from None
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(
            f"{path} holds no key that the authority signs for (ECDSA on P-256, without a password); ask with another "
            "one: suture request KIT --new-key"
        )
    return key


def _key_for(kit: Kit, certificate: Path) -> Path:
    """The kit's key that a certificate is for; where neither is, the one in use, which is then said."""
    try:
        wanted = fingerprint(x509.load_pem_x509_certificate(certificate.read_bytes()))
        if kit.next_key.exists() and wanted == fingerprint_of_key(_read_key(kit.next_key).public_key()):
            return kit.next_key
    except (OSError, ValueError):
        pass  # said in words where it is read again
    return kit.certificates.key


def _authority_of(kit: Kit, given: Path | None) -> Path:
    """The file with the authority's certificate.

    Raises:
        ConfigError: there is none, it is none, or it is not the one that the kit has.
    """
    known = kit.certificates.ca
    if given is None:
        if not known.exists():
            raise ConfigError(
                f"the kit {kit.folder} has no {known.name} yet; give the authority's, too: suture install "
                f"{kit.folder} CERT.pem CA.pem"
            )
        return known
    try:
        own = x509.load_pem_x509_certificate(given.read_bytes())
        is_one = own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except OSError as error:
        raise ConfigError(f"cannot read {given}: {error.strerror}; name the authority's ca.pem") from None
    except (ValueError, x509.ExtensionNotFound):
        is_one = False
    if not is_one:
        raise ConfigError(
            f"{given} is not the certificate of an authority; name the ca.pem of suture's authority"
        )
    if known.exists() and x509.load_pem_x509_certificate(known.read_bytes()) != own:
        raise ConfigError(
            f"{given} ({common_name(own)}) is another authority than that of the kit {kit.folder}; a consortium has "
            "one: ask its people, and for another consortium begin another kit"
        )
    return given
