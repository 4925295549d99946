"""A site's roster: whom it takes part with, the code that people compare, and what is refused.

Oracle: the file, written by hand, and the fingerprint that openssl computes.
"""

import os
import re
import subprocess

import pytest
from cryptography import x509

from suture.launch.kits.authority import DAY, Authority
from suture.runtime.consortium.credentials import Role
from suture.runtime.consortium.roster import CODE_BITS, Roster, fingerprint
from suture.runtime.errors import ConfigError

A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def path(tmp_path):
    """A roster of two sites."""
    Roster.create(tmp_path / "roster.toml", {"ward_b": B, "ward_a": A})
    return tmp_path / "roster.toml"


def written(path, text: str):
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_fingerprint_is_the_hash_of_the_public_key_as_openssl_has_it(tmp_path):
    """Oracle: openssl; and a certificate that is renewed with the same key keeps its fingerprint."""
    authority = Authority(tmp_path)
    made = authority.issue("ward_a")
    public = (
        f"openssl x509 -in {made.cert} -pubkey -noout | openssl pkey -pubin -outform DER | openssl sha256"
    )
    said = subprocess.run(["bash", "-c", public], capture_output=True, text=True, check=True).stdout
    certificate = x509.load_pem_x509_certificate(made.cert.read_bytes())
    assert fingerprint(certificate) == said.split()[-1]
    renewed = authority.sign("ward_a", Role.CLIENT, certificate.public_key(), ends=90 * DAY)
    assert fingerprint(x509.load_pem_x509_certificate(renewed)) == fingerprint(certificate)


def test_a_roster_approves_who_stands_in_it_with_that_key(path):
    """Oracle: what was written, and the file's own text and mode."""
    roster = Roster(path)
    assert roster.fingerprints() == {"ward_a": A, "ward_b": B}
    assert roster.approves("ward_a", A) and roster.approves("ward_b", B)
    assert not roster.approves("ward_a", B) and not roster.approves("ward_c", A)
    assert path.read_text().endswith(f'\n[sites]\nward_a = "{A}"\nward_b = "{B}"\n')
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_late_comer_counts_at_once_and_elsewhere(path):
    """Oracle: another reader, which had read the file before."""
    running = Roster(path)
    assert not running.approves("ward_c", C)
    Roster(path).add("ward_c", C)
    assert running.approves("ward_c", C)
    written(path, f'[sites]\nward_a = "{A}"\n')
    assert running.fingerprints() == {"ward_a": A}
    assert list(path.parent.iterdir()) == [path]


def test_a_key_is_never_replaced_silently(path):
    """Oracle: the whole message, and the file afterwards."""
    roster, before = Roster(path), path.read_bytes()
    with pytest.raises(ConfigError) as raised:
        roster.add("ward_a", C)
    assert str(raised.value) == (
        f"the roster {path} lists ward_a with another key, {A}; ask ward_a by telephone whether it has a new one, then "
        "give --replace"
    )
    roster.add("ward_a", A)
    assert path.read_bytes() == before
    roster.add("ward_a", C, replace=True)
    assert roster.approves("ward_a", C) and not roster.approves("ward_a", A)


def test_the_code_is_of_names_and_keys_and_not_of_the_file(path, tmp_path):
    """Oracle: rosters that differ in order, comments, one name, one key."""
    code = Roster(path).code()
    assert re.fullmatch(r"\d{5}( \d{5}){5}", code) and 10**30 > 2**CODE_BITS
    same = written(tmp_path / "same.toml", f'# mine\n[sites]\nward_b="{B}"\nward_a="{A}"\n')
    assert Roster(same).code() == code
    others = [
        {"ward_a": A},
        {"ward_a": B, "ward_b": A},
        {"ward_a": A, "ward_c": B},
        {"ward_a": A, "ward_b": C},
    ]
    codes = {Roster.create(tmp_path / "other.toml", sites).code() for sites in others}
    assert len(codes) == 4 and code not in codes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[sites", "is not TOML"),
        ("", r"is no roster: expected one table \[sites\] with a line NAME"),
        ("sites = 1", "is no roster"),
        ("[sites]\nward_a = 1", "is no roster"),
        (f'[sites]\nward_a = "{A}"\n[more]', "is no roster"),
        ('[sites]\nward_a = "abc"', "'abc' is no fingerprint of ward_a: expected 64 hex digits in lower case"),
        (f'[sites]\nward_a = "{"A" * 64}"', "is no fingerprint of ward_a"),
        (f'[sites]\nserver = "{A}"', "'server' is no name of a site"),
        (f'[sites]\nward-a = "{A}"', "'ward-a' is no name of a site: a letter and then up to 39"),
        (f'[sites]\nward_a = "{A}"\nward_b = "{A}"', "ward_a and ward_b have one and the same key, a{64}; each site"),
    ],
)  # fmt: skip
def test_what_is_no_roster_is_refused(text, words, path):
    """Oracle: the message names the file."""
    with pytest.raises(ConfigError, match=words) as raised:
        Roster(written(path, text)).fingerprints()
    assert str(path) in str(raised.value)


def test_a_roster_that_is_missing_or_no_text_is_said(path):
    """Oracle: the messages."""
    path.write_bytes(b"\xff")
    with pytest.raises(
        ConfigError, match=f"cannot read the roster {path}: it is no text; .* put the one of the kit"
    ):
        Roster(path).fingerprints()
    path.unlink()
    with pytest.raises(ConfigError, match=f"cannot read the roster {path}: No such file"):
        Roster(path).approves("ward_a", A)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_roster_that_others_may_write_is_refused(mode, path):
    """Oracle: the message's remedy helps; others may read it."""
    path.chmod(mode)
    with pytest.raises(
        ConfigError, match=f"roster {path} has mode {mode:o}: others may write it, .*chmod 600 {path}"
    ):
        Roster(path).approves("ward_a", A)
    path.chmod(0o644)
    assert Roster(path).approves("ward_a", A)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_roster_of_another_user_is_refused(path):
    """Oracle: the message."""
    os.chown(path, 12345, -1)
    with pytest.raises(
        ConfigError, match="belongs to user 12345, who could list a site, but this program runs as user 0"
    ):
        Roster(path).approves("ward_a", A)


@pytest.mark.parametrize(
    ("name", "of_key", "words"), [("server", A, "no name"), ("ward_c", "x", "no fingerprint")]
)
def test_nonsense_is_not_added(name, of_key, words, path):
    """Oracle: the message, and the file as it was."""
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=words):
        Roster(path).add(name, of_key, replace=True)
    assert path.read_bytes() == before


def test_a_roster_that_cannot_be_written_stays_as_it_was(path, monkeypatch):
    """Oracle: the message, the file, and no draft beside it."""
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(
        ConfigError, match=f"cannot write the roster {path}: No space left on device; make the kit's"
    ):
        Roster(path).add("ward_c", C)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
