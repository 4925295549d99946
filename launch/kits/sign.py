"""What the authority does with a request: it takes the public key out of it, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from suture.launch.kits.authority import AUTHORITY_DAYS, DAY, Authority
from suture.launch.kits.request import role_of
from suture.launch.kits.revoke import read_revoked
from suture.runtime.consortium.credentials import common_name
from suture.runtime.consortium.roster import fingerprint, fingerprint_of_key
from suture.runtime.errors import ConfigError

_MOST_BYTES = 2**16
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


def sign_request(
    authority: Authority, name: str, request: bytes, *, days: int = 365, replace: bool = False
) -> bytes:
    """Signs a certificate for the key in a request. Name, role, hosts and dates are the authority's to say.

    Args:
        authority: who signs.
        name: whom the certificate is for: a site, or "server".
        request: PKCS #10 in PEM.
        days: how long it counts, at most until the authority's own end.
        replace: whether ``name`` may have another key than before.

    Returns:
        The certificate, in PEM.

    Raises:
        ConfigError: the request is none, is damaged, is for another name or has a key that is not taken; the name or
            the key is another machine's.
    """
    role = role_of(name)
    if not 1 <= days <= AUTHORITY_DAYS:
        raise ConfigError(f"days must lie in 1..{AUTHORITY_DAYS}, got {days}")
    key = read_request(request, name)
    _check_free(name, fingerprint_of_key(key), authority.issued(), replace)
    gone = {entry.serial_number for entry in read_revoked(authority).entries}
    for one in authority.issued():
        if one.serial_number in gone and fingerprint(one) == fingerprint_of_key(key):
            raise ConfigError(
                f"the key in the request of {name} had a certificate that was revoked; it must ask with another one: "
                "suture request KIT --new-key"
            )
    return authority.sign(name, role, key, ends=days * DAY)


def read_request(request: bytes, name: str) -> ec.EllipticCurvePublicKey:
    """The public key in a request for ``name``.

    Raises:
        ConfigError: it is no request, was not signed with its own key, is for another name, or its key or its hash is
            not taken.
    """
    if len(request) > _MOST_BYTES:
        raise ConfigError(
            f"a request of {len(request)} bytes; one has at most {_MOST_BYTES}: give request.csr"
        )
    try:
        asked = x509.load_pem_x509_csr(request)
        key, algorithm = asked.public_key(), asked.signature_hash_algorithm
        names = [one.value for one in asked.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        taken = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
        signed = asked.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(
            f"the request of {name} is none in PEM (-----BEGIN CERTIFICATE REQUEST-----), or its key is of an unknown "
            "kind; give the request.csr that 'suture request' has made there"
        ) from None
    if not taken or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(algorithm, _HASHES):
        kind = f"{type(key).__name__.removeprefix('_')} and {getattr(algorithm, 'name', 'no hash')}"
        raise ConfigError(
            f"the request of {name} has {kind}; only ECDSA on P-256 with SHA-256, 384 or 512 is signed: make one with "
            "'suture request'"
        )
    if not signed:
        raise ConfigError(
            f"the request of {name} was not signed with the key in it; it was changed on its way: ask for it again"
        )
    if names != [name]:
        raise ConfigError(
            f"the request is for {', '.join(map(repr, names)) or 'nobody':.80}, not for {name}; whose is it? ask "
            "by telephone for name and fingerprint"
        )
    return key


def _check_free(name: str, of_key: str, issued: Sequence[x509.Certificate], replace: bool) -> None:
    for one in issued:
        other = common_name(one)
        if other != name and fingerprint(one) == of_key:
            raise ConfigError(
                f"the key in the request of {name} is that of {other}; each machine has a key of its own: it must ask "
                "with another one (suture request KIT --new-key)"
            )
        if other != name and other.lower() == name.lower():
            raise ConfigError(
                f"there is a site {other} already, and {name} is too much like it: give another name"
            )
    keys = [fingerprint(one) for one in issued if common_name(one) == name]
    if keys and of_key not in keys and not replace:
        raise ConfigError(
            f"{name} has a certificate for another key, {keys[-1]}, and the request's is {of_key}; ask {name} by "
            "telephone whether it has a new one, then give --replace"
        )
