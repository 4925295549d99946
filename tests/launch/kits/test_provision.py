"""`suture provision` and `suture roster`: an authority and kits, whole or not at all.

Oracle: openssl's own verification, the files' modes, and messages written out.
"""

import os
import subprocess
import tomllib

import pytest
from cryptography import x509

from suture.cli import suture
from suture.launch.kits.authority import DAY, Authority
from suture.launch.kits.provision import Project, provision
from suture.runtime.consortium.credentials import Role
from suture.runtime.consortium.roster import Roster, fingerprint
from suture.runtime.errors import ConfigError

PROJECT = '[server]\naddress = "suture.example.org:29500"\n[sites]\nnames = ["ward_a", "ward_b"]\n'
SITES = ("ward_a", "ward_b")


def typed(*words: object) -> None:
    suture.main([str(word) for word in words], standalone_mode=False)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What the command made, under a umask that gives everybody everything."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "project.toml").write_text(PROJECT)
    before = os.umask(0)
    try:
        typed("provision", folder / "project.toml", "--out", folder / "kits")
    finally:
        os.umask(before)
    assert sorted(path.name for path in folder.iterdir()) == ["kits", "project.toml"]
    return folder / "kits"


def verified(out, name: str, *more: str) -> str:
    command = ["openssl", "verify", "-CAfile", out / "authority" / "ca.pem", *more, out / name / "cert.pem"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("name", ["server", *SITES])
@pytest.mark.parametrize("strictly", [(), ("-x509_strict",)])
def test_openssl_accepts_each_for_its_role_and_no_other(name, strictly, out):
    """Oracle: openssl verify."""
    own, other = ("sslserver", "sslclient") if name == "server" else ("sslclient", "sslserver")
    sound = f"{out / name / 'cert.pem'}: OK"
    assert verified(out, name, *strictly) == verified(out, name, *strictly, "-purpose", own) == sound
    assert verified(out, name, *strictly, "-purpose", other) != sound
    assert verified(out, name, "-check_ss_sig", "-policy_check", "-verify_depth", "0") == sound


def test_the_server_s_certificate_is_for_the_host_that_sites_dial(out):
    """Oracle: openssl's own comparison of names."""
    assert verified(out, "server", "-verify_hostname", "suture.example.org").endswith("OK")
    for other in ("localhost", "127.0.0.1", "example.org"):
        assert not verified(out, "server", "-verify_hostname", other).endswith("OK")


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "::1"])
def test_an_address_of_numbers_is_named_as_one(host, tmp_path):
    """Oracle: openssl's own comparison of addresses."""
    address = f"[{host}]:1" if ":" in host else f"{host}:1"
    provision(Project(address=address, sites=("ward_a",)), tmp_path / "kits")
    assert verified(tmp_path / "kits", "server", "-verify_ip", host).endswith("OK")
    assert not verified(tmp_path / "kits", "server", "-verify_ip", "10.0.0.9").endswith("OK")


