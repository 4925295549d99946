"""What shows that a message is the other end's own where a proxy opens TLS: a tag behind its last byte.

A tag is HMAC-SHA256 under the key of the direction. It covers the session, the endpoint, which call of the session it
is, and all bytes of the message in their order, its length first. An answer's tag covers the request's, too, so that it
answers that one request. The tag is checked before anything is decoded; a message's length is compared with its
bound before memory is taken, as everywhere.

Under mutual TLS there are no tags: `NoTags` passes everything on as it is.

Reference: RFC 2104 (HMAC).
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

import grpc.aio

from suture.runtime.consortium.credentials import Role
from suture.runtime.errors import WireError
from suture.runtime.grpc.handshake import Keys
from suture.runtime.grpc.service import HELLO

TAG_BYTES = 32
_CALL = struct.Struct("<16sQB")
Read = Callable[[], Awaitable[Any]]


class ForgedError(WireError):
    """What came is not the other end's: somebody between the two changed it, made it up or sent it again."""


class Tags(Protocol):
    """What stands around the chunks of one call."""

    @property
    def are_checked(self) -> bool:
        """Whether what was received is the other end's own."""
        ...

    def sent(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The chunks as they go over the line."""
        ...

    def received(self, read: Read) -> Read:
        """What reads the chunks that ``read`` takes from the line, until ``grpc.aio.EOF``.

        Raises:
            ForgedError: instead of the last one, by what is returned.
        """
        ...


class NoTags:
    """TLS has done everything."""

    are_checked = True

    def sent(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        return chunks

    def received(self, read: Read) -> Read:
        return read


NO_TAGS = NoTags()


class Counted:
    """Which calls of a session have been seen: each has a number, and none comes twice.

    A hello has no part in the order of the others, and numbers of its own.
    """

    def __init__(self) -> None:
        self._next = {True: 0, False: 0}

    def take(self, endpoint: str, place: int) -> None:
        """Takes a call whose tag is good.

        Raises:
            ForgedError: it came before, or one before it did not come.
        """
        due = self._next[endpoint == HELLO]
        if place != due:
            raise ForgedError(
                f"{endpoint} says that it is call {place} of its session, and it is {due}'s turn"
            )
        self._next[endpoint == HELLO] = due + 1


class CallTags:
    """The tags of one call, at either end.

    Args:
        keys: the session's.
        role: of this end: a site sends the request and receives the answer, a server the other way round.
        endpoint: what is called.
        place: which of the session's calls it is.
        counted: at a server, takes the call when its tag is good.
    """

    def __init__(
        self, keys: Keys, role: Role, endpoint: str, place: int, counted: Counted | None = None
    ) -> None:
        self._keys, self._role, self._endpoint, self._place = keys, role, endpoint, place
        self._counted = counted
        self._request = b""

    @property
    def are_checked(self) -> bool:
        return bool(self._request)

    def sent(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        mac, last = self._mac(self._role), next(chunks)
        for chunk in chunks:
            mac.update(last)
            yield last
            last = chunk
        mac.update(last)
        tag = mac.digest()
        if self._role is Role.CLIENT:
            self._request = tag
        yield last + tag

    def received(self, read: Read) -> Read:
        mac: Any = None
        held: Any = None

        async def checked() -> Any:
            nonlocal mac, held
            if held is None:
                held = await read()
            if held is grpc.aio.EOF:
                return held
            if mac is None:
                mac = self._mac(Role.CLIENT if self._role is Role.SERVER else Role.SERVER)
            chunk, held = held, await read()
            if held is not grpc.aio.EOF:
                mac.update(chunk)
                return chunk
            message, tag = memoryview(chunk)[:-TAG_BYTES], chunk[-TAG_BYTES:]
            mac.update(message)
            self._check(mac.digest(), tag)
            return message

        return checked

    def _check(self, due: bytes, tag: bytes) -> None:
        if not hmac.compare_digest(due, tag):
            raise ForgedError(
                f"{self._endpoint} was changed on its way, or is not the other end's own; ask whoever runs the proxy"
            )
        if self._role is Role.SERVER:
            if self._counted is not None:
                self._counted.take(self._endpoint, self._place)
            self._request = due

    def _mac(self, sender: Role) -> hmac.HMAC:
        """A tag that is to be made over a message of ``sender``."""
        name = self._endpoint.encode()
        about = _CALL.pack(bytes.fromhex(self._keys.session), self._place, len(name)) + name
        if sender is Role.CLIENT:
            return hmac.new(self._keys.site, b"request\0" + about, "sha256")
        if not self._request:
            raise ForgedError(f"{self._endpoint} was answered before it had been asked whole")
        return hmac.new(self._keys.server, b"answer\0" + about + self._request, "sha256")
