"""The door: who joins has shown that it has the run's token, and the server has shown it first.

    client                                              server
    greet(name, nonce c)                        ->
                 Challenge(run, nonce s, proof) <-      proof = HMAC-SHA256(token, "server", run, name, c, s, ...)
    checks it: a false server learns no more
    hello(Answer(nonce s, proof), ...)          ->      proof = HMAC-SHA256(token, "client", run, name, c, s, ...)
                                                        checks it, in constant time
                              Welcome(ticket)   <-      128 random bits, bound to the seat

Both proofs also bind the addresses at which each holds the other to be, so that whoever could write to the store
cannot sit between them or have a member's messages sent elsewhere. A token never crosses the wire. Every later call
shows the ticket; the server keeps its digest only. TensorPipe has no encryption: who reads the network reads
tickets (docs/security.md).

References: RFC 2104 (HMAC); ISO/IEC 9798-4 (mutual authentication by a keyed check function).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from runtime.errors import ConfigError, WireError
from runtime.members import Seat
from runtime.wire import Answer, Challenge

TOKEN_BYTES = 32
NONCE_BYTES = 32
MAX_OPEN = 256
_PREFIX = "token-"
_TICKET = re.compile(rb"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")


def write_token(path: Path) -> None:
    """Makes a new token file (``token-`` and 64 hex digits, mode 0600).

    Raises:
        ConfigError: the file exists; a token is never overwritten.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists and a token is never overwritten; name another file") from None
    except OSError as error:
        raise ConfigError(f"cannot write a token to {path}: {error.strerror}; name another file") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(_PREFIX + secrets.token_hex(TOKEN_BYTES) + "\n")


def read_token(path: Path) -> bytes:
    """The token in a file.

    Raises:
        ConfigError: there is none, or it is readable to others, or another user's.
    """
    try:
        found = path.stat()
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read token file {path}: {error}") from None
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"token file {path} belongs to user {found.st_uid}; it must be this program's user's"
        )
    if found.st_mode & 0o077:
        raise ConfigError(
            f"token file {path} has mode {found.st_mode & 0o777:o}: others may read it; chmod 600"
        )
    return parse_token(text, f"token file {path}")


def parse_token(text: str, where: str) -> bytes:
    """The token in a text.

    Raises:
        ConfigError: it is none; the text is not repeated.
    """
    digits = text.strip().removeprefix(_PREFIX)
    if not text.strip().startswith(_PREFIX) or not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise ConfigError(
            f"{where} must hold '{_PREFIX}' and 64 hex digits; make one with 'suture keygen --token FILE'"
        )
    return bytes.fromhex(digits)


