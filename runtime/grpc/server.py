"""The server's side of gRPC: one port, TLS 1.3, a `ServerApi` for each site that comes in.

    site                                      server
    hello(Hello)                       ->     the certificate's name, a member, a session
    alive: a stream held open         <->     pings both ways; when it ends the site has gone
    train(Upload) ...                 <->     as ``server.api`` says; the server computes in its main thread

Messages are read and written in a thread of its own, which has the event loop; it computes nothing and takes no lock
of the run's. A site's calls are handed on one after the other, in the order in which it made them.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import resource
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future as Result
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from torch.futures import Future

from suture.runtime.consortium.credentials import Credentials
from suture.runtime.errors import ConfigError, EvictedError, MemberLostError, SutureError, WireError
from suture.runtime.grpc import chunks
from suture.runtime.grpc.authenticated import Authenticator, Caller, TlsCaller, refuse
from suture.runtime.grpc.chunks import Limits
from suture.runtime.grpc.peer_certificate import takes_all
from suture.runtime.grpc.service import (
    ALIVE,
    HANDSHAKE,
    HELLO,
    MUTUAL,
    PROXY,
    SESSION,
    SLOWEST_LINE,
    TERMS,
    check_mode,
    common_options,
    endpoint_of,
    given,
    other_mode,
    place_of,
    seconds_between_pings,
    within,
)
from suture.runtime.grpc.tags import NO_TAGS, Tags
from suture.runtime.host.executor import MainThreadExecutor
from suture.runtime.server import api as server_api
from suture.runtime.server.api import ServerApi
from suture.runtime.server.coordinator import Coordinator
from suture.runtime.wire import frames
from suture.runtime.wire.messages import Hello, Refusal, Terms, Welcome

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10
CALLS_OF_A_SITE = 12
"""Most calls of a site under way at once; an honest site has a stream, two batches, and one more."""
CONNECTIONS_BESIDE_THE_SITES = 512
"""A stranger holds one until its handshake fails or times out; a flood keeps newcomers waiting, and not members."""
IDLE_SECONDS = 60
_OLDEST_TLS = b"TLSv1.3"


@dataclass(frozen=True, kw_only=True)
class GrpcServerConfig:
    """Where the server listens, and how long it waits.

    Attributes:
        host: the address, or a name of it.
        port: the one port.
        credentials: the server's.
        sites: how many are expected, which bounds connections and calls.
        lease: seconds after which a silent site is lost.
        line_timeout: seconds within which a cut cable is noticed.
        tls: "mutual", or "proxy" where one opens TLS on its way from a site.
        terms: what a site is told before it joins, as far as it is known at the start; see `GrpcServer.settle`.
        first_is_sound: raises WireError where what the first site says cannot be a run's; asked in the loop's thread.
        refuses: why a certificate (PEM) counts no more, empty where it does; asked when a site says hello, and with
            each of its pings, in the loop's thread: it must be quick.
    """

    host: str
    port: int
    credentials: Credentials
    sites: int
    lease: float
    line_timeout: float
    tls: str = MUTUAL
    terms: Terms | None = None
    first_is_sound: Callable[[Hello], object] = lambda hello: None
    refuses: Callable[[bytes], str] = takes_all

    def __post_init__(self) -> None:
        check_mode(self.tls)


@dataclass(eq=False)
class _Session:
    """A site that has joined: its `ServerApi`, which of its calls is read next, whether it has opened its stream.

    It may open another stream over another connection, with a certificate that was renewed, before it closes the one
    that it has: it has gone when the last one ends.
    """

    caller: Caller
    token: str
    api: ServerApi
    order: asyncio.Condition = field(default_factory=asyncio.Condition)
    num_taken: int = 0
    carried_at: float = 0.0
    stays: bool = False
    num_streams: int = 0

    @property
    def site(self) -> str:
        return self.caller.site

    @asynccontextmanager
    async def in_order(self, place: int, patience: float) -> AsyncIterator[None]:
        """Holds a call back until those that the site made before it have been handed on.

        Raises:
            WireError: one of them did not come within ``patience`` seconds.
        """
        async with self.order:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self.order.wait_for(lambda: self.num_taken >= place)
            if self.num_taken < place:
                raise WireError(f"call {place} came, and of those before it only {self.num_taken}")
            try:
                yield
            finally:
                self.num_taken = max(self.num_taken, place + 1)
                self.order.notify_all()

    def carried(self, most: int) -> None:
        """Another chunk of its message, which may have ``most`` bytes; the run is told once a second."""
        now = time.monotonic()
        if now - self.carried_at > 1.0:
            self.carried_at = now
            self.api.transfers(most / SLOWEST_LINE)


@dataclass(frozen=True)
class _Run:
    """The run that is played; from now on a hello is answered."""

    coordinator: Coordinator
    limits: Limits


class GrpcServer:
    """Listens from `start` on; sites come in once the run is open.

    Args:
        config: where to listen, and how long to wait.

    Raises:
        ConfigError: the server's key is none for the mode in which it runs.
    """

    def __init__(self, config: GrpcServerConfig) -> None:
        self._config = config
        self._authenticator = (
            Authenticator(config.credentials, config.line_timeout) if config.tls == PROXY else None
        )
        self._executor = MainThreadExecutor()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="grpc", daemon=True)
        self._first: Result[Hello] = Result()
        self._opened: asyncio.Future[_Run] = self._loop.create_future()
        self._settled_terms: asyncio.Future[Terms] = self._loop.create_future()
        self._sessions: dict[str, _Session] = {}
        self._calls: Counter[str] = Counter()
        self._refused: set[str] = set()
        self._put_out: set[tuple[str, str]] = set()

    # For the main thread -------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to listen.

        Raises:
            ConfigError: the address is not this machine's, or the port is taken.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 4 * CONNECTIONS_BESIDE_THE_SITES
        if soft < wanted:  # files that are open count, too
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
        self._thread.start()
        self._in_loop(self._listen())

    def first_hello(self) -> Hello:
        """Waits for the first site that says who it is and what it has, when it joins or asks for the terms.

        It is answered when the run is open, or the terms are settled.
        """
        while True:
            try:
                return self._first.result(timeout=0.5)  # an interrupt comes through between two waits
            except TimeoutError:
                continue

    def settle(self, terms: Terms) -> None:
        """From now on sites are told these terms, which nothing changes any more."""
        self._loop.call_soon_threadsafe(self._settled_terms.set_result, terms)

    def play(self, run: Coordinator, limits: Limits) -> None:
        """Plays the run until it is over; the server computes in this thread, which must be the main one.

        Raises:
            SutureError: the run stopped early; the message says why.
        """
        self._loop.call_soon_threadsafe(self._opened.set_result, _Run(run, limits))
        try:
            run.wait(None, self._executor.work)
        finally:
            self._executor.close()

    def close(self, grace: float = 1.0) -> None:
        """Stops listening; calls under way have so many seconds to end."""
        if not self._thread.is_alive():
            return
        self._executor.close()
        self._in_loop(self._stop(grace))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _in_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # In the loop's thread ------------------------------------------------------------------------

    async def _listen(self) -> None:
        config, own = self._config, self._config.credentials
        connections = config.sites * 2 + CONNECTIONS_BESIDE_THE_SITES
        # A proxy may carry all sites over one connection.
        in_one = 1 if config.tls == MUTUAL else config.sites
        options = [
            *common_options(config.lease, config.line_timeout),
            ("grpc.so_reuseport", 0),  # two servers on one port would share its sites
            ("grpc.max_concurrent_streams", 2 * CALLS_OF_A_SITE * in_one),
            ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
            ("grpc.max_allowed_incoming_connections", connections),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
            ("grpc.http2.min_ping_interval_without_data_ms", 1000),
        ]
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=connections * CALLS_OF_A_SITE)
        self._server.add_generic_rpc_handlers((_Handlers(self._handle),))
        certifies = {"root_certificates": own.authority, "require_client_auth": True}
        credentials = grpc.ssl_server_credentials(
            [(own.key, own.certificate)], **certifies if config.tls == MUTUAL else {}
        )
        host = f"[{config.host}]" if ":" in config.host else config.host
        try:
            self._server.add_secure_port(f"{host}:{config.port}", credentials)
        except RuntimeError:
            raise ConfigError(
                f"cannot listen on {config.host}:{config.port}; name an address of this machine and a free port "
                "(--listen 0.0.0.0:PORT for all of its addresses)"
            ) from None
        await self._server.start()

    async def _stop(self, grace: float) -> None:
        await self._server.stop(grace)

    async def _handle(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """One call, whoever makes it and whatever it names."""
        endpoint = endpoint_of(method)
        await self._check_transport(endpoint, context)
        if endpoint == HANDSHAKE and self._authenticator is not None:
            await self._authenticator.greet(context)
            return
        caller, tags = await self._caller(endpoint, context)
        site = caller.site
        answer: Any
        try:
            with self._counted(site):
                if endpoint == ALIVE:
                    await self._alive(self._session(site, context), caller, context)
                    return
                if endpoint == TERMS:
                    answer = await self._terms(caller, tags, context)
                elif endpoint == HELLO:
                    answer = await self._hello(caller, tags, context)
                else:
                    answer = await self._ask(self._session(site, context), endpoint, tags, context)
        except SutureError as error:
            await self._drain(endpoint, context)
            answer = Refusal.of(error)
            if isinstance(error, WireError) and site not in self._refused:
                self._refused.add(site)
                log.warning("refused %s of %s: %.300s (further ones are not logged)", endpoint, site, error)
            if not tags.are_checked:
                await refuse(context, error)
        for chunk in tags.sent(chunks.chunks(frames.pack(answer))):
            await context.write(chunk)
            if len(chunk) == chunks.CHUNK_BYTES and (session := self._sessions.get(site)) is not None:
                session.carried(self._opened.result().limits.down(endpoint))

    async def _drain(self, endpoint: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Reads the rest of a refused call and keeps nothing: who could not send all would not read the refusal."""
        left = self._opened.result().limits.up(endpoint) if self._opened.done() else chunks.SMALL
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.lease):
                while left > 0 and (chunk := await context.read()) is not grpc.aio.EOF:
                    left -= max(len(chunk), 1024)

    @contextmanager
    def _counted(self, site: str) -> Iterator[None]:
        """Counts a call of a site's.

        Raises:
            WireError: it has too many under way.
        """
        if self._calls[site] >= CALLS_OF_A_SITE:
            raise WireError(f"{site}: more than {CALLS_OF_A_SITE} calls under way; refused")
        self._calls[site] += 1
        try:
            yield
        finally:
            self._calls[site] -= 1

    async def _check_transport(self, endpoint: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Ends a call over an older TLS, or of a site of the other mode."""
        if context.auth_context().get("ssl_tls_version", [b""])[0] != _OLDEST_TLS:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "TLS 1.3 is the oldest that is taken here")
        if endpoint == HANDSHAKE and self._authenticator is None:
            await self._drain(endpoint, context)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, other_mode(MUTUAL))

    async def _caller(
        self, endpoint: str, context: grpc.aio.ServicerContext[Any, Any]
    ) -> tuple[Caller, Tags]:
        """Whose certificate it is, which TLS or a handshake has checked; ends the call where there is none."""
        if self._authenticator is not None:
            return await self._authenticator.caller(endpoint, context)
        names = context.auth_context().get("x509_common_name", [])
        if len(names) != 1:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the certificate must have one common name")
        (certificate,) = context.auth_context()["x509_pem_cert"]
        return TlsCaller(str(names[0].decode(errors="replace")), certificate), NO_TAGS

    def _check_counts(self, caller: Caller) -> None:
        """Refuses a caller whose certificate was revoked.

        Raises:
            EvictedError: it counts no more.
        """
        if reason := self._config.refuses(caller.certificate):
            error = EvictedError(
                f"{caller.site} is not let in: {reason}; ask who keeps the consortium's authority"
            )
            if (caller.site, reason) not in self._put_out:
                self._put_out.add((caller.site, reason))
                log.warning("%s", error)
            raise error

    def _session(self, site: str, context: grpc.aio.ServicerContext[Any, Any]) -> _Session:
        session = self._sessions.get(site)
        if session is None or not hmac.compare_digest(
            session.token.encode(), given(context, SESSION).encode()
        ):
            raise MemberLostError(f"{site} has no session here, or an older one; join again")
        return session

    async def _terms(
        self, caller: Caller, tags: Tags, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Terms | None:
        """The terms; for a site that sends the hello that it would say, those that are settled."""
        message = await self._received(context, tags, chunks.SMALL)
        if self._settled_terms.done():
            return self._settled_terms.result()
        if not message:
            return self._config.terms
        self._hear_first(caller, TERMS, message)
        return await asyncio.shield(self._settled_terms)

    def _hear_first(self, caller: Caller, endpoint: str, message: list[Any]) -> None:
        """Takes down what the first site says of itself.

        Raises:
            WireError: it is no hello of that site's, or not sound; another one may be the first.
            EvictedError: the site's certificate counts no more.
        """
        if len(message) != 1 or not isinstance(message[0], Hello) or message[0].client != caller.site:
            raise WireError(
                f"{caller.site}: {endpoint}: it must name the site that the certificate names; refused"
            )
        self._check_counts(caller)
        if not self._first.done():
            self._config.first_is_sound(message[0])
            self._first.set_result(message[0])

    async def _hello(
        self, caller: Caller, tags: Tags, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Welcome | Refusal:
        message = await self._received(context, tags, chunks.SMALL)
        caller.said_hello()
        self._hear_first(caller, HELLO, message)
        run = await asyncio.shield(self._opened)
        self._check_counts(caller)  # the run may have kept it waiting for hours
        session = _Session(caller, caller.new_token(), ServerApi(run.coordinator, self._executor))
        try:
            answer: Welcome | Refusal = await _settled(server_api.ask(session.api, "hello", message))
        except asyncio.CancelledError:
            self._end(session, "its connection has ended")  # behind its hello in the executor's queue
            raise
        if isinstance(answer, Welcome):
            self._sessions[caller.site] = session
            caller.joined()
            # It may have died since; no stream tells.
            self._loop.call_later(self._config.line_timeout, self._end_unless_it_stays, session)
            await context.send_initial_metadata(((SESSION, session.token),))
        return answer

    def _end_unless_it_stays(self, session: _Session) -> None:
        if not session.stays:
            self._end(session, f"it has joined and opened no stream for {self._config.line_timeout:g} s")

    def _end(self, session: _Session, reason: str) -> None:
        session.api.disconnected(reason)
        if self._sessions.get(session.site) is session:
            del self._sessions[session.site]
        session.caller.left()

    async def _alive(
        self, session: _Session, caller: Caller, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Pings both ways until the site closes the stream, is silent beyond its lease, or the connection ends; or the
        site's certificate counts no more.
        """

        pings = caller.pings
        pings.begin()
        session.num_streams += 1
        if session.num_streams > 1:
            log.info("%s goes on over another connection", session.site)

        ended, every = asyncio.Event(), seconds_between_pings(self._config.line_timeout)

        async def ping() -> None:
            while not ended.is_set():
                await context.write(pings.made())
                with suppress(TimeoutError):
                    await within(every, ended.wait())

        pinging, reason = asyncio.ensure_future(ping()), "its connection has ended"
        try:
            reason = await self._until_it_is_silent(session, caller, context)
            # gRPC loses the end of a stream that falls together with a message.
            ended.set()
            await asyncio.wait({pinging}, timeout=1.0)
        finally:
            pinging.cancel()
            session.num_streams -= 1
            if not session.num_streams:
                self._end(session, reason)

    async def _until_it_is_silent(
        self, session: _Session, caller: Caller, context: grpc.aio.ServicerContext[Any, Any]
    ) -> str:
        """Hears a site's pings; why no more of them count."""
        pings, lease = caller.pings, self._config.lease
        try:
            while (said := await within(pings.patience(lease), context.read())) is not grpc.aio.EOF:
                pings.take(said)
                self._check_counts(caller)
                session.stays = True
                session.api.heard()
        except TimeoutError:
            return f"no word from it for {lease:g} s"
        except (WireError, EvictedError) as error:
            return str(error)
        return "its connection has ended"

    async def _ask(
        self, session: _Session, endpoint: str, tags: Tags, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Any:
        limits = self._opened.result().limits
        async with session.in_order(place_of(context), self._config.line_timeout):
            most = limits.up(endpoint)
            messages = await self._received(context, tags, most, lambda: session.carried(most))
            answer = server_api.ask(session.api, endpoint, messages)
        return await _settled(answer)

    async def _received(
        self,
        context: grpc.aio.ServicerContext[Any, Any],
        tags: Tags,
        most: int,
        carried: Callable[[], None] = lambda: None,
    ) -> list[Any]:
        """The messages of a call; ``carried`` is called for every chunk but the last.

        Raises:
            WireError: they are too long, too slow, or none.
        """

        async def read() -> Any:
            chunk = await context.read()
            if chunk is not grpc.aio.EOF and len(chunk) == chunks.CHUNK_BYTES:
                carried()
            return chunk

        try:
            async with asyncio.timeout(self._config.lease + most / SLOWEST_LINE):
                frame = await chunks.gather(tags.received(read), most)
        except TimeoutError:
            raise WireError("a message that did not come to its end in time") from None
        if frame is None:
            raise WireError("a call without a message")
        messages = frames.unpack(frame)
        if type(messages) is not list:
            raise WireError("a call whose messages are no list")
        return messages


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Every method, whatever its name, is a stream of bytes each way and has one handler."""

    def __init__(self, handle: Callable[[str, grpc.aio.ServicerContext[Any, Any]], Any]) -> None:
        self._handle = handle

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = details.method
        if endpoint_of(method) not in {*server_api.ENDPOINTS, ALIVE, HANDSHAKE, TERMS}:
            return None

        async def handle(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await self._handle(method, context)

        return grpc.stream_stream_rpc_method_handler(handle)


async def _settled(answer: Future[Any]) -> Any:
    """Waits for an answer of the run's without holding the loop."""
    loop = asyncio.get_running_loop()
    here: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any) -> None:
        if not here.done():  # the call may have ended in the meantime
            here.set_result(value)

    def settled(done: Future[Any]) -> None:
        loop.call_soon_threadsafe(settle, done.value())

    answer.add_done_callback(settled)
    return await here
