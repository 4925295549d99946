"""A site's side of gRPC: it dials out to the server's one port and listens on none.

An event loop in a thread of its own carries the calls; the site's main thread asks and waits. When the stream that the
site holds open ends, every call under way fails at once: the server is gone, or has given this site up.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio

from suture.runtime.consortium.credentials import Credentials, Role
from suture.runtime.errors import ConfigError, PeerLostError, SutureError, WireError
from suture.runtime.grpc import chunks
from suture.runtime.grpc.chunks import Limits
from suture.runtime.grpc.handshake import Identity
from suture.runtime.grpc.loop import LoopThread
from suture.runtime.grpc.peer_certificate import takes_all
from suture.runtime.grpc.pings import Pings, PlainPings
from suture.runtime.grpc.service import (
    ALIVE,
    HELLO,
    MUTUAL,
    PING,
    PLACE,
    PREFIX,
    PROXY,
    SESSION,
    SLOWEST_LINE,
    check_mode,
    common_options,
    no_answer,
    seconds_between_pings,
    within,
)
from suture.runtime.grpc.site_session import SiteSession
from suture.runtime.grpc.tags import NO_TAGS, Tags
from suture.runtime.records.outbox import Outbox
from suture.runtime.wire import frames
from suture.runtime.wire.messages import printable

_SECONDS_FOR_THE_LAST_WORD = 2.0
_SECONDS_BETWEEN_LOOKS = 0.25


@dataclass
class Traffic:
    """Bytes of messages that have gone up and come down, over all of a site's connections; TLS adds its own."""

    up: int = 0
    down: int = 0


@dataclass(frozen=True, kw_only=True)
class GrpcClientConfig:
    """Where the server is, and how long to wait for it.

    Attributes:
        host: the server's address, or its name.
        port: its port.
        credentials: this site's.
        limits: of what the server may answer.
        lease: seconds in which a call is answered.
        line_timeout: seconds within which a cut cable is noticed.
        outbox: the log of what leaves this site; None for none.
        tls: "mutual", or "proxy" where one opens TLS on its way; as the server runs.
        proxy_ca: whom TLS believes where a proxy opens it, PEM; None for the authority of the credentials.
        refuses: why a certificate (PEM) counts no more, empty where it does. Asked of the server's where a proxy opens
            TLS; elsewhere gRPC does not show it, see `suture.launch.kits.shown_certificate`.
        traffic: counts what crosses.
    """

    host: str
    port: int
    credentials: Credentials
    limits: Limits
    lease: float
    line_timeout: float
    outbox: Outbox | None = None
    tls: str = MUTUAL
    proxy_ca: bytes | None = None
    refuses: Callable[[bytes], str] = takes_all
    traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        check_mode(self.tls)


