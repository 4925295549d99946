"""Two kits come to the same keys, and nobody else comes to any.

Oracle: the rules of the handshake and of RFC 5280, by hand; a tampered message is refused, whatever byte it is.
"""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from house import credentials

from suture.launch.kits.authority import DAY, Authority
from suture.runtime.consortium.credentials import Credentials, Role
from suture.runtime.errors import ConfigError, WireError
from suture.runtime.grpc import handshake
from suture.runtime.grpc.handshake import MOST_BYTES, Identity, SiteHandshake, answered

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def site(authority) -> Identity:
    return Identity(credentials(authority, "ward_a"), Role.CLIENT)


@pytest.fixture(scope="module")
def server(authority) -> Identity:
    return Identity(credentials(authority, "hub", Role.SERVER), Role.SERVER)


def certified(
    issuer: Credentials | None,
    name: str,
    authority: Authority,
    *,
    key=None,
    signer=None,
    usages=(Role.CLIENT.usage,),
    extensions=(),
    begins=-DAY,
    ends=DAY,
) -> Credentials:
    """A kit whose certificate says what a test wants it to say, signed by the authority or with ``signer``'s key."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signed_by = (
        authority._name if issuer is None else x509.load_pem_x509_certificate(issuer.certificate).subject
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(named)
        .issuer_name(signed_by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + begins)
        .not_valid_after(NOW + ends)
    )
    for extension in ([x509.ExtendedKeyUsage(usages)] if usages else []) + list(extensions):
        builder = builder.add_extension(extension, False)
    made = builder.sign(signer or authority._key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return Credentials(
        name=name,
        certificate=made + (b"" if issuer is None else issuer.certificate),
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        authority=authority.ca.read_bytes(),
        expires=NOW,
    )


def private(kit: Credentials):
    return handshake.load_pem_private_key(kit.key, password=None)


# Two that are who they say -------------------------------------------------------------------------------


def test_both_ends_come_to_the_same_keys(site, server):
    """Oracle: equality, the site's name; a key for each direction, others in every session, none of them shown."""
    made = []
    for _ in range(2):
        shaken = SiteHandshake(site)
        name, answer, keys = answered(server, shaken.message)
        assert (name, shaken.finish(answer)) == ("ward_a", keys)
        assert len({keys.site, keys.server}) == 2 and len(keys.site) == len(keys.server) == 32
        assert repr(keys) == f"Keys(session={keys.session!r})" and len(keys.session) == 32
        made.append(keys)
    assert not {made[0].session, made[0].site, made[0].server} & {
        made[1].session,
        made[1].site,
        made[1].server,
    }


def test_a_message_fits_into_what_is_read(site, server):
    """Oracle: a chain of three certificates is well within the bound."""
    assert 5 * len(SiteHandshake(site).message) < MOST_BYTES


# Whoever is between them ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_site_message_with_any_byte_changed_is_refused_or_gives_other_keys(site, server):
    """Oracle: every byte of the message. DER and PEM have bytes that say nothing; the keys know of them all the same."""
    shaken = SiteHandshake(site)
    for place in range(len(shaken.message)):
        changed = bytearray(shaken.message)
        changed[place] ^= 1
        try:
            _, answer, _ = answered(server, bytes(changed))
        except (ConfigError, WireError):
            continue
        with pytest.raises(WireError, match="a handshake that its certificate's key did not sign"):
            shaken.finish(answer)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_an_answer_with_any_byte_changed_is_refused_or_gives_other_keys(site, server):
    """Oracle: every byte of the answer."""
    shaken = SiteHandshake(site)
    _, answer, keys = answered(server, shaken.message)
    for place in range(len(answer)):
        changed = bytearray(answer)
        changed[place] ^= 1
        try:
            others = shaken.finish(bytes(changed))
        except (ConfigError, WireError):
            continue
        assert not {others.session, others.site, others.server} & {keys.session, keys.site, keys.server}


