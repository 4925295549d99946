"""The newest list of revoked certificates: from a file that changes, and from a server that may lie.

Oracle: the authority's own lists, and what its certificates are then; messages written out.
"""

import threading
from pathlib import Path

import pytest
from cryptography import x509

from suture.launch.kits.authority import Authority
from suture.launch.kits.revoke import revoke
from suture.runtime.consortium.revocations import Revocations, read_list
from suture.runtime.errors import ConfigError, UntrustedError

NAMES = ("ward_a", "ward_b", "ward_c")


class Lists:
    """An authority, the certificates of three sites, and a list for each that was revoked, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder, name="authority")  # as the other one's
        self.ca = self.authority.ca.read_bytes()
        self.pem = {name: self.authority.issue(name).cert.read_bytes() for name in NAMES}
        self.certificates = {name: x509.load_pem_x509_certificate(pem) for name, pem in self.pem.items()}
        self.lists = []
        for name in NAMES:
            revoke(self.authority, [self.certificates[name]], "key-compromise")
            self.lists.append((folder / "revoked.pem").read_bytes())


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Lists:
    return Lists(tmp_path_factory.mktemp("consortium"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Lists:
    """Another authority, whose common name is the same."""
    return Lists(tmp_path_factory.mktemp("elsewhere") / "consortium")


def gone(revocations: Revocations, made: Lists) -> list[str]:
    return [name for name in NAMES if revocations.revoked(made.certificates[name])]


def swapped(path: Path, pem: bytes) -> None:
    """Puts a file in another's place by renaming, as a careful person's tool does."""
    draft = path.with_name("draft")
    draft.write_bytes(pem)
    draft.replace(path)


def test_a_file_is_read_again_when_it_has_changed(made, tmp_path):
    """Oracle: nobody before there is a list; then those whom each names."""
    path = tmp_path / "revoked.pem"
    revocations = Revocations(made.ca, path)
    assert gone(revocations, made) == [] and (revocations.number, revocations.pem) == (0, b"")
    for number, pem in enumerate(made.lists, start=1):
        swapped(path, pem)
        assert gone(revocations, made) == list(NAMES[:number])
        assert (revocations.number, revocations.pem) == (number, pem)


def test_a_file_that_is_older_damaged_foreign_or_gone_changes_nothing_and_is_said_once(
    made, foreign, tmp_path, caplog
):
    """Oracle: the list before; one line for each."""
    path = tmp_path / "revoked.pem"
    path.write_bytes(made.lists[1])
    revocations = Revocations(made.ca, path)
    for pem, words in (
        (made.lists[0], "with number 1, and this machine has seen number 2; not used"),
        (made.lists[2][:-50], "revoked.pem is not used, and the list before it still counts: it is no list"),
        (foreign.lists[2], "revoked.pem is not used, .*: the consortium's authority has not signed it"),
    ):
        caplog.clear()
        swapped(path, pem)
        for _ in range(3):
            assert gone(revocations, made) == list(NAMES[:2]) and revocations.number == 2
        (said,) = caplog.messages
        assert words.split(".*")[0] in said and words.split(".*")[-1] in said
    path.unlink()
    assert gone(revocations, made) == list(NAMES[:2])
    swapped(path, made.lists[2])
    assert gone(revocations, made) == list(NAMES)


def test_a_newer_list_is_taken_from_the_server_and_an_older_one_never(made, foreign, caplog):
    """Oracle: those whom the newest names; the words of the log."""
    revocations = Revocations(made.ca)
    revocations.take(made.lists[0])
    assert gone(revocations, made) == ["ward_a"]
    revocations.take(made.lists[2])
    assert gone(revocations, made) == list(NAMES)
    for _ in range(2):
        revocations.take(made.lists[1])
        revocations.take(foreign.lists[2])
        revocations.take(b"hello")
        revocations.take(b"-" * 2**19)
        revocations.take(made.lists[2])
    assert gone(revocations, made) == list(NAMES) and revocations.number == 3
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 4
    assert warned[0].endswith("with number 2, and this machine has seen number 3; not used")
    assert "the consortium's authority has not signed it" in warned[1]


def test_what_the_server_showed_outlives_a_restart(made, tmp_path):
    """Oracle: a second reader of the same folder; an older file does not take its place, a newer one does."""
    memory, path = tmp_path / "state" / "revoked.pem", tmp_path / "revoked.pem"
    memory.parent.mkdir()
    path.write_bytes(made.lists[0])
    Revocations(made.ca, path, memory).take(made.lists[1])
    assert memory.read_bytes() == made.lists[1] and memory.stat().st_mode & 0o777 == 0o600
    again = Revocations(made.ca, path, memory)
    assert gone(again, made) == ["ward_a", "ward_b"]
    again.take(made.lists[0])
    assert again.number == 2 and memory.read_bytes() == made.lists[1]
    swapped(path, made.lists[2])
    assert again.number == 3


def test_a_memory_that_cannot_be_written_is_said_and_the_list_counts(made, tmp_path, caplog):
    """Oracle: the words; those whom the list names."""
    revocations = Revocations(made.ca, None, tmp_path / "none" / "revoked.pem")
    revocations.take(made.lists[0])
    assert gone(revocations, made) == ["ward_a"]
    assert "cannot keep the list of revoked certificates in" in caplog.text


@pytest.mark.parametrize("where", ["path", "memory"])
def test_a_list_that_is_none_is_said_before_anything_is_started(where, made, foreign, tmp_path):
    """Oracle: the messages: nobody must think that revocation counts when it does not."""
    path = tmp_path / "revoked.pem"
    for pem in (b"hello", foreign.lists[0]):
        path.write_bytes(pem)
        with pytest.raises(
            ConfigError, match="cannot use .*revoked.pem: .*put the newest one there, or remove"
        ):
            Revocations(made.ca, **{where: path})


def test_a_reason_is_in_words_and_found_again_after_a_newer_list(made, monkeypatch):
    """Oracle: the date and reason of the entry; the certificate is read once a list."""
    revocations = Revocations(made.ca)
    assert revocations.why_refused(made.pem["ward_a"]) == ""
    revocations.take(made.lists[0])
    day = made.authority.certificate.not_valid_before_utc
    words = revocations.why_refused(made.pem["ward_a"])
    assert words.startswith(f"its certificate was revoked on {day.year}-") and words.endswith(
        " (key compromise)"
    )
    assert revocations.why_refused(made.pem["ward_b"]) == ""
    monkeypatch.setattr(x509, "load_pem_x509_certificate", lambda _: pytest.fail("it was read again"))
    assert revocations.why_refused(made.pem["ward_b"]) == "" != revocations.why_refused(made.pem["ward_a"])


def test_a_number_of_another_authority_s_certificate_is_not_meant(made, tmp_path):
    """Oracle: the issuer: numbers are an authority's own."""
    revocations = Revocations(made.ca)
    revocations.take(made.lists[2])
    other = Authority(tmp_path / "elsewhere")
    entry = read_list(made.lists[2], [made.authority.certificate]).entries[0]
    name, serial = made.certificates["ward_a"].subject, entry.serial_number
    key = other.certificate.public_key()
    twin = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(other.certificate.subject)
        .serial_number(serial)
    )
    twin = twin.public_key(key).not_valid_before(other.certificate.not_valid_before_utc)
    signed = twin.not_valid_after(other.ends).sign(
        other._key, x509.load_pem_x509_crl(made.lists[0]).signature_hash_algorithm
    )
    assert not revocations.revoked(signed)


