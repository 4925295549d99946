"""A site's session where a proxy opens TLS: from the handshake on, its calls and their tags."""

from __future__ import annotations

from typing import Any

import grpc.aio

from suture.runtime.consortium.credentials import Role
from suture.runtime.errors import ConfigError, MemberLostError, WireError
from suture.runtime.grpc import chunks
from suture.runtime.grpc.handshake import MOST_BYTES, Identity, Keys, SiteHandshake
from suture.runtime.grpc.pings import TaggedPings
from suture.runtime.grpc.service import HANDSHAKE, HELLO, PREFIX, TERMS, no_answer, seconds_between_pings
from suture.runtime.grpc.tags import CallTags
from suture.runtime.wire.messages import Welcome


class SiteSession:
    """A session at a site, from the handshake on.

    Args:
        keys: its keys.
        line_timeout: seconds; how often pings are written follows from it.
    """

    def __init__(self, keys: Keys, line_timeout: float) -> None:
        self.name = keys.session
        self.pings = TaggedPings(keys, Role.CLIENT, seconds_between_pings(line_timeout))
        self._keys, self._has_joined = keys, False
        self._num_calls = {True: 0, False: 0}

    @classmethod
    async def open(
        cls, channel: grpc.aio.Channel, identity: Identity, lease: float, line_timeout: float
    ) -> SiteSession:
        """Shakes hands with the server.

        Raises:
            ConfigError: the server's certificate is not to be trusted.
            WireError: what came is no answer to this handshake.
            grpc.aio.AioRpcError: there was no answer, or a status that refuses.
        """
        shaken = SiteHandshake(identity)
        said = chunks.chunks([memoryview(shaken.message)])
        call = channel.stream_stream(PREFIX + HANDSHAKE)(said, timeout=lease)
        try:
            answer = await chunks.gather(call.read, MOST_BYTES)
            if answer is None:
                raise no_answer(await call.code(), await call.details())
            return cls(shaken.finish(answer.numpy().tobytes()), line_timeout)
        except (ConfigError, WireError) as error:
            raise type(error)(f"server: handshake: {error}; nothing else was said to it") from None
        finally:
            call.cancel()

    def begin(self, endpoint: str) -> tuple[int, CallTags]:
        """Another call: its place among the session's, and its tags.

        Raises:
            MemberLostError: the site is not in, and it is neither a hello nor the request for the terms, which may come
                late and change nothing. What else was signed then could be sent again later.
        """
        is_hello = endpoint == HELLO
        if not (is_hello or self._has_joined or endpoint == TERMS):
            raise MemberLostError(f"{endpoint}: this site has not joined; join again")
        place = self._num_calls[is_hello]
        self._num_calls[is_hello] += 1
        return place, CallTags(self._keys, Role.CLIENT, endpoint, place)

    def answered(self, answer: Any) -> None:
        """The server's own answer to a call; a welcome lets the site in."""
        self._has_joined = self._has_joined or isinstance(answer, Welcome)