def test_nobody_else_reads_what_was_made(out):
    """Oracle: every folder's and file's mode; only folders of the kits, nothing of a site's at the authority's."""
    modes = {path: path.stat().st_mode & 0o777 for path in (out, *out.rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    keys = {
        path: mode
        for path, mode in modes.items()
        if b"PRIVATE" in (path.read_bytes() if path.is_file() else b"")
    }
    assert sorted(str(path.relative_to(out)) for path in keys) == [
        "authority/authority.key", "server/key.pem", "ward_a/key.pem", "ward_b/key.pem"
    ] and set(keys.values()) == {0o600}  # fmt: skip
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_a_kit_holds_what_the_design_says(out):
    """Oracle: the names of the files; kit.toml; one roster at all sites, of the keys that the certificates have."""
    common = {"kit.toml", "cert.pem", "key.pem", "ca.pem"}
    assert {path.name for path in out.iterdir()} == {"authority", "server", *SITES}
    assert {path.name for path in (out / "server").iterdir()} == common
    assert {path.name for path in (out / "ward_a").iterdir()} >= common | {"roster.toml"}
    said = tomllib.loads((out / "ward_a" / "kit.toml").read_text())
    assert said == {"role": "site", "name": "ward_a", "server": "suture.example.org:29500"}
    keys = {
        name: fingerprint(x509.load_pem_x509_certificate((out / name / "cert.pem").read_bytes()))
        for name in SITES
    }
    assert all(Roster(out / name / "roster.toml").fingerprints() == keys for name in SITES)
    assert Authority.load(out / "authority").sites() == keys


def days_of(path) -> float:
    made = x509.load_pem_x509_certificate(path.read_bytes())
    return (made.not_valid_after_utc - made.not_valid_before_utc) / DAY - 1


def test_certificates_count_a_year_and_the_authority_ten(out, tmp_path):
    """Oracle: their dates: a day before now, for clocks that differ, until then."""
    assert days_of(out / "server" / "cert.pem") == days_of(out / "ward_a" / "cert.pem") == 365
    assert days_of(out / "authority" / "ca.pem") == days_of(out / "ward_b" / "ca.pem") == 3650
    (tmp_path / "p.toml").write_text(PROJECT)
    typed("provision", tmp_path / "p.toml", "--out", tmp_path / "kits", "--days", 7)
    assert days_of(tmp_path / "kits" / "ward_a" / "cert.pem") == 7


@pytest.mark.parametrize("days", [0, -1, 3651])
def test_days_beyond_the_authority_s_are_refused(days, tmp_path):
    """Oracle: the message; nothing is left."""
    with pytest.raises(
        ConfigError, match=rf"days must lie in 1..3650, for which the authority .*, got {days}"
    ):
        provision(Project(address="hub:1", sites=SITES), tmp_path / "kits", days)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server", "cannot read the project .*p.toml: "),
        ("", r"p.toml lacks address in \[server\]: where sites reach the server, HOST:PORT"),
        ('[server]\naddress = "hub:1"\n', r"p.toml lacks names in \[sites\]: the sites' names"),
        (PROJECT + "[more]\n", r"p.toml: unknown key 'more'; known: \[server\] address, \[sites\] names"),
        (PROJECT + "number = 2\n", r"p.toml: unknown key 'number' in \[sites\]; known: names"),
        (PROJECT.replace("address", "adress"), r"unknown key 'adress' in \[server\]; known: address"),
        ("server = 3\n", r"p.toml: server must be a table, \[server\], got 3"),
        (PROJECT.replace('"suture.example.org:29500"', "29500"), "server.address must be a text, HOST:PORT, got 29500"),
        (PROJECT.replace(":29500", ""), "p.toml: an address is HOST:PORT"),
        (PROJECT.replace("suture.example", "su_ture"), "host must be an IP address or a DNS name .*, got 'su_ture.org'"),
        (PROJECT.replace("suture.example.org", "300.1.1.1"), "IP address or a DNS name .*, got '300.1.1.1'"),
        (PROJECT.replace("suture.example.org", "0.0.0.0"), "0.0.0.0 is no such place; name the server's own address"),
        (PROJECT.replace("suture.example.org", "[::]"), ":: is no such place"),
        (PROJECT.replace("suture.example.org", "[fe80::1%eth0]"), "fe80::1%eth0 is no such place"),
        (PROJECT.replace('["ward_a", "ward_b"]', '"ward_a"'), "sites.names must be a list of names, got 'ward_a'"),
        (PROJECT.replace('"ward_b"', "2"), "sites.names must be a list of names"),
        (PROJECT.replace('"ward_a", "ward_b"', ""), "sites.names must name at least one site, got none"),
        (PROJECT.replace("ward_b", "ward_a"), "sites.names has 'ward_a' and 'ward_a', which are too much alike"),
        (PROJECT.replace("ward_b", "Ward_A"), "sites.names has 'ward_a' and 'Ward_A', which are too much alike"),
        *(
            (PROJECT.replace("ward_b", name), f"a site's name is a letter .*, got '{name}'")
            for name in ("server", "authority", "Server", "../x", "ward-b", "1", "", "w" * 41)
        ),
    ],
)  # fmt: skip
def test_a_project_that_cannot_be_is_refused(text, words, tmp_path):
    """Oracle: the messages; nothing is made."""
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        typed("provision", tmp_path / "p.toml", "--out", tmp_path / "kits")
    assert [path.name for path in tmp_path.iterdir()] == ["p.toml"]