class GrpcClient:
    """One connection to the server, from the first call to `close`. Cannot be used again after it was lost.

    Args:
        config: where the server is, and how long to wait for it.
        thread: carries the calls; stays open for the next connection. None for one that ends with this connection.
    """

    def __init__(self, config: GrpcClientConfig, thread: LoopThread | None = None) -> None:
        self._config = config
        self._thread = LoopThread() if thread is None else thread
        self._owns_thread = thread is None
        self._closed = False
        self._session, self._num_calls = "", 0
        self._staying: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[Any]] = set()
        self._lost = ""
        self._retiring: set[asyncio.Task[None]] = set()
        self._identity = (
            Identity(config.credentials, Role.CLIENT, config.refuses) if config.tls == PROXY else None
        )
        self._authentic: SiteSession | None = None
        self._greets = asyncio.Lock()
        self._thread.run(self._open()).result()

    # For the site's main thread ------------------------------------------------------------------

    def begin(
        self,
        endpoint: str,
        messages: Sequence[Any],
        patient: bool = False,
        meanwhile: Callable[[], None] | None = None,
    ) -> Callable[[], Any]:
        """Asks the server; what is returned waits for the answer.

        Args:
            endpoint: one of `api.ENDPOINTS`.
            messages: what it takes.
            patient: wait twice as long as usual.
            meanwhile: see `Exchange.next_turn`.

        Raises:
            PeerLostError: the server is gone, did not answer in time, or has given this site up; as the function below.
            WireError: it answered what cannot be read, or refused what was sent.
            ConfigError: it does not take this site's certificate or protocol.
            CheckpointError: the outbox could not write the message down, so it was not sent.
        """
        answer = self._thread.run(self._ask(endpoint, list(messages), patient))

        def wait() -> Any:
            try:
                while meanwhile is not None and not answer.done():
                    wait_for([answer], timeout=_SECONDS_BETWEEN_LOOKS)
                    if not answer.done():
                        meanwhile()
                return answer.result()
            except CancelledError:
                raise self._gone() from None

        return wait

    def stay(self) -> None:
        """Opens the stream that says that this site is there, and holds it open."""
        self._thread.run(self._begin_to_stay()).result()

    def renew(self, credentials: Credentials) -> bool:
        """Goes on over another connection, with a certificate that was renewed; any thread may say so. Calls under way
        come to their end where they are, and the server sees one session all the time.

        Returns:
            Whether it does. Where a proxy opens TLS the session does not need the certificate any more, and nothing is
            done; nor where the site is not in.

        Raises:
            SutureError: the server did not take it; the connection is as it was.
        """
        if self._closed:
            return False
        try:
            return bool(self._thread.run(self._renew(credentials)).result())
        except CancelledError:  # its loop has ended in the meantime
            return False

    def close(self) -> None:
        """Ends the connection. May be called again."""
        if self._closed:
            return
        self._closed = True
        with suppress(Exception):  # the other end may be gone
            self._thread.run(self._close()).result(_SECONDS_FOR_THE_LAST_WORD)
        if self._owns_thread:
            self._thread.close()

    # In the loop's thread ------------------------------------------------------------------------

    async def _open(self) -> None:
        self._channel = _dialled(self._config)

    async def _ask(self, endpoint: str, messages: list[Any], patient: bool) -> Any:
        if self._lost:
            raise self._gone()
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            return await self._exchange(endpoint, messages, patient)
        except grpc.aio.AioRpcError as error:
            raise _as_ours(error, self._config) from None
        finally:
            self._under_way.discard(task)

    async def _greet(self, identity: Identity) -> SiteSession:
        """The session with the server, which the first call makes."""
        async with self._greets:
            if self._authentic is None:
                config = self._config
                made = await SiteSession.open(self._channel, identity, config.lease, config.line_timeout)
                self._authentic, self._session = made, made.name
            return self._authentic

    async def _exchange(self, endpoint: str, messages: list[Any], patient: bool) -> Any:
        limits, pieces = self._config.limits, frames.pack(messages)
        most, length = limits.down(endpoint), sum(len(piece) for piece in pieces)
        if length > limits.up(endpoint):
            raise WireError(
                f"{endpoint}: a message of {length} bytes; this run's have at most {limits.up(endpoint)}: not sent"
            )
        outbox = self._config.outbox
        if outbox is not None:
            outbox.left(endpoint, messages, pieces)
        deadline = self._config.lease * (2 if patient else 1) + (length + most) / SLOWEST_LINE
        tags: Tags = NO_TAGS
        if self._identity is None:
            place = self._num_calls
            self._num_calls += endpoint != HELLO
        else:
            place, tags = (await self._greet(self._identity)).begin(endpoint)
        call = self._channel.stream_stream(PREFIX + endpoint)(
            tags.sent(chunks.chunks(pieces)),
            timeout=deadline,
            metadata=((SESSION, self._session), (PLACE, str(place))),
        )
        try:
            self._config.traffic.up += length
            frame = await chunks.gather(tags.received(call.read), most)
            if frame is None:
                raise no_answer(await call.code(), await call.details())
            self._config.traffic.down += frame.nbytes
            answer = frames.unpack(frame)
            if self._authentic is not None:
                self._authentic.answered(answer)
            elif endpoint == HELLO:
                known = dict(await call.initial_metadata() or ())
                self._session, self._num_calls = str(known.get(SESSION, "")), 0
            if outbox is not None:
                outbox.answered(answer)
            return answer
        except WireError as error:
            raise WireError(f"server: {endpoint}: {error}; refused") from None
        finally:
            call.cancel()

    async def _begin_to_stay(self) -> None:
        first: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._staying = asyncio.ensure_future(self._stay(self._channel, first))

    async def _stay(self, channel: grpc.aio.Channel, first: asyncio.Future[bytes]) -> None:
        """Pings both ways until the server ends the stream, is silent beyond the lease, or the connection ends.

        Args:
            channel: over which.
            first: takes the server's first ping, or nothing where none comes.
        """
        call = channel.stream_stream(PREFIX + ALIVE)(metadata=((SESSION, self._session),))
        pings: Pings = PlainPings() if self._authentic is None else self._authentic.pings
        pings.begin()

        async def ping() -> None:
            while True:
                await call.write(pings.made())
                await asyncio.sleep(seconds_between_pings(self._config.line_timeout))

        pinging, reason = asyncio.ensure_future(ping()), "the server has ended the connection"
        lease = self._config.lease
        try:
            while (said := await within(pings.patience(lease), call.read())) is not grpc.aio.EOF:
                pings.take(said)
                if not first.done():
                    first.set_result(said)
        except TimeoutError:
            reason = f"no word from the server for {lease:g} s"
        except WireError as error:
            reason = str(error)
        except grpc.aio.AioRpcError as error:
            reason = f"the connection has ended ({error.details()})"
        finally:
            pinging.cancel()
            call.cancel()
            if not first.done():
                first.set_result(b"")
        if asyncio.current_task() is not self._staying:
            return
        self._lost = reason
        for task in list(self._under_way):
            task.cancel()

    async def _renew(self, credentials: Credentials) -> bool:
        if self._closed or self._lost or self._staying is None or self._identity is not None:
            return False
        config = replace(self._config, credentials=credentials)
        channel = _dialled(config)
        first: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        staying = asyncio.ensure_future(self._stay(channel, first))
        took = False
        try:
            with suppress(TimeoutError):
                took = await within(config.lease, first) == PING and not self._lost
        finally:
            if not took:
                staying.cancel()
                await channel.close()
        if not took:
            raise PeerLostError(
                f"the server at {config.host}:{config.port} took no new connection with the renewed certificate"
            )
        before, old = self._staying, self._channel
        self._config, self._channel, self._staying = config, channel, staying
        # Not before the new stream stands: the server takes a site for gone when it has none.
        before.cancel()
        retiring = asyncio.ensure_future(_close_after(old, set(self._under_way)))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        return True

    async def _close(self) -> None:
        ending = [self._staying, *self._retiring]
        for task in ending:
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        await self._channel.close()

    def _gone(self) -> PeerLostError:
        return PeerLostError(f"{self._lost or 'the connection was closed'}; see the server's log")


