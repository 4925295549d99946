"""`suture revoke`: the authority's list.

Oracle: openssl's own check of it, and messages written out.
"""

import subprocess

import pytest
from cryptography import x509

from suture.cli import suture
from suture.launch.kits.authority import Authority
from suture.launch.kits.provision import Project, provision
from suture.launch.kits.revoke import REASONS, of_key, read_revoked, revoke
from suture.runtime.errors import ConfigError

SITES = ("ward_a", "ward_b")


def typed(*words: object) -> None:
    suture.main([str(word) for word in words], standalone_mode=False)


@pytest.fixture
def kits(tmp_path):
    provision(Project(address="hub:1", sites=SITES), tmp_path / "kits")
    return tmp_path / "kits"


def counts(kits, cert) -> bool:
    """What openssl says of a certificate, with the list."""
    own = kits / "authority"
    command = ["openssl", "verify", "-crl_check", "-x509_strict", "-CAfile", own / "ca.pem", "-CRLfile"]
    done = subprocess.run([*command, own / "revoked.pem", cert], capture_output=True, text=True)
    assert ("certificate revoked" in done.stderr) is (done.returncode != 0), done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("reason", REASONS)
def test_openssl_refuses_who_was_revoked_and_nobody_else(reason, kits, capsys):
    """Oracle: openssl verify -crl_check, and its own words for the reason."""
    typed("revoke", kits / "authority", "ward_b", "--reason", reason)
    assert (
        f"revoked 1 of ward_b; wrote {kits / 'authority' / 'revoked.pem'}, list 1" in capsys.readouterr().out
    )
    assert [counts(kits, kits / name / "cert.pem") for name in ("server", "ward_a", "ward_b")] == [
        True,
        True,
        False,
    ]
    text = subprocess.run(
        ["openssl", "crl", "-in", kits / "authority" / "revoked.pem", "-noout", "-text"],
        capture_output=True,
        text=True,
    ).stdout
    assert (reason.replace("-", " ") in text.lower()) is (reason != "unspecified")
    assert (kits / "authority" / "revoked.pem").stat().st_mode & 0o777 == 0o600


def test_lists_follow_each_other_and_forget_nobody(kits):
    """Oracle: their numbers and entries."""
    authority = Authority.load(kits / "authority")
    assert read_revoked(authority).number == 0
    typed("revoke", kits / "authority", "ward_a", "--reason", "key-compromise")
    first = read_revoked(authority)
    typed("revoke", kits / "authority", kits / "ward_b" / "cert.pem")
    second = read_revoked(authority)
    assert (first.number, second.number, len(second.entries)) == (1, 2, 2)
    assert second.entries[0].serial_number == first.entries[0].serial_number
    assert [counts(kits, kits / name / "cert.pem") for name in ("ward_a", "ward_b")] == [False, False]
    found = x509.load_pem_x509_crl(second.pem)
    assert found.next_update_utc == authority.ends and found.is_signature_valid(
        authority.certificate.public_key()
    )


def test_a_name_or_a_key_takes_all_of_its_certificates_along(kits, tmp_path):
    """Oracle: openssl: a renewal with the same key, and what was signed for the name before."""
    typed("request", kits / "ward_a")
    typed(
        "sign", kits / "authority", "ward_a", kits / "ward_a" / "request.csr", "--out", tmp_path / "again.pem"
    )
    authority = Authority.load(kits / "authority")
    assert len(of_key(authority, (kits / "ward_a" / "cert.pem").read_bytes())) == 2
    typed("revoke", kits / "authority", kits / "ward_a" / "cert.pem")
    assert not counts(kits, kits / "ward_a" / "cert.pem") and not counts(kits, tmp_path / "again.pem")


def test_what_cannot_be_revoked_is_said(kits, tmp_path):
    """Oracle: the messages; the list stays."""
    other = Authority(tmp_path / "other").issue("ward_a").cert
    for what, said in (
        (
            "ward_c",
            "no certificate was signed for 'ward_c'; known: server, ward_a, ward_b; give a name or the file",
        ),
        (other, "of 'ward_a' was not signed by the authority in .*it can only take back its own"),
        (kits / "ward_a" / "kit.toml", "holds no certificate in PEM"),
    ):
        with pytest.raises(ConfigError, match=said):
            typed("revoke", kits / "authority", what)
    assert not (kits / "authority" / "revoked.pem").exists()
    typed("revoke", kits / "authority", "ward_a")
    with pytest.raises(ConfigError, match="ward_a: revoked already, by list 1"):
        typed("revoke", kits / "authority", "ward_a")


@pytest.mark.parametrize("spoilt", ["damaged", "another's"])
def test_a_list_that_cannot_be_read_is_not_begun_anew(spoilt, kits, tmp_path):
    """Oracle: the message: a new list would let those in again whom the old one names."""
    typed("revoke", kits / "authority", "ward_a")
    path = kits / "authority" / "revoked.pem"
    other = Authority(tmp_path / "other")
    other.issue("ward_x")
    revoke(other, other.issued())
    path.write_bytes(b"hello" if spoilt == "damaged" else (other.folder / "revoked.pem").read_bytes())
    before = path.read_bytes()
    with pytest.raises(
        ConfigError, match="put the newest one back, .*would let those in again whom it names"
    ):
        typed("revoke", kits / "authority", "ward_b")
    assert path.read_bytes() == before
