"""What can be wrong with a machine's certificate, key and authority is said before a connection is tried.

Oracle: files made with one fault each, and the whole sentence that a person then reads.
"""

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from suture.launch.kits.authority import Authority
from suture.runtime.consortium.credentials import Credentials, Role, common_name
from suture.runtime.errors import ConfigError

DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("consortium"))
    made.issue("ward_a")
    made.issue("server", Role.SERVER)
    return made


@pytest.fixture
def files(authority, tmp_path) -> dict[str, Path]:
    """A site's sound files, of its own to spoil: certificate, key and authority."""
    own = {
        "certificate": authority.folder / "ward_a.pem",
        "key": authority.folder / "ward_a.key",
        "authority": authority.ca,
    }
    for what, path in own.items():
        own[what] = tmp_path / path.name
        own[what].touch(mode=0o600)
        own[what].write_bytes(path.read_bytes())
    return own


def read(files: dict[str, Path], role: Role = Role.CLIENT) -> Credentials:
    return Credentials.read(files["certificate"], files["key"], files["authority"], role)


def signed(
    authority: Authority,
    files: dict[str, Path],
    names: list[str],
    kinds=(Role.CLIENT.usage,),
    begins=-DAY,
    ends=DAY,
) -> None:
    """Writes a certificate with these common names, usages and dates, and its key, over those in ``files``."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False) for name in names])
    usages = [(x509.ExtendedKeyUsage(list(kinds)), False)] if kinds else []
    files["certificate"].write_bytes(authority._sign(subject, key.public_key(), usages, begins, ends))
    files["key"].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.mark.parametrize(("name", "role"), [("ward_a", Role.CLIENT), ("server", Role.SERVER)])
def test_sound_files_are_read(authority, name, role):
    """Oracle: the bytes of the files, the certificate's name and its end; the key is not shown."""
    cert, key = authority.folder / f"{name}.pem", authority.folder / f"{name}.key"
    read = Credentials.read(cert, key, authority.ca, role)
    assert (read.name, read.certificate, read.key) == (name, cert.read_bytes(), key.read_bytes())
    assert read.authority == authority.ca.read_bytes()
    assert read.expires == x509.load_pem_x509_certificate(cert.read_bytes()).not_valid_after_utc
    assert "PRIVATE" not in repr(read) and "key=" not in repr(read)


def test_a_chain_and_several_authorities_are_read(authority, files, tmp_path):
    """Oracle: a certificate that a second authority signed, which the file of authorities names as well."""
    other = Authority(tmp_path / "second")
    signed(other, files, ["ward_b"])
    files["authority"].write_bytes(authority.ca.read_bytes() + other.ca.read_bytes())
    assert read(files).name == "ward_b"
    files["certificate"].write_bytes(files["certificate"].read_bytes() + other.ca.read_bytes())
    assert read(files).name == "ward_b"


# What is missing or is something else ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("certificate", "cannot read certificate {}: No such file or directory"),
        ("key", "cannot read key file {}: No such file or directory"),
        ("authority", "cannot read certificate {}: No such file or directory"),
    ],
)
def test_a_file_that_is_missing_is_named(what, words, files):
    """Oracle: the whole message."""
    files[what].unlink()
    with pytest.raises(ConfigError) as raised:
        read(files)
    assert str(raised.value) == words.format(files[what])


@pytest.mark.parametrize(
    "content", [b"", b"not a certificate", b"\0\xff", b"-----BEGIN CERTIFICATE-----\nAAAA\n"]
)
@pytest.mark.parametrize("what", ["certificate", "authority"])
def test_a_file_without_a_certificate_is_named(what, content, files):
    """Oracle: the whole message."""
    files[what].write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read(files)
    assert str(raised.value) == f"{files[what]} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"