async def _close_after(channel: grpc.aio.Channel, under_way: set[asyncio.Task[Any]]) -> None:
    """Ends a connection when the calls that were made over it have been answered."""
    try:
        if under_way:
            await asyncio.wait(under_way)
    finally:
        await channel.close()


def _dialled(config: GrpcClientConfig) -> grpc.aio.Channel:
    own = config.credentials
    # A proxy does not ask for the certificate; a server of mode mutual does, and can then say what it runs.
    credentials = grpc.ssl_channel_credentials(config.proxy_ca or own.authority, own.key, own.certificate)
    options = [
        *common_options(config.lease, config.line_timeout),
        ("grpc.use_local_subchannel_pool", 1),  # a connection that is given up is not taken up again
        ("grpc.enable_retries", 0),
    ]
    host = f"[{config.host}]" if ":" in config.host else config.host
    return grpc.aio.secure_channel(f"{host}:{config.port}", credentials, options=options)


_CERTIFICATE = re.compile(r"CERTIFICATE_VERIFY_FAILED: ([^\"\n:]+)")
_BESIDE_THE_REASON = re.compile(r"^failed to connect to all addresses; last error: [A-Z]+: ")
_NOT_THIS_HOST = "Hostname Verification"
_ENDED_EARLY = (grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
"""INTERNAL is also what gRPC makes of a chunk that could not be sent any more, whatever the reason was."""


def _as_ours(error: grpc.aio.AioRpcError, config: GrpcClientConfig) -> SutureError:
    """What gRPC says, as an error of ours that says what to do."""
    server, code, details = f"{config.host}:{config.port}", error.code(), error.details() or ""
    if found := _CERTIFICATE.search(details):
        behind = config.tls == PROXY
        file = "--proxy-ca" if behind else "the kit's ca.pem"
        return ConfigError(
            f"the server at {server} shows a certificate that is not to be trusted ({found[1].strip()}); nothing was "
            f"said to it: check {file}, this machine's clock, and with the server's "
            f"operator its certificate{'' if behind else '; where a proxy opens TLS, see --tls proxy'}"
        )
    if _NOT_THIS_HOST in details:
        return ConfigError(
            f"the server at {server} shows a certificate for another address; nothing was said to it: dial the address "
            "that its certificate names"
        )
    ours = _status_as_ours(code, printable(details.partition("\n")[0]), server)
    if config.tls == PROXY and not isinstance(ours, PeerLostError):
        return type(ours)(f"{ours} (the proxy may have said so: nobody signs a status)")
    return ours


def _status_as_ours(code: grpc.StatusCode, details: str, server: str) -> SutureError:
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ConfigError(
            f"the server at {server} speaks another version of the protocol; install the same suture"
        )
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return ConfigError(f"the server at {server} does not let this site in: {details:.200}")
    if code is grpc.StatusCode.UNAVAILABLE:
        return PeerLostError(_BESIDE_THE_REASON.sub("", details) or "no answer")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "oncurrent RPC limit" in details:
        return PeerLostError(f"the server at {server} has all hands full; try again in a moment")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return PeerLostError(f"the server at {server} did not answer in time; see its log")
    if code in _ENDED_EARLY:
        return PeerLostError(f"the server at {server} has ended the call; see its log")
    return WireError(f"server: {code.name.lower().replace('_', ' ')}: {details:.200}; refused")
