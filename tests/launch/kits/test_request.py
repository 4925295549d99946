"""`suture request`, `sign` and `install`: a kit whose private key never leaves it.

Oracle: openssl's own verification, the bytes of what travels, and messages written out.
"""

import base64
import re
import shutil
import subprocess
import tomllib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from suture.cli import suture
from suture.launch.kits.authority import DAY, Authority
from suture.launch.kits.kit import Kit
from suture.launch.kits.provision import Project, provision
from suture.launch.kits.request import begin_kit, install
from suture.launch.kits.sign import sign_request
from suture.launch.policy.policy import Policy
from suture.runtime.consortium.credentials import Role
from suture.runtime.consortium.roster import Roster, fingerprint
from suture.runtime.errors import ConfigError

ADDRESS = "hub.example:29500"
SITES = ("ward_a", "ward_b")


def typed(*words: object) -> None:
    suture.main([str(word) for word in words], standalone_mode=False)


def openssl(*words: object) -> str:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.fixture
def kits(tmp_path):
    """A consortium of two sites, of this test's own."""
    provision(Project(address=ADDRESS, sites=SITES), tmp_path / "kits")
    return tmp_path / "kits"


@pytest.fixture
def authority(kits):
    return Authority.load(kits / "authority")


def read(path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def asked(name: str, key=None, algorithm=None, kinds=()) -> bytes:
    """A request that no command of ours makes."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for kind in kinds:
        builder = builder.add_extension(kind, True)
    return builder.sign(key, algorithm or hashes.SHA256()).public_bytes(Encoding.PEM)


def renewed(kits, kit, out, *more: str) -> None:
    """The three commands of a renewal."""
    name = Kit.begun(kit).name
    typed("request", kit, *(word for word in more if word == "--new-key"))
    typed("sign", kits / "authority", name, kit / "request.csr", "--out", out, *("--replace" for _ in more))
    typed("install", kit, out)


# The whole way ------------------------------------------------------------------------------------------


def test_a_late_comer_has_a_kit_and_its_key_never_travelled(kits, tmp_path, capsys):
    """Oracle: openssl takes request and certificate; no form of the private number is in anything that left the kit."""
    kit, out = tmp_path / "ward_c", tmp_path / "ward_c.pem"
    typed("request", kit, "--name", "ward_c", "--server", ADDRESS)
    travelled = [(kit / "request.csr").read_bytes()]
    assert "self-signature verify OK" in openssl("req", "-verify", "-noout", "-in", kit / "request.csr")
    typed("sign", kits / "authority", "ward_c", kit / "request.csr", "--out", out)
    travelled += [out.read_bytes(), (kits / "authority" / "ca.pem").read_bytes()]
    typed("install", kit, out, kits / "authority" / "ca.pem")
    travelled.append(capsys.readouterr().out.encode())
    travelled += [path.read_bytes() for path in kits.rglob("*") if path.is_file() and path.name != "key.pem"]
    ca = kits / "authority" / "ca.pem"
    for purpose in ((), ("-x509_strict",), ("-purpose", "sslclient")):
        assert openssl("verify", *purpose, "-CAfile", ca, kit / "cert.pem").strip().endswith("OK")
    assert (
        "OK" not in openssl("verify", "-purpose", "sslserver", "-CAfile", ca, kit / "cert.pem").split(":")[-1]
    )
    assert Kit.read(kit, Role.CLIENT).credentials().name == "ward_c"
    modes = {path.name: path.stat().st_mode & 0o777 for path in kit.iterdir()}
    assert set(modes) == {"kit.toml", "key.pem", "cert.pem", "ca.pem", "roster.toml", "policy.toml"}
    assert set(modes.values()) == {0o600} and kit.stat().st_mode & 0o777 == 0o700

    secret = load_pem_private_key((kit / "key.pem").read_bytes(), None).private_numbers().private_value
    raw = secret.to_bytes(32, "big")
    forms = [raw, raw.hex().encode(), raw.hex().upper().encode(), str(secret).encode(), b"PRIVATE"]
    theirs = (
        kits / "authority" / "authority.key"
    ).read_bytes()  # the authority's own, which stays there, too
    whole = decoded(b"".join(travelled).replace(theirs, b""))
    assert not [form for form in forms if form in whole]
    control = decoded((kit / "key.pem").read_bytes())
    assert raw in control and b"PRIVATE" in control


def decoded(text: bytes) -> bytes:
    """A text, and what its blocks of PEM hold."""
    blocks = re.findall(rb"-----BEGIN [A-Z0-9 ]+-----([^-]+)-----END", text)
    return text + b"".join(base64.b64decode(re.sub(rb"\s", b"", block)) for block in blocks)


def test_its_kit_says_what_the_others_say_and_lists_itself_alone(kits, tmp_path):
    """Oracle: kit.toml; the roster; the policy's own default; the site's own check of its roster."""
    kit, out = tmp_path / "ward_c", tmp_path / "ward_c.pem"
    typed("request", kit, "--name", "ward_c", "--server", ADDRESS)
    with pytest.raises(
        ConfigError, match="has no certificate yet; send .*request.csr to the .* authority .suture"
    ):
        Kit.read(kit, Role.CLIENT)
    typed("sign", kits / "authority", "ward_c", kit / "request.csr", "--out", out)
    typed("install", kit, out, kits / "authority" / "ca.pem")
    assert tomllib.loads((kit / "kit.toml").read_text()) == {
        "role": "site",
        "name": "ward_c",
        "server": ADDRESS,
    }
    of_key = fingerprint(read(kit / "cert.pem"))
    assert Roster(kit / "roster.toml").fingerprints() == {"ward_c": of_key}
    assert (kit / "policy.toml").read_text() == Policy.default_text()
    Kit.read(kit, Role.CLIENT).check_listed()
    typed("roster", "add", kits / "ward_a", "ward_c", kit / "cert.pem")
    typed("roster", "add", kit, "ward_a", fingerprint(read(kits / "ward_a" / "cert.pem")))
    assert set(Roster(kit / "roster.toml").fingerprints()) == {"ward_a", "ward_c"}


def test_the_server_s_kit_is_made_the_same_way(kits, tmp_path):
    """Oracle: openssl: it is a server's, for the host that the authority knows; it has neither roster nor policy."""
    kit, out = tmp_path / "server", tmp_path / "server.pem"
    typed("request", kit, "--name", "server", "--server", ADDRESS)
    typed("sign", kits / "authority", "server", kit / "request.csr", "--out", out, "--replace")
    typed("install", kit, out, kits / "authority" / "ca.pem")
    ca = kits / "authority" / "ca.pem"
    wanted = ("-purpose", "sslserver", "-verify_hostname", "hub.example", "-x509_strict")
    assert openssl("verify", *wanted, "-CAfile", ca, kit / "cert.pem").strip().endswith("OK")
    assert Kit.read(kit, Role.SERVER).credentials().name == "server"
    assert {path.name for path in kit.iterdir()} == {"kit.toml", "key.pem", "cert.pem", "ca.pem"}


def test_a_whole_consortium_whose_keys_never_travelled(tmp_path, capsys):
    """Oracle: the authority's folder holds its own key alone; server and two sites have kits that go together."""
    (tmp_path / "p.toml").write_text(
        f'[server]\naddress = "{ADDRESS}"\n[sites]\nnames = ["ward_a", "ward_b"]\n'
    )
    typed("provision", tmp_path / "p.toml", "--out", tmp_path / "kits", "--authority-only")
    authority = tmp_path / "kits" / "authority"
    assert sorted(path.name for path in (tmp_path / "kits").rglob("*")) == [
        "authority", "authority.key", "authority.toml", "ca.pem"
    ]  # fmt: skip
    for name in ("server", *SITES):
        typed("request", tmp_path / name, "--name", name, "--server", ADDRESS)
        typed("sign", authority, name, tmp_path / name / "request.csr", "--out", tmp_path / f"{name}.pem")
        typed("install", tmp_path / name, tmp_path / f"{name}.pem", authority / "ca.pem")
    assert Kit.read(tmp_path / "server", Role.SERVER).credentials().name == "server"
    typed("roster", "add", tmp_path / "ward_a", "ward_b", tmp_path / "ward_b.pem")
    typed("roster", "add", tmp_path / "ward_b", "ward_a", tmp_path / "ward_a.pem")
    codes = [Roster(tmp_path / name / "roster.toml").code() for name in SITES]
    assert codes[0] == codes[1]


def test_a_renewal_keeps_the_key_and_so_the_fingerprint_and_roster(kits, tmp_path):
    """Oracle: key and rosters, byte for byte; another certificate."""
    kit, out = kits / "ward_a", tmp_path / "again.pem"
    kept = {name: (kit / name).read_bytes() for name in ("key.pem", "roster.toml", "policy.toml", "kit.toml")}
    before = read(kit / "cert.pem")
    renewed(kits, kit, out)
    assert {name: (kit / name).read_bytes() for name in kept} == kept
    after = read(kit / "cert.pem")
    assert after.serial_number != before.serial_number and fingerprint(after) == fingerprint(before)
    assert not (kit / "request.csr").exists() and not (kit / "next-key.pem").exists()
    install(kit, out)  # said again it does the same
    assert Kit.read(kit, Role.CLIENT).credentials().name == "ward_a"


def test_a_renewal_with_a_new_key_is_asked_for_twice_and_changes_this_site_s_own_entry(kits, tmp_path):
    """Oracle: the message; the key in use stays until the certificate is there; own roster yes, the others' no."""
    kit, out = kits / "ward_a", tmp_path / "again.pem"
    before = (kit / "key.pem").read_bytes()
    typed("request", kit, "--new-key")
    assert (kit / "key.pem").read_bytes() == before and (kit / "next-key.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="ward_a has a certificate for another key, .*then give --replace"):
        typed("sign", kits / "authority", "ward_a", kit / "request.csr", "--out", out)
    typed("sign", kits / "authority", "ward_a", kit / "request.csr", "--out", out, "--replace")
    typed("install", kit, out)
    assert (kit / "key.pem").read_bytes() != before and not (kit / "next-key.pem").exists()
    Kit.read(kit, Role.CLIENT).check_listed()
    of_key = fingerprint(read(kit / "cert.pem"))
    assert not Roster(kits / "ward_b" / "roster.toml").approves("ward_a", of_key)


def test_who_is_stopped_between_certificate_and_key_says_it_again(kits, tmp_path, monkeypatch):
    """Oracle: a kit that goes together, after a disk that failed at the last step."""
    kit, out = kits / "ward_a", tmp_path / "again.pem"
    typed("request", kit, "--new-key")
    typed("sign", kits / "authority", "ward_a", kit / "request.csr", "--out", out, "--replace")
    replace = type(kit).replace

    def fails(self, target):
        if self.name == "next-key.pem":
            raise OSError(5, "Input/output error")
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(type(kit), "replace", fails)
        with pytest.raises(ConfigError, match="cannot write to .*: Input/output error"):
            install(kit, out)
    assert install(kit, out).credentials().name == "ward_a"


# What is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--name", "ward_c"), "needs both --name NAME and --server HOST:PORT"),
        (("--name", "ward_c", "--server", "hub"), "an address is HOST:PORT"),
        (("--name", "ward_c", "--server", "0.0.0.0:1"), "0.0.0.0 is no such place"),
        (("--name", "ward c", "--server", ADDRESS), "a site's name is a letter"),
        (("--name", "authority", "--server", ADDRESS), "a site's name is a letter"),
        (("--name", "ward_c", "--server", ADDRESS, "--new-key"), "a new kit has a new key anyway"),
        ((), "is no kit: there is no such folder"),
    ],
)
def test_a_request_that_cannot_be_is_refused(words, said, tmp_path):
    """Oracle: the messages; nothing is made."""
    with pytest.raises(ConfigError, match=said):
        typed("request", tmp_path / "kit", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_not_touched(kits, tmp_path):
    """Oracle: the messages; the files as they were."""
    before = {path: path.read_bytes() for path in kits.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="is a kit already; leave --name and --server out"):
        typed("request", kits / "ward_a", "--name", "ward_a", "--server", ADDRESS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make .*mine: Directory not empty; name a folder"):
        begin_kit(tmp_path / "mine", "ward_c", ADDRESS)
    assert {path: path.read_bytes() for path in kits.rglob("*") if path.is_file()} == before
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_only_the_key_is_taken_from_a_request(authority):
    """Oracle: a request that asks to be an authority, a server and another host; the certificate is any site's."""
    kinds = (
        x509.BasicConstraints(ca=True, path_length=None),
        x509.SubjectAlternativeName([x509.DNSName("hub.example")]),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    )
    key = ec.generate_private_key(ec.SECP256R1())
    made = x509.load_pem_x509_certificate(
        sign_request(authority, "ward_c", asked("ward_c", key, kinds=kinds))
    )
    assert made.public_key() == key.public_key()
    usual = x509.load_pem_x509_certificate(sign_request(authority, "ward_d", asked("ward_d")))
    for one in (made, usual):
        assert [extension.oid for extension in one.extensions] == [
            extension.oid for extension in usual.extensions
        ]
        assert not one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        used = one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(used) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def flipped(pem: bytes) -> bytes:
    """The same request with one bit of its signature changed."""
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("request_of", "said"),
    [
        (lambda: asked("ward_c", rsa.generate_private_key(65537, 2048)), "has RSAPublicKey and sha256; only ECDSA on P-256"),
        (lambda: asked("ward_c", ec.generate_private_key(ec.SECP384R1())), "only ECDSA on P-256"),
        (lambda: asked("ward_c", ec.generate_private_key(ec.SECP224R1())), "only ECDSA on P-256"),
        (lambda: flipped(asked("ward_c")), "was not signed with the key in it; it was changed on its way"),
        (lambda: asked("ward_b"), "the request is for 'ward_b', not for ward_c; whose is it"),
        (lambda: b"hello", "is none in PEM"),
        (lambda: b"-" * 70000, "a request of 70000 bytes; one has at most 65536"),
    ],
)  # fmt: skip
def test_a_request_that_is_not_to_be_trusted_is_refused(request_of, said, authority):
    """Oracle: the messages; no certificate is kept."""
    before = len(authority.issued())
    with pytest.raises(ConfigError, match=said):
        sign_request(authority, "ward_c", request_of())
    assert len(authority.issued()) == before


def test_an_ed25519_key_is_refused(authority):
    """Oracle: the message; such a request has no hash."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ward_c")])
    key = ed25519.Ed25519PrivateKey.generate()
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, None)
    with pytest.raises(ConfigError, match="only ECDSA on P-256 with SHA-256"):
        sign_request(authority, "ward_c", made.public_bytes(Encoding.PEM))


def test_a_name_or_key_that_is_another_s_is_not_signed(kits, authority):
    """Oracle: the messages: one key under two names would count twice, and names alike would be mixed up."""
    own = load_pem_private_key((kits / "ward_a" / "key.pem").read_bytes(), None)
    with pytest.raises(
        ConfigError, match="the key in the request of ward_c is that of ward_a; each machine has"
    ):
        sign_request(authority, "ward_c", asked("ward_c", own))
    with pytest.raises(ConfigError, match="there is a site ward_a already, and Ward_A is too much like it"):
        sign_request(authority, "Ward_A", asked("Ward_A"))
    with pytest.raises(ConfigError, match="ward_a has a certificate for another key"):
        sign_request(authority, "ward_a", asked("ward_a"))


def test_a_key_that_was_revoked_is_not_signed_again(kits, authority, tmp_path):
    """Oracle: the message; with another key the site is signed for."""
    typed("revoke", kits / "authority", "ward_a")
    typed("request", kits / "ward_a")
    with pytest.raises(ConfigError, match="had a certificate that was revoked; it must ask with another one"):
        sign_request(authority, "ward_a", (kits / "ward_a" / "request.csr").read_bytes())
    typed("request", kits / "ward_a", "--new-key")
    assert sign_request(authority, "ward_a", (kits / "ward_a" / "request.csr").read_bytes(), replace=True)


def test_no_certificate_outlasts_its_authority(authority):
    """Oracle: the authority's end."""
    made = x509.load_pem_x509_certificate(sign_request(authority, "ward_c", asked("ward_c"), days=3650))
    assert made.not_valid_after_utc <= authority.ends == read(authority.ca).not_valid_after_utc
    for days in (0, 3651):
        with pytest.raises(ConfigError, match=rf"days must lie in 1..3650, got {days}"):
            sign_request(authority, "ward_c", asked("ward_c"), days=days)
    authority.ends -= 3651 * DAY
    with pytest.raises(ConfigError, match="the authority in .* ended on .*make a new one, with new kits"):
        sign_request(authority, "ward_d", asked("ward_d"))


def test_a_server_is_not_signed_for_where_nobody_knows_its_place(kits):
    """Oracle: the messages, and the remedy of the first, which works."""
    (kits / "authority" / "authority.toml").unlink()
    with pytest.raises(ConfigError, match=r'authority.toml names no host, .*write there: hosts = \["suture'):
        sign_request(Authority.load(kits / "authority"), "server", asked("server"), replace=True)
    (kits / "authority" / "authority.toml").write_text('hosts = ["hub.example"]')
    assert sign_request(Authority.load(kits / "authority"), "server", asked("server"), replace=True)
    for wrong in ("hosts = 3", "x = 1", 'hosts = [""]', "hosts"):
        (kits / "authority" / "authority.toml").write_text(wrong)
        with pytest.raises(ConfigError, match=r"authority.toml must say server|cannot read .*authority.toml"):
            Authority.load(kits / "authority")


def test_files_that_are_there_or_missing_are_said_by_sign(kits, tmp_path):
    """Oracle: the messages."""
    with pytest.raises(ConfigError, match="cannot read .*none.csr: No such file"):
        typed("sign", kits / "authority", "ward_c", tmp_path / "none.csr", "--out", tmp_path / "c.pem")
    (tmp_path / "c.csr").write_bytes(asked("ward_c"))
    (tmp_path / "c.pem").write_text("")
    with pytest.raises(ConfigError, match="c.pem is there already, and nothing is ever overwritten"):
        typed("sign", kits / "authority", "ward_c", tmp_path / "c.csr", "--out", tmp_path / "c.pem")


def test_what_does_not_go_together_is_not_installed(kits, tmp_path):
    """Oracle: the messages; the kit as it was."""
    kit, authority = kits / "ward_a", kits / "authority" / "ca.pem"
    (other,) = provision(Project(address=ADDRESS, sites=("ward_a",)), tmp_path / "other").keys() - {"server"}
    elsewhere = tmp_path / "other" / other
    before = {path: path.read_bytes() for path in kit.iterdir()}
    fresh = shutil.copytree(kit, tmp_path / "fresh")
    (fresh / "ca.pem").unlink()
    for target, files, said in (
        (kit, (kits / "ward_b" / "cert.pem", authority), "the key .*key.pem is not that of the certificate"),
        (kit, (elsewhere / "cert.pem", elsewhere / "ca.pem"), r"is another authority than that of the kit"),
        (kit, (elsewhere / "cert.pem",), "the key .* is not that of the certificate"),
        (kit, (kit / "cert.pem", kit / "cert.pem"), "is not the certificate of an authority"),
        (kit, (kit / "cert.pem", kit / "none.pem"), "cannot read .*none.pem: No such file"),
        (kit, (kit / "none.pem",), "cannot read certificate .*none.pem"),
        (
            fresh,
            (kit / "cert.pem",),
            "has no ca.pem yet; give the authority's, too: suture install .* CERT.pem CA.pem",
        ),
        (fresh, (kit / "cert.pem", elsewhere / "ca.pem"), "was not signed by the authority"),
        (kits / "none", (kit / "cert.pem",), "is no kit: there is no such folder"),
    ):
        with pytest.raises(ConfigError, match=said):
            install(target, *files)
    assert {path: path.read_bytes() for path in kit.iterdir()} == before


def test_a_certificate_of_the_other_role_is_not_installed(kits, authority, tmp_path):
    """Oracle: the message: an authority that mistakes a site for the server makes no server of it."""
    key = load_pem_private_key((kits / "ward_a" / "key.pem").read_bytes(), None)
    (tmp_path / "wrong.pem").write_bytes(authority.sign("ward_a", Role.SERVER, key.public_key()))
    with pytest.raises(ConfigError, match="is not one of a client: its extended key usage"):
        install(kits / "ward_a", tmp_path / "wrong.pem")
    (tmp_path / "named.pem").write_bytes(authority.sign("ward_c", Role.CLIENT, key.public_key()))
    with pytest.raises(ConfigError, match="is for ward_c, and this is the kit of ward_a; give ward_a's"):
        install(kits / "ward_a", tmp_path / "named.pem")