@pytest.mark.parametrize("content", [b"", b"not a key", b"\0\xff", "the certificate", "under a password"])
def test_a_file_without_a_key_that_can_be_read_is_named(content, authority, files):
    """Oracle: the whole message: a certificate in the key's place, and a key that nobody here could open."""
    if content == "the certificate":
        content = files["certificate"].read_bytes()
    if content == "under a password":
        form = (Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word"))
        content = ec.generate_private_key(ec.SECP256R1()).private_bytes(*form)
    files["key"].write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read(files)
    assert (
        str(raised.value)
        == f"{files['key']} holds no private key in PEM, or one under a password; give one without"
    )


def test_the_key_of_another_certificate_is_refused(authority, files):
    """Oracle: the whole message names both files."""
    authority.issue("ward_b")
    files["key"].write_bytes((authority.folder / "ward_b.key").read_bytes())
    with pytest.raises(ConfigError) as raised:
        read(files)
    assert str(raised.value) == (
        f"the key {files['key']} is not that of the certificate {files['certificate']}; give the two that go together"
    )


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_that_others_may_read_is_refused(mode, files):
    """Oracle: the message says the mode and the remedy; the remedy helps."""
    files["key"].chmod(mode)
    with pytest.raises(
        ConfigError,
        match=f"key file {files['key']} has mode {mode:o}: others may read it; chmod 600 {files['key']}",
    ):
        read(files)
    files["key"].chmod(0o600)
    assert read(files).name == "ward_a"


def test_a_certificate_of_another_authority_is_refused(files, tmp_path):
    """Oracle: the whole message; an authority of the same name is another one all the same."""
    other = Authority(tmp_path / "elsewhere" / "consortium")
    for stranger in (other, Authority(tmp_path / "again" / files["authority"].parent.name)):
        files["authority"].write_bytes(stranger.ca.read_bytes())
        with pytest.raises(ConfigError) as raised:
            read(files)
        assert str(raised.value) == (
            f"the certificate {files['certificate']} was not signed by the authority in {files['authority']}; get one "
            "that was, or the right authority"
        )


# Dates -----------------------------------------------------------------------------------------------


def test_a_certificate_that_has_expired_is_refused(authority, files):
    """Oracle: its end and this machine's clock, both in the message."""
    signed(authority, files, ["ward_a"], begins=-3 * DAY, ends=-DAY)
    ended = x509.load_pem_x509_certificate(files["certificate"].read_bytes()).not_valid_after_utc
    with pytest.raises(
        ConfigError,
        match=rf"the certificate {files['certificate']} expired on {ended:%Y-%m-%d %H:%M} UTC, and this machine's clock "
        r"says \d{4}-\d\d-\d\d \d\d:\d\d; set the clock right, or have the certificate renewed",
    ):
        read(files)


def test_a_certificate_that_is_not_valid_yet_tells_of_the_clock(authority, files):
    """Oracle: its beginning and this machine's clock, both in the message: the clock is what is wrong most often."""
    signed(authority, files, ["ward_a"], begins=DAY, ends=3 * DAY)
    begins = x509.load_pem_x509_certificate(files["certificate"].read_bytes()).not_valid_before_utc
    with pytest.raises(
        ConfigError,
        match=rf"the certificate {files['certificate']} is valid from {begins:%Y-%m-%d %H:%M} on UTC, and this machine's "
        r"clock says .*; set the clock right",
    ):
        read(files)


def test_an_authority_that_has_expired_is_refused(authority, files):
    """Oracle: the message names the authority's file, not the certificate's, which is sound."""
    key = authority._key.public_key()
    ended = authority._sign(authority._name, key, [(x509.BasicConstraints(True, None), True)], -3 * DAY, -DAY)
    files["authority"].write_bytes(ended)
    with pytest.raises(ConfigError, match=f"the certificate {files['authority']} expired on"):
        read(files)


# Roles and names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "role", "words"),
    [
        ("ward_a", Role.SERVER, "is not one of a server: its extended key usage must list serverAuth"),
        ("server", Role.CLIENT, "is not one of a client: its extended key usage must list clientAuth"),
    ],
)
def test_a_certificate_of_the_other_role_is_refused(authority, name, role, words):
    """Oracle: the whole message: a site that could pass for the server would be sent all smashed data."""
    cert = authority.folder / f"{name}.pem"
    with pytest.raises(ConfigError) as raised:
        Credentials.read(cert, authority.folder / f"{name}.key", authority.ca, role)
    assert str(raised.value) == f"the certificate {cert} {words}"


def test_a_certificate_for_nothing_is_neither_and_one_for_both_is_both(authority, files):
    """Oracle: the usages that it lists."""
    signed(authority, files, ["ward_a"], kinds=())
    for role in Role:
        with pytest.raises(ConfigError, match=f"is not one of a {role.name.lower()}"):
            read(files, role)
    signed(authority, files, ["ward_a"], kinds=(Role.CLIENT.usage, Role.SERVER.usage))
    assert [read(files, role).name for role in Role] == ["ward_a"] * 2


@pytest.mark.parametrize("name", ["a", "A1", "ward_a", "w" * 40, "Klinik_Nord_2", "server1", "Server"])
def test_a_sites_name_is_letters_digits_and_underscores(name, authority, files):
    """Oracle: the name that went in."""
    signed(authority, files, [name])
    assert read(files).name == name


@pytest.mark.parametrize(
    "names",
    [
        *([name] for name in ("", "1", "_a", "ward-a", "ward.a", "ward a", "w" * 41, "../x", "stationä", "a\n", "a\0b")),
        ["server"],
        [],
        ["ward_a", "ward_b"],
        ["ward_a", "ward_a"],
    ],
    ids=str,
)  # fmt: skip
def test_a_name_that_is_none_for_a_site_is_refused(names, authority, files):
    """Oracle: the message says what a name is and what the remedy; it names a folder and stands in the log."""
    signed(authority, files, names)
    shown = names[0] if len(names) == 1 else ""
    with pytest.raises(ConfigError) as raised:
        read(files)
    assert str(raised.value) == (
        f"the certificate {files['certificate']} is for {shown!r}; a site's name is a letter and then up to 39 letters, "
        "digits or underscores, and not 'server': have one made with such a common name"
    )


@pytest.mark.parametrize("name", ["hub.example.org", "server", "ward-a"])
def test_a_server_may_have_any_name(name, authority, files):
    """Oracle: the name that went in: sites know it by its address."""
    signed(authority, files, [name], kinds=(Role.SERVER.usage,))
    assert read(files, Role.SERVER).name == name


def test_a_common_name_is_one_or_none(authority, files):
    """Oracle: the name, and none where there are two."""
    for names, expected in ((["a"], "a"), ([], ""), (["a", "b"], "")):
        signed(authority, files, names)
        assert common_name(x509.load_pem_x509_certificate(files["certificate"].read_bytes())) == expected
