"""The door: who has no token gets no ticket, and a server that has none learns nothing.

Oracle: the messages and their order in the module's docstring, played by hand with a wrong part each.
"""

import dataclasses
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import entry
from runtime.entry import Door, Tokens, parse_token, read_token, read_tokens, write_token
from runtime.errors import ConfigError, WireError
from runtime.members import Seat
from runtime.wire import Answer

TOKEN, OTHER, NONCE = bytes(range(32)), bytes(32), b"c" * 32


class Line:
    """Who is where, as a transport would know."""

    own_address = "tcp://server"

    def __init__(self, **addresses: str) -> None:
        self._addresses = addresses

    def address_of(self, rpc_name: str) -> str:
        return self._addresses.get(rpc_name, "")


def door(tokens: Tokens | None = None) -> Door:
    return Door("run", tokens or Tokens(shared=TOKEN), Line(ward_a="tcp://a", ward_b="tcp://b"))


def answer(at: Door, token=TOKEN, name="ward_a", server="tcp://server", own="tcp://a", nonce=NONCE, **spoilt):
    challenge = dataclasses.replace(at.challenge(name, name, NONCE), **spoilt)
    return entry.answer(token, challenge, name, name, nonce, server, own)


def test_who_has_the_token_is_let_in_and_gets_a_seat_of_its_own():
    """Oracle: two clients, two tickets; each opens its own seat and no other."""
    at, seats = door(), (Seat(), Seat())
    tickets = []
    for name, seat, address in (("ward_a", seats[0], "tcp://a"), ("ward_b", seats[1], "tcp://b")):
        at.check(answer(at, name=name, own=address), name, name)
        tickets.append(at.ticket(seat))
    assert tickets[0] != tickets[1] and len(tickets[0]) == 32
    assert at.seat(tickets[0]) is seats[0] and at.seat(tickets[1]) is seats[1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"token": OTHER},
        {"server": "tcp://between"},
        {"own": "tcp://between"},
        {"nonce": b"d" * 32},
        {"run": "another"},
        {"nonce_of_server": b"e" * 32},
        {"proof": b"p" * 32},
        {"proof": b""},
    ],
)
def test_a_server_that_cannot_prove_itself_is_told_nothing(wrong):
    """Oracle: the client raises before it has made an answer; the remedy is named and the token is not."""
    if "nonce_of_server" in wrong:
        at = door()
        challenge = dataclasses.replace(
            at.challenge("ward_a", "ward_a", NONCE), nonce=wrong["nonce_of_server"]
        )
        with pytest.raises(ConfigError, match="--token-file"):
            entry.answer(TOKEN, challenge, "ward_a", "ward_a", NONCE, "tcp://server", "tcp://a")
        return
    with pytest.raises(ConfigError, match="does not have ward_a's token.*same --token-file") as refused:
        answer(door(), **wrong)
    assert TOKEN.hex() not in str(refused.value)


def test_a_wrong_proof_another_name_and_a_second_use_are_refused():
    """Oracle: the first use of the right answer passes; everything else is refused in the same words."""
    at = door()
    right = answer(at)
    refused = "has not the token of the name that it goes by; refused"
    with pytest.raises(WireError, match=refused):
        at.check(dataclasses.replace(right, proof=bytes(32)), "ward_a", "ward_a")
    with pytest.raises(WireError, match=refused):
        at.check(right, "ward_a", "ward_a")  # its challenge was used up by the wrong one
    for name, rpc_name in (("ward_b", "ward_a"), ("ward_a", "ward_b")):
        with pytest.raises(WireError, match=refused):
            at.check(answer(at), name, rpc_name)
    with pytest.raises(WireError, match=refused):
        at.check(Answer(b"n" * 32, b"p" * 32), "ward_a", "ward_a")
    again = answer(at)
    at.check(again, "ward_a", "ward_a")
    with pytest.raises(WireError, match=refused):
        at.check(again, "ward_a", "ward_a")


def test_a_recorded_proof_of_the_server_is_no_proof_of_a_client():
    """Reflection: what the server says about itself must not be of use to a stranger."""
    at = door()
    challenge = at.challenge("ward_a", "ward_a", NONCE)
    with pytest.raises(WireError):
        at.check(Answer(challenge.nonce, challenge.proof), "ward_a", "ward_a")