def test_both_messages_go_into_the_keys(site, server):
    """Oracle: other keys at the site, although the signature is good: (r, n - s) is one where (r, s) is."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    shaken = SiteHandshake(site)
    _, answer, keys = answered(server, shaken.message)
    r, s = decode_dss_signature(answer[2 : -len(_body(answer))])
    twin = encode_dss_signature(r, order - s)
    others = shaken.finish(len(twin).to_bytes(2, "little") + twin + _body(answer))
    assert not {others.session, others.site, others.server} & {keys.session, keys.site, keys.server}


def test_an_answer_to_another_handshake_is_refused(site, server):
    """Oracle: the message, for a recorded answer, and for one that was made for another site's message."""
    _, recorded, _ = answered(server, SiteHandshake(site).message)
    with pytest.raises(WireError, match="did not sign"):
        SiteHandshake(site).finish(recorded)


def test_a_recorded_handshake_gives_keys_that_nobody_else_has(site, server):
    """Oracle: the same message twice; the site that sent it cannot follow the second answer into the first one's keys."""
    shaken = SiteHandshake(site)
    (_, _, first), (_, _, again) = answered(server, shaken.message), answered(server, shaken.message)
    assert not {first.session, first.site, first.server} & {again.session, again.site, again.server}


def test_a_message_under_another_site_s_certificate_is_refused_by_the_one_that_made_it(
    authority, site, server
):
    """Oracle: the message. A member that signs another site's fresh key as its own would stand between the two."""
    shaken = SiteHandshake(site)
    member = Identity(credentials(authority, "ward_b"), Role.CLIENT)

    class Borrowed:
        def public_key(self):
            return X25519PublicKey.from_public_bytes(shaken.message[-len(_body(shaken.message)) :][:32])

    name, answer, _ = answered(server, member.signed(Borrowed()))
    assert name == "ward_b"
    with pytest.raises(WireError, match="did not sign"):
        shaken.finish(answer)


def _body(message: bytes) -> bytes:
    return message[2 + int.from_bytes(message[:2], "little") :]


def test_a_site_s_message_is_no_answer_and_an_answer_is_no_site_s_message(site, server):
    """Oracle: the messages; who sends one's own message back to it stands for the other end."""
    shaken = SiteHandshake(site)
    with pytest.raises(ConfigError, match="'ward_a' is not one of a server"):
        shaken.finish(shaken.message)
    _, answer, _ = answered(server, shaken.message)
    with pytest.raises(ConfigError, match="'hub' is not one of a client"):
        answered(server, answer)


@pytest.mark.parametrize("low", [bytes(32), (1).to_bytes(32, "little"), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_a_fresh_key_of_which_everybody_knows_the_secret_is_refused(low, site, server):
    """Oracle: the message; points of small order (RFC 7748, 6.1), signed by a member."""

    class Low:
        def public_key(self):
            return X25519PublicKey.from_public_bytes(low)

    with pytest.raises(WireError, match="a handshake whose X25519 key is none"):
        answered(server, site.signed(Low()))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0",
        b"\0\0",
        bytes(66),
        b"\xff\xff" + bytes(200),
        bytes(66) + b"no certificate",
        bytes(MOST_BYTES + 1),
    ],
)
def test_what_is_no_handshake_is_refused(message, server):
    """Oracle: an error of ours, whatever it is."""
    with pytest.raises(WireError, match="a handshake"):
        answered(server, message)


# Whose certificate ---------------------------------------------------------------------------------------


def shake(kit: Credentials, server: Identity) -> str:
    """The name under which a kit's owner is let in."""
    return answered(server, SiteHandshake(Identity(kit, Role.CLIENT)).message)[0]


def test_a_certificate_of_another_authority_is_refused(authority, server, tmp_path):
    """Oracle: the message, also where the other authority bears the same name."""
    for stranger in (Authority(tmp_path / "other"), Authority(tmp_path / authority.folder.name)):
        with pytest.raises(ConfigError, match="'ward_a' was not signed by the authority of this kit"):
            shake(credentials(stranger, "ward_a"), server)


@pytest.mark.parametrize("extensions", [[], [x509.BasicConstraints(ca=False, path_length=None)]])
def test_a_site_cannot_certify_a_server_or_another_site(extensions, authority, site):
    """Oracle: refused; a site's certificate is not an authority's, whatever stands in the chain."""
    member = certified(None, "ward_a", authority, extensions=extensions)
    for role, name in ((Role.SERVER, "hub"), (Role.CLIENT, "ward_b")):
        made = certified(member, name, authority, signer=private(member), usages=(role.usage,))
        message = Identity(made, role).signed(SiteHandshake(site)._ephemeral)
        judge = (
            Identity(credentials(authority, "hub", Role.SERVER), Role.SERVER) if role is Role.CLIENT else site
        )
        with pytest.raises(ConfigError, match=f"'{name}' was not signed by the authority"):
            judge.checked(message)