def test_a_project_that_is_missing_is_said(tmp_path):
    """Oracle: the message."""
    with pytest.raises(ConfigError, match="cannot read the project .*none.toml: .*No such file"):
        Project.read(tmp_path / "none.toml")


def test_nothing_is_ever_overwritten(tmp_path):
    """Oracle: the whole message, and the folder's only file as it was; an empty folder is taken."""
    project, kits = Project(address="hub:1", sites=SITES), tmp_path / "kits"
    kits.mkdir()
    (kits / "mine").write_text("1")
    with pytest.raises(ConfigError) as raised:
        provision(project, kits)
    assert str(raised.value) == f"{kits} is not empty, and nothing is ever overwritten; name a new folder"
    assert [path.name for path in tmp_path.rglob("*")] == ["kits", "mine"]
    (kits / "mine").unlink()
    assert set(provision(project, kits)) == {"server", *SITES}
    with pytest.raises(FileExistsError):
        Authority(kits / "authority")


def test_what_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    """Oracle: the folder, after a disk that is full at the last site, and after a file in the way."""
    project = Project(address="hub:1", sites=SITES)
    issue = Authority.issue

    def full(self, name, *more, **others):
        if name == "ward_b":
            raise OSError(28, "No space left on device")
        return issue(self, name, *more, **others)

    with monkeypatch.context() as patched:
        patched.setattr(Authority, "issue", full)
        with pytest.raises(ConfigError, match="cannot make .*kits: No space left on device; name a folder"):
            provision(project, tmp_path / "deep" / "kits")
    assert [path.name for path in tmp_path.rglob("*")] == ["deep"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make .*: Not a directory"):
        provision(project, tmp_path / "file")


# The authority, later on -----------------------------------------------------------------------------


def test_an_authority_is_taken_up_again(out, tmp_path):
    """Oracle: openssl: what it signs then is as good; it keeps a copy."""
    kits = provision(Project(address="hub:1", sites=SITES), tmp_path / "kits")
    authority = Authority.load(tmp_path / "kits" / "authority")
    late = authority.issue("ward_c")
    said = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", kits["ward_a"].certificates.ca, late.cert]
    )
    assert said.returncode == 0 and set(authority.sites()) == {*SITES, "ward_c"}
    (copy,) = (authority.folder / "issued").glob("ward_c.*.pem")
    assert copy.read_bytes() == late.cert.read_bytes()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "ca.pem").unlink(), "is no authority: cannot read .*ca.pem: No such file"),
        (lambda folder: (folder / "authority.key").unlink(), "is no authority: cannot read .*authority.key: No such file"),
        (lambda folder: (folder / "authority.key").chmod(0o640), "authority.key has mode 640: others may read it; chmod"),
        (lambda folder: (folder / "authority.key").write_text("x"), "is no authority: .*in PEM and without a password"),
        (lambda folder: Authority(folder / "x").ca.replace(folder / "ca.pem"), "is not the key of .*ca.pem; give the two"),
    ],
)  # fmt: skip
def test_what_is_no_authority_is_said(spoil, words, tmp_path):
    """Oracle: the messages."""
    spoil(Authority(tmp_path).folder)
    with pytest.raises(ConfigError, match=words):
        Authority.load(tmp_path)