def test_a_list_that_says_it_is_not_whole_is_refused(made):
    """Oracle: RFC 5280, 5.2.4: who knows no delta lists must not use one."""
    authority = made.authority
    now = authority.certificate.not_valid_before_utc
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.certificate.subject)
    builder = builder.last_update(now).next_update(authority.ends).add_extension(x509.CRLNumber(9), False)
    builder = builder.add_extension(x509.DeltaCRLIndicator(1), True)
    algorithm = x509.load_pem_x509_crl(made.lists[0]).signature_hash_algorithm
    from cryptography.hazmat.primitives.serialization import Encoding

    pem = builder.sign(authority._key, algorithm).public_bytes(Encoding.PEM)
    with pytest.raises(UntrustedError, match="not a whole list with a number"):
        read_list(pem, [authority.certificate])


def test_threads_that_ask_while_lists_come_see_no_step_back(made):
    """Oracle: a name that is gone stays gone."""
    revocations, stop, seen = Revocations(made.ca), threading.Event(), []

    def ask() -> None:
        most = 0
        while not stop.is_set():
            number = len(gone(revocations, made))
            seen.append(number >= most)
            most = max(most, number)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for pem in (*made.lists, *reversed(made.lists)):
        revocations.take(pem)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert all(seen) and revocations.number == 3