def read_tokens(path: Path) -> dict[str, bytes]:
    """Tokens by client: lines ``name = token-...``; empty lines and those that begin with # are left out.

    Raises:
        ConfigError: a line is malformed, a name or a token comes twice, or the file may be read by others.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"others may read {path}, which holds tokens; chmod 600")
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read tokens file {path}: {error}") from None
    tokens: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        name, equals, text = (part.strip() for part in line.partition("="))
        if not line.strip() or name.startswith("#"):
            continue
        token = parse_token(text, f"{path}, line {number}: name = token: the token")
        if not equals or not name or name in tokens or token in tokens.values():
            raise ConfigError(f"{path}, line {number}: expected a name of its own = a token of its own")
        tokens[name] = token
    if not tokens:
        raise ConfigError(f"{path} holds no token; write a line a client: name = token-...")
    return tokens


@dataclass(frozen=True)
class Tokens:
    """Which token a client must have: its own where there are any, else the one that all share."""

    shared: bytes | None = None
    by_name: Mapping[str, bytes] = field(default_factory=dict)

    def of(self, name: str) -> bytes | None:
        """The token of ``name``, None for a name that may not come in."""
        return self.by_name.get(name) if self.by_name else self.shared

    def __repr__(self) -> str:
        return f"Tokens({'shared' if not self.by_name else ', '.join(self.by_name)})"


class Line(Protocol):
    """What the door asks of the transport."""

    @property
    def own_address(self) -> str: ...
    def address_of(self, rpc_name: str) -> str: ...


class Door:
    """The server's side: challenges, proofs and tickets of one run. RPC threads call it, any number at a time.

    Args:
        run: the run's id.
        tokens: who may come in.
        line: knows where members are.
    """

    def __init__(self, run: str, tokens: Tokens, line: Line) -> None:
        self._run, self._tokens, self._line = run, tokens, line
        # Names that may not come in are challenged like all others, so that nobody can ask which ones may.
        self._nobody = secrets.token_bytes(TOKEN_BYTES)
        self._open: OrderedDict[bytes, tuple[str, str, bytes]] = OrderedDict()
        self._seats: dict[bytes, Seat] = {}
        self._lock = threading.Lock()

    def challenge(self, name: str, rpc_name: str, nonce: bytes) -> Challenge:
        """The server's proof and its own question.

        Raises:
            WireError: the name or the nonce has no proper form.
        """
        if len(nonce) != NONCE_BYTES or not 1 <= len(name) <= 64 or not 1 <= len(rpc_name) <= 128:
            raise WireError(f"a newcomer: greet: expected a short name and {NONCE_BYTES} bytes; refused")
        own = secrets.token_bytes(NONCE_BYTES)
        with self._lock:
            self._open[own] = (name, rpc_name, nonce)
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        return Challenge(self._run, own, self._proof("server", name, rpc_name, nonce, own))

    def check(self, answer: Answer, name: str, rpc_name: str) -> None:
        """Lets pass who has the token of ``name`` and was challenged for it; a challenge is answered once.

        Raises:
            WireError: anything does not fit.
        """
        with self._lock:
            asked = self._open.pop(answer.nonce, None)
        expected = self._proof("client", name, rpc_name, asked[2] if asked else b"", answer.nonce)
        if not hmac.compare_digest(expected, answer.proof) or asked is None or asked[:2] != (name, rpc_name):
            raise WireError("a newcomer has not the token of the name that it goes by; refused")

    def _proof(self, role: str, name: str, rpc_name: str, client: bytes, server: bytes) -> bytes:
        token = self._tokens.of(name) or self._nobody
        addresses = (self._line.own_address, self._line.address_of(rpc_name))
        return proof(token, role, self._run, name, rpc_name, client, server, *addresses)

    def ticket(self, seat: Seat) -> str:
        """A new ticket for ``seat``."""
        ticket = secrets.token_hex(16)
        with self._lock:
            self._seats[_digest(ticket.encode())] = seat
        return ticket

    def seat(self, ticket: str) -> Seat:
        """The seat that ``ticket`` was given for.

        Raises:
            WireError: it was given for none.
        """
        seat = self._seats.get(_digest(ticket.encode()))
        if seat is None:
            raise WireError("a stranger without a ticket of this run; it must join first; refused")
        return seat

    def who(self, data: bytes) -> str:
        """The name of the member whose ticket is somewhere in ``data``, else an empty text."""
        for ticket in _TICKET.findall(data[:65536]):
            if seat := self._seats.get(_digest(ticket)):
                return seat.name
        return ""


def _digest(ticket: bytes) -> bytes:
    # Looked up by digest, so that the time that a look-up takes says nothing about a ticket.
    return hashlib.sha256(ticket).digest()


def proof(token: bytes, role: str, *parts: str | bytes) -> bytes:
    """HMAC-SHA256 over the parts, each with its length before it, so that no two sequences look alike."""
    mac = hmac.new(token, b"suture entry 1", hashlib.sha256)
    for part in (role, *parts):
        data = part.encode() if isinstance(part, str) else part
        mac.update(len(data).to_bytes(4, "big") + data)
    return mac.digest()


def answer(
    token: bytes, challenge: Challenge, name: str, rpc_name: str, nonce: bytes, server: str, own: str
) -> Answer:
    """The client's side: checks the server's proof and makes the client's.

    Args:
        token: this client's.
        challenge: as it came.
        name: this client's.
        rpc_name: the name under which it joined RPC.
        nonce: what it had sent.
        server: the address at which it talks to the server.
        own: its own address.

    Raises:
        ConfigError: the server has not this token; it is told nothing more.
    """
    parts = (challenge.run, name, rpc_name, nonce, challenge.nonce, server, own)
    if len(challenge.nonce) != NONCE_BYTES or not hmac.compare_digest(
        proof(token, "server", *parts), challenge.proof
    ):
        raise ConfigError(
            f"the server does not have {name}'s token: the two differ, or it is a false server; nothing was said to "
            "it; give both the same --token-file"
        )
    return Answer(challenge.nonce, proof(token, "client", *parts))