# suture roster -----------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """A consortium of its own, and a late comer's certificate."""
    provision(Project(address="hub:1", sites=SITES), tmp_path / "kits")
    return tmp_path / "kits", Authority.load(tmp_path / "kits" / "authority").issue("ward_c").cert


def test_a_roster_is_shown_with_its_code(two, capsys):
    """Oracle: the file, and the roster's own code; all sites show the same code."""
    out, _ = two
    typed("roster", "show", out / "ward_a")
    own, other, last = capsys.readouterr().out.splitlines()
    listed = Roster(out / "ward_a" / "roster.toml")
    keys = listed.fingerprints()
    assert own == f"ward_a  {keys['ward_a']}  (this site)" and other == f"ward_b  {keys['ward_b']}"
    assert (
        last == f"2 sites; code: {listed.code()}"
        and listed.code() == Roster(out / "ward_b" / "roster.toml").code()
    )


@pytest.mark.parametrize("form", ["certificate", "plain", "colons"])
def test_a_late_comer_is_added(form, two, capsys):
    """Oracle: the roster, by a reader that had read it before; the new code."""
    out, cert = two
    roster = Roster(out / "ward_a" / "roster.toml")
    roster.fingerprints()
    of_key = fingerprint(x509.load_pem_x509_certificate(cert.read_bytes()))
    pairs = ":".join(of_key[at : at + 2] for at in range(0, 64, 2)).upper()
    typed(
        "roster",
        "add",
        out / "ward_a",
        "ward_c",
        {"certificate": cert, "plain": of_key, "colons": pairs}[form],
    )
    assert roster.approves("ward_c", of_key) and set(roster.fingerprints()) == {*SITES, "ward_c"}
    assert capsys.readouterr().out == f"ward_c  {of_key}\n3 sites; code: {roster.code()}\n"


def test_a_key_is_replaced_only_on_request(two):
    """Oracle: the message and the roster."""
    out, _ = two
    roster = Roster(out / "ward_a" / "roster.toml")
    with pytest.raises(ConfigError, match="lists ward_b with another key, .* then give --replace"):
        typed("roster", "add", out / "ward_a", "ward_b", "0" * 64)
    typed("roster", "add", out / "ward_a", "ward_b", "0" * 64, "--replace")
    assert roster.approves("ward_b", "0" * 64)


def test_what_is_neither_certificate_nor_fingerprint_is_refused(two, tmp_path):
    """Oracle: the messages; the roster stays."""
    out, cert = two
    before = (out / "ward_a" / "roster.toml").read_bytes()
    (tmp_path / "text").write_text("hello")
    for given, words in (
        ("0" * 63, "is no fingerprint .64 hex digits., and no certificate: No such file"),
        (tmp_path / "text", "holds no certificate in PEM"),
        (cert, "is for 'ward_c', not for ward_d; give ward_d's own"),
    ):
        with pytest.raises(ConfigError, match=words):
            typed("roster", "add", out / "ward_a", "ward_d", given)
    with pytest.raises(ConfigError, match="is the server's kit"):
        typed("roster", "show", out / "server")
    assert (out / "ward_a" / "roster.toml").read_bytes() == before


def test_certificates_say_what_they_are_for(out):
    """Oracle: RFC 5280: constraints and key usage, critical; identifiers of the keys; the role."""
    for name, role in (("server", Role.SERVER), ("ward_a", Role.CLIENT)):
        found = x509.load_pem_x509_certificate((out / name / "cert.pem").read_bytes()).extensions
        constraints = found.get_extension_for_class(x509.BasicConstraints)
        usage = found.get_extension_for_class(x509.KeyUsage)
        assert constraints.critical and not constraints.value.ca
        assert usage.critical and usage.value.digital_signature and not usage.value.key_agreement
        assert list(found.get_extension_for_class(x509.ExtendedKeyUsage).value) == [role.usage]
        for identifier in (x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier):
            assert found.get_extension_for_class(identifier)