@pytest.mark.parametrize("may_sign", [True, False])
def test_no_department_signs_for_a_consortium(may_sign, authority, server):
    """Oracle: the authority's own certificate allows none below it (path length 0), whatever a department's says."""
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        False,
    )
    extensions = [
        x509.BasicConstraints(ca=True, path_length=None),
        x509.KeyUsage(
            **usage, key_cert_sign=may_sign, crl_sign=False, encipher_only=False, decipher_only=False
        ),
    ]
    department = certified(None, "department", authority, usages=(), extensions=extensions)
    kit = certified(department, "ward_c", authority, signer=private(department))
    with pytest.raises(ConfigError, match="'ward_c' was not signed by the authority"):
        shake(kit, server)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"begins": -2 * DAY, "ends": -DAY},
            "'ward_d' expired on .*; set the clock right, or have the certificate",
        ),
        ({"begins": DAY, "ends": 2 * DAY}, "'ward_d' begins on .*; set the clock right"),
        ({"usages": (Role.SERVER.usage,)}, "'ward_d' is not one of a client"),
        ({"usages": ()}, "'ward_d' is not one of a client"),
        ({"key": ec.generate_private_key(ec.SECP384R1())}, "is not for an ECDSA key on P-256"),
        ({"key": rsa.generate_private_key(65537, 2048)}, "is not for an ECDSA key on P-256"),
    ],
)
def test_a_certificate_that_is_not_good_is_refused(changes, words, authority, server):
    """Oracle: the message; the signature is checked afterwards, so that none is needed here."""
    kit = certified(None, "ward_d", authority, **changes)
    body = bytes(64) + kit.certificate
    with pytest.raises(ConfigError, match=words):
        server.checked(b"\x02\0xx" + body)


@pytest.mark.parametrize("name", ["server", "../x", "ward a", "1", "w" * 41])
def test_a_name_that_is_none_for_a_site_is_refused(name, authority, server):
    """Oracle: the message; the name stands in the log and in the names of folders."""
    with pytest.raises(ConfigError, match="names no site"):
        shake(certified(None, name, authority), server)


def test_an_authority_that_has_expired_signs_for_nobody(authority, server):
    """Oracle: refused, as TLS would."""
    own = [(x509.BasicConstraints(True, None), True)]
    ended = authority._sign(authority._name, authority._key.public_key(), own, -3 * DAY, -DAY)
    hub = credentials(authority, "hub", Role.SERVER)
    judge = Identity(
        Credentials(name=hub.name, certificate=hub.certificate, key=hub.key, authority=ended, expires=NOW),
        Role.SERVER,
    )
    with pytest.raises(ConfigError, match="was not signed by the authority"):
        shake(credentials(authority, "ward_a"), judge)


def test_a_kit_whose_key_cannot_sign_handshakes_is_said_at_once(authority):
    """Oracle: the message, before anything is dialled."""
    kit = certified(None, "ward_e", authority, key=rsa.generate_private_key(65537, 2048))
    with pytest.raises(
        ConfigError, match="--tls proxy signs with an ECDSA key on P-256, and that of ward_e is another"
    ):
        Identity(kit, Role.CLIENT)


def test_a_certificate_that_was_revoked_shakes_no_hands(authority):
    """Oracle: the error at a site that looks at its server; the certificate that was asked about."""
    asked: list[bytes] = []

    def refuses(certificate: bytes) -> str:
        asked.append(certificate)
        return "its certificate was revoked on 2026-11-26"

    own = Identity(credentials(authority, "ward_a"), Role.CLIENT, refuses)
    hub = credentials(authority, "hub", Role.SERVER)
    shaken = SiteHandshake(own)
    _, answer, _ = answered(Identity(hub, Role.SERVER), shaken.message)
    with pytest.raises(ConfigError, match="'hub' is not let in: its certificate was revoked on 2026-11-26"):
        shaken.finish(answer)
    assert asked == [hub.certificate]
    assert handshake.shown_certificate(shaken.message) == credentials(authority, "ward_a").certificate
