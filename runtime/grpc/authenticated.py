"""Who calls the server. Under mutual TLS the certificate says it; where a proxy opens TLS, a session.

The server answers handshakes (``handshake``) of anybody who reaches its port, within bounds, and keeps the sessions
that come of them. A call names its session, and the session's keys say whether it is the site's (``tags``). Until a
request's tag has been checked, the server refuses by a status of gRPC's, which is not signed: with a tag, a refusal of
something that a proxy made up could be shown to the site as the answer to what the site asked.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, TypeAlias

import grpc
import grpc.aio

from suture.runtime.consortium.credentials import Credentials, Role
from suture.runtime.errors import ConfigError, MemberLostError, PeerLostError, SutureError, WireError
from suture.runtime.grpc import chunks, handshake
from suture.runtime.grpc.handshake import Identity, Keys
from suture.runtime.grpc.pings import Pings, PlainPings, TaggedPings
from suture.runtime.grpc.service import PROXY, SESSION, given, other_mode, place_of, seconds_between_pings
from suture.runtime.grpc.tags import CallTags, Counted, ForgedError

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
"""Seconds in which a handshake must come in, and after which a session that was not used is dropped."""
HANDSHAKES_AT_ONCE = 64
HANDSHAKES_A_SECOND = 100
"""Handshakes a second, of all sites and strangers together. One takes a third of a millisecond of the thread
that carries the members' calls; above this number a caller is told to try again."""
_TOO_MANY = "too many newcomers at once; try again in a moment"
_IDLE_SECONDS = 60.0
_WAITING_OF_A_SITE = 4
"""Sessions of one site that have not joined; another one takes the oldest one's room."""

_PLAIN = PlainPings()
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class Caller(Protocol):
    """Who calls, as the server knows it."""

    @property
    def site(self) -> str:
        """The name in its certificate."""
        ...

    @property
    def certificate(self) -> bytes:
        """Its certificate, PEM."""
        ...

    @property
    def pings(self) -> Pings:
        """The pings of the stream that it holds open."""
        ...

    def new_token(self) -> str:
        """A name for the session that it will have once it has joined."""
        ...

    def said_hello(self) -> None:
        """Its own hello has come."""
        ...

    def joined(self) -> None:
        """It has joined."""
        ...

    def left(self) -> None:
        """It has left."""
        ...


@dataclass(frozen=True)
class TlsCaller:
    """A site that TLS knows."""

    site: str
    certificate: bytes
    pings: Pings = _PLAIN

    def new_token(self) -> str:
        return secrets.token_hex(16)

    def said_hello(self) -> None: ...

    def joined(self) -> None: ...

    def left(self) -> None: ...


@dataclass(eq=False)
class ServerSession:
    """A session at the server, from the handshake on. Unused, it is dropped until the site has joined."""

    site: str
    certificate: bytes
    keys: Keys
    pings: Pings
    sessions: dict[str, ServerSession] = field(repr=False)
    counted: Counted = field(default_factory=Counted)
    has_joined: bool = False
    drop_at: float = field(default_factory=lambda: time.monotonic() + HANDSHAKE_SECONDS)

    @property
    def is_over(self) -> bool:
        """Whether it is to be dropped."""
        return not self.has_joined and time.monotonic() > self.drop_at

    def new_token(self) -> str:
        return self.keys.session

    def said_hello(self) -> None:
        self.drop_at = time.monotonic() + _IDLE_SECONDS

    def joined(self) -> None:
        self.has_joined = True
        self.sessions[self.keys.session] = self  # its hello may have waited for a run for hours

    def left(self) -> None:
        self.sessions.pop(self.keys.session, None)


