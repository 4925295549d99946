"""The pings of the stream that a site holds open, by which each end knows that the other is there.

Under mutual TLS one byte is enough. Where a proxy opens TLS a ping has a tag, and cannot be saved up for later.
"""

from __future__ import annotations

import hmac
import struct
import time
from collections import deque
from typing import Protocol

from suture.runtime.consortium.credentials import Role
from suture.runtime.grpc.handshake import Keys
from suture.runtime.grpc.service import PING
from suture.runtime.grpc.tags import TAG_BYTES, ForgedError

_NUMBERS = struct.Struct("<QQ")


class Pings(Protocol):
    """What the two ends write into the stream that a site holds open, to show that they are there."""

    def begin(self) -> None:
        """The stream is open."""
        ...

    def made(self) -> bytes:
        """This end's next ping."""
        ...

    def take(self, ping: bytes) -> None:
        """Takes a ping of the other end's.

        Raises:
            ForgedError: the other end did not make it.
        """
        ...

    def patience(self, lease: float) -> float:
        """Seconds that the next ping may take."""
        ...


class PlainPings:
    """Pings without tags: TLS has shown who sends them, so that one came is enough."""

    def begin(self) -> None: ...

    def made(self) -> bytes:
        return PING

    def take(self, ping: bytes) -> None: ...

    def patience(self, lease: float) -> float:
        return lease


class TaggedPings:
    """Pings that no one else can make, and that cannot be saved up.

    Each has a number, the number of the newest one that came from the other end, and a tag. A proxy that lets few of
    them through could go on with the rest when the site is dead. So what counts is when that newest one of the other
    end's was written: a ping shows that its sender was there after that, and no more.

    Args:
        keys: the session's.
        role: of this end.
        every: seconds between two pings. A ping tells of a moment up to two of these ago, so that lease is longer.
    """

    def __init__(self, keys: Keys, role: Role, every: float) -> None:
        self._session, self._slack = bytes.fromhex(keys.session), 2 * every
        own, other = (keys.site, b"site"), (keys.server, b"server")
        self._own, self._other = (own, other) if role is Role.CLIENT else (other, own)
        self._num_made, self._num_taken = 0, 0
        self._unseen: deque[tuple[int, float]] = deque()
        self._there_at: float | None = None

    def begin(self) -> None:
        """The stream is open.

        Raises:
            ForgedError: this session's has been opened before.
        """
        if self._there_at is not None:
            raise ForgedError("a session has one stream, and a second one was opened")
        self._there_at = time.monotonic()

    def made(self) -> bytes:
        self._num_made += 1
        self._unseen.append((self._num_made, time.monotonic()))
        return self._tagged(*self._own, self._num_made, self._num_taken)

    def take(self, ping: bytes) -> None:
        whole = len(ping) == _NUMBERS.size + TAG_BYTES
        number, seen = _NUMBERS.unpack(ping[: _NUMBERS.size]) if whole else (0, 0)
        due = self._tagged(*self._other, number, seen)
        if not hmac.compare_digest(due, ping) or number != self._num_taken + 1 or seen > self._num_made:
            raise ForgedError("a ping was made up, sent again or left out on its way")
        self._num_taken = number
        while self._unseen and self._unseen[0][0] <= seen:
            self._there_at = self._unseen.popleft()[1]

    def patience(self, lease: float) -> float:
        there_at = time.monotonic() if self._there_at is None else self._there_at
        return there_at + lease + self._slack - time.monotonic()

    def _tagged(self, key: bytes, sender: bytes, number: int, seen: int) -> bytes:
        ping = _NUMBERS.pack(number, seen)
        return ping + hmac.digest(key, b"ping of a " + sender + b"\0" + self._session + ping, "sha256")
