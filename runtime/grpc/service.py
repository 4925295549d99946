"""What both ends of gRPC agree on: the names of methods, the options of a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc
import grpc.aio

from suture.runtime.errors import ConfigError, WireError
from suture.runtime.grpc.chunks import MESSAGE_LIMIT
from suture.runtime.wire.messages import PROTOCOL

T = TypeVar("T")

PREFIX = f"/suture/{PROTOCOL}/"
"""Of every method: a program of another protocol finds none of them."""
HELLO = "hello"
TERMS = "terms"
"""What a site asks before it joins."""
ALIVE = "alive"
"""The stream that a site holds open."""
HANDSHAKE = "handshake"
"""What a site of mode `PROXY` calls first."""
MUTUAL, PROXY = MODES = ("mutual", "proxy")
"""Whether TLS goes from site to server and says who each is, or a proxy between them opens it."""
SESSION = "suture-session"
"""The metadata by which a call names its session; the certificate says whose it must be."""
PLACE = "suture-place"
"""The metadata by which a call says how many its session made before it: streams of one connection may come out in
another order than they went in (one in a thousand pairs does)."""
PING = b"."
_PINGS_IN_A_LINE_TIMEOUT = 3
SLOWEST_LINE = 125_000
"""Bytes a second (1 Mbit/s): what a deadline allows a large message."""


def endpoint_of(method: str) -> str:
    """The endpoint that a method names, empty where it names none of this protocol's."""
    return method.removeprefix(PREFIX) if method.startswith(PREFIX) else ""


def check_mode(tls: str) -> None:
    """Refuses an unknown mode.

    Raises:
        ConfigError: there is no such mode.
    """
    if tls not in MODES:
        raise ConfigError(f"tls must be one of {', '.join(MODES)}, got {tls!r:.40}")


def other_mode(runs: str) -> str:
    """What a site of another mode is told by a server that ``runs`` this one."""
    return f"it runs with --tls {runs}, and this site does not; join with --tls {runs}"


def given(context: grpc.aio.ServicerContext[Any, Any], name: str) -> str:
    """What a call's metadata says under ``name``, empty where it says nothing."""
    return str(next((value for key, value in context.invocation_metadata() or () if key == name), ""))


def no_answer(code: grpc.StatusCode, details: str | None) -> Exception:
    """What to raise where a call came to its end and nothing was answered."""
    if code is grpc.StatusCode.OK:
        return WireError("a call that was ended without an answer")
    failed: Exception = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
    return failed


def place_of(context: grpc.aio.ServicerContext[Any, Any]) -> int:
    """How many calls its session made before this one; who says nothing is taken as it comes.

    Raises:
        WireError: it says something that is no number.
    """
    place = given(context, PLACE) or "0"
    if not (place.isdecimal() and len(place) < 10):
        raise WireError(f"a call whose place is {place!r:.40}")
    return int(place)


def seconds_between_pings(line_timeout: float) -> float:
    """How often each end writes a ping, so that there is always one that must be acknowledged."""
    return line_timeout / _PINGS_IN_A_LINE_TIMEOUT


async def within(seconds: float, work: Awaitable[T]) -> T:
    """What ``work`` comes to. ``asyncio.wait_for`` of Python 3.11 forgets a cancellation that falls together with it: a
    connection that was to be closed when a ping came stayed open.

    Raises:
        TimeoutError: it took longer than ``seconds``.
    """
    async with asyncio.timeout(seconds):
        return await work


def common_options(lease: float, line_timeout: float) -> list[tuple[str, int]]:
    """The options of a connection, at both ends.

    A cut cable and a frozen process look alike from afar, but not to the kernel: of the first it has bytes that are
    never acknowledged (``keepalive_timeout`` is also TCP_USER_TIMEOUT), of the second it has not. So pings are
    written all the time. One that is not acknowledged ends the connection within ``line_timeout`` of the cut, the time
    until the next ping included; one that is acknowledged and not answered ends it after the lease.

    Note:
        A process that is frozen while it receives a long message soon takes no more, and what waits for it counts as
        not acknowledged: its connection ends within the line timeout, too.
    """
    unacknowledged = line_timeout - seconds_between_pings(line_timeout)
    return [
        ("grpc.max_receive_message_length", MESSAGE_LIMIT),
        ("grpc.max_send_message_length", MESSAGE_LIMIT),
        ("grpc.max_metadata_size", 8192),
        ("grpc.absolute_max_metadata_size", 16384),
        ("grpc.keepalive_time_ms", int(lease * 1000)),
        ("grpc.keepalive_timeout_ms", int(unacknowledged * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