def test_a_token_of_ones_own_opens_no_other_seat():
    """Oracle: a table of two names; a third is challenged like them and never let in."""
    at = door(Tokens(by_name={"ward_a": TOKEN, "ward_b": OTHER}))
    at.check(answer(at), "ward_a", "ward_a")
    with pytest.raises(ConfigError):
        answer(at, token=TOKEN, name="ward_b", own="tcp://b")
    challenge = at.challenge("ward_c", "ward_c", NONCE)
    assert (len(challenge.nonce), len(challenge.proof)) == (32, 32)
    with pytest.raises(WireError):
        at.check(Answer(challenge.nonce, bytes(32)), "ward_c", "ward_c")


def test_open_challenges_are_bounded():
    """Oracle: a flood of greetings leaves the bound, and the newest can still be answered."""
    at = door()
    oldest = answer(at)
    for _ in range(entry.MAX_OPEN):
        newest = answer(at)
    with pytest.raises(WireError):
        at.check(oldest, "ward_a", "ward_a")
    at.check(newest, "ward_a", "ward_a")


@pytest.mark.parametrize("nonce", [b"", b"n" * 31, b"n" * 33])
def test_a_greeting_of_another_form_is_refused(nonce):
    """Oracle: the nonce's length; so is a name's."""
    with pytest.raises(WireError, match="expected a short name and 32 bytes"):
        door().challenge("ward_a", "ward_a", nonce)
    for name in ("", "a" * 65):
        with pytest.raises(WireError):
            door().challenge(name, "ward_a", NONCE)


@given(st.text(max_size=40))
def test_no_guessed_ticket_opens_a_seat(ticket):
    """Oracle: the one ticket that was given."""
    at = door()
    at.ticket(Seat())
    with pytest.raises(WireError, match="it must join first"):
        at.seat(ticket)


def test_a_ticket_somewhere_in_bytes_names_its_member():
    """For the log: what a hostile member sends may be no message and still hold its ticket."""
    at = door()
    ticket = at.ticket(Seat(name="ward_a"))
    assert at.who(b'{"call":["os.system","' + ticket.encode() + b'"]}') == "ward_a"
    assert at.who(b"\x80\x04\x8c\x20" + ticket.encode() + b"\x94.") == "ward_a"
    assert at.who(b"f" * 32) == at.who(b"") == at.who(ticket.encode()[:31]) == ""


def test_a_token_file_is_private_and_never_overwritten(tmp_path):
    """Oracle: its mode, its text and the bytes that are read back."""
    path = tmp_path / "token"
    write_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_token(path) == parse_token(path.read_text(), "text") and len(read_token(path)) == 32
    with pytest.raises(ConfigError, match="exists and a token is never overwritten"):
        write_token(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 644: others may read it; chmod 600"):
        read_token(path)
    with pytest.raises(ConfigError, match="cannot read token file"):
        read_token(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "token-", "token-" + "g" * 64, "a" * 64, "token-" + "a" * 63])
def test_what_is_no_token_is_not_repeated(text):
    """Oracle: the message names the remedy and not the text; a hand-off key (64 digits alone) is no token."""
    with pytest.raises(ConfigError, match="SUTURE_TOKEN must hold .*suture keygen --token FILE") as refused:
        parse_token(text, "SUTURE_TOKEN")
    assert len(text) < 10 or text not in str(refused.value)


def test_a_tokens_file_is_read_line_by_line(tmp_path):
    """Oracle: the lines by hand."""
    path = tmp_path / "tokens"
    path.write_text("# sites\n\nward_a = token-" + "a" * 64 + "\nward_b=token-" + "b" * 64 + "\n")
    path.chmod(0o600)
    assert read_tokens(path) == {"ward_a": b"\xaa" * 32, "ward_b": b"\xbb" * 32}
    assert Tokens(by_name=read_tokens(path)).of("ward_c") is None
    assert "aaaa" not in repr(Tokens(by_name=read_tokens(path)))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("ward_a", "line 1: .* must hold 'token-'"),
        ("= token-" + "a" * 64, "line 1: expected a name of its own"),
        (f"a = token-{'a' * 64}\na = token-{'b' * 64}", "line 2: expected a name of its own"),
        (f"a = token-{'a' * 64}\nb = token-{'a' * 64}", "line 2: expected .* a token of its own"),
        ("# nobody", "holds no token"),
    ],
)
def test_a_malformed_tokens_file_is_refused(lines, message, tmp_path):
    """Oracle: the line's number, in words of the file's form."""
    path = tmp_path / "tokens"
    path.write_text(lines)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=message):
        read_tokens(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read"):
        read_tokens(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_token_file_is_refused(tmp_path):
    """On one machine a run's folder is told by the store: a token there counts only if this user wrote it."""
    path = tmp_path / "token"
    write_token(path)
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        read_token(path)