class Authenticator:
    """Knows the server's sessions. Of the loop's thread only.

    Args:
        credentials: the server's.
        line_timeout: seconds; how often pings are written follows from it.

    Raises:
        ConfigError: the server's key cannot sign handshakes.
    """

    def __init__(self, credentials: Credentials, line_timeout: float) -> None:
        self._identity = Identity(credentials, Role.SERVER)
        self._every = seconds_between_pings(line_timeout)
        self._sessions: dict[str, ServerSession] = {}
        self._under_way = 0
        self._allowed, self._allowed_at = float(HANDSHAKES_A_SECOND), time.monotonic()
        self._has_logged = False

    async def greet(self, context: Context) -> None:
        """Answers a handshake, whoever it is; ends the call of one that is refused."""
        if self._under_way >= HANDSHAKES_AT_ONCE:
            await context.abort(grpc.StatusCode.UNAVAILABLE, _TOO_MANY)
        self._under_way += 1
        try:
            message = await _read(context)
            if not self._allows():
                raise PeerLostError(_TOO_MANY)
            site, answer, keys = handshake.answered(self._identity, message)
        except SutureError as error:
            if not self._has_logged and not isinstance(error, PeerLostError):
                self._has_logged = True
                log.warning("refused a handshake: %.300s (further ones are not logged)", error)
            await refuse(context, error, grpc.StatusCode.UNAUTHENTICATED)
        finally:
            self._under_way -= 1
        self._keep(site, handshake.shown_certificate(message), keys)
        for chunk in chunks.chunks([memoryview(answer)]):
            await context.write(chunk)

    async def caller(self, endpoint: str, context: Context) -> tuple[ServerSession, CallTags]:
        """Whose session a call names, and the tags that will tell whether it is true; ends a call that names none."""
        name = given(context, SESSION)
        try:
            if not name:
                raise ConfigError(other_mode(PROXY))
            session, place = self._sessions.get(name), place_of(context)
            if session is None or session.is_over:
                raise MemberLostError("no such session here, or an older one; join again")
        except SutureError as error:
            await self._hear_out(context)
            await refuse(context, error)
        return session, CallTags(session.keys, Role.SERVER, endpoint, place, session.counted)

    async def _hear_out(self, context: Context) -> None:
        """Reads what is refused, as long as a handshake: who could not send all would not read the refusal."""
        if self._under_way >= HANDSHAKES_AT_ONCE:
            return
        self._under_way += 1
        left = handshake.MOST_BYTES
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(HANDSHAKE_SECONDS):
                    while left > 0 and (chunk := await context.read()) is not grpc.aio.EOF:
                        left -= max(len(chunk), 1024)
        finally:
            self._under_way -= 1

    def _keep(self, site: str, certificate: bytes, keys: Keys) -> None:
        for session in [session for session in self._sessions.values() if session.is_over]:
            session.left()
        waiting = [one for one in self._sessions.values() if one.site == site and not one.has_joined]
        if len(waiting) >= _WAITING_OF_A_SITE:  # an old handshake may be sent again and again
            waiting[0].left()
        pings = TaggedPings(keys, Role.SERVER, self._every)
        self._sessions[keys.session] = ServerSession(site, certificate, keys, pings, self._sessions)

    def _allows(self) -> bool:
        """Whether another handshake is checked now; a second's worth may come at once."""
        now, most = time.monotonic(), float(HANDSHAKES_A_SECOND)
        self._allowed = min(most, self._allowed + (now - self._allowed_at) * most)
        self._allowed_at = now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True


async def _read(context: Context) -> bytes:
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            frame = await chunks.gather(context.read, handshake.MOST_BYTES)
    except TimeoutError:
        raise PeerLostError("a handshake that did not come to its end in time; try again") from None
    if frame is None:
        raise WireError("a handshake without a message")
    return bytes(frame.numpy().data)


async def refuse(
    context: Context, error: SutureError, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT
) -> NoReturn:
    """Ends a call whose request has no good tag, by a status."""
    if isinstance(error, ForgedError):
        code = grpc.StatusCode.DATA_LOSS
    elif isinstance(error, ConfigError):
        code = grpc.StatusCode.UNAUTHENTICATED
    elif isinstance(error, PeerLostError):
        code = grpc.StatusCode.UNAVAILABLE
    await context.abort(code, str(error)[:500])
    raise error  # abort has raised
