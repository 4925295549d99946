"""A server and its sites in one process, over loopback and real TLS."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from fakes import LONG, Events
from tiny import build_client

from suture.launch.kits.authority import Authority
from suture.runtime.consortium.credentials import Credentials, Role
from suture.runtime.errors import StoppedError, SutureError
from suture.runtime.exchange.grpc import GrpcExchange
from suture.runtime.grpc.chunks import Limits
from suture.runtime.grpc.client import GrpcClient, GrpcClientConfig
from suture.runtime.grpc.loop import LoopThread
from suture.runtime.grpc.server import GrpcServer
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.server.coordinator import Coordinator

LIMITS = Limits(batch=2**20, handoff=2**20, release=2**20)


@dataclass
class House:
    """A server that plays a tiny run in a thread, and what its sites need to come to it."""

    authority: Authority
    thread: LoopThread
    coordinator: Coordinator
    events: Events
    server: GrpcServer
    port: int
    ended: threading.Event = field(default_factory=threading.Event)
    error: SutureError | None = None
    lines: list[GrpcClient] = field(default_factory=list)

    def config(self, name: str = "client0", **changes: object) -> GrpcClientConfig:
        config = GrpcClientConfig(
            host="127.0.0.1",
            port=self.port,
            credentials=credentials(self.authority, name),
            limits=LIMITS,
            lease=LONG,
            line_timeout=3.0,
        )
        return replace(config, **changes)

    def line(self, name: str = "client0", **changes: object) -> GrpcClient:
        """A connection of that site's, which is closed after the test."""
        self.lines.append(GrpcClient(self.config(name, **changes), self.thread))
        return self.lines[-1]

    def member(self, index: int, home: bool = False) -> Participant[GrpcExchange]:
        return Participant(
            build_client(index, home), GrpcExchange(self.line(f"client{index}")), NoClientObserver()
        )

    def play(self, limits: Limits = LIMITS) -> None:
        """Plays the run in a thread of its own."""

        def play() -> None:
            try:
                self.server.play(self.coordinator, limits)
            except SutureError as error:
                self.error = error
            finally:
                self.ended.set()

        threading.Thread(target=play, name="server").start()

    def close(self) -> None:
        """Stops what is still running, the sites first."""
        for line in self.lines:
            line.close()
        self.coordinator.stop(StoppedError("the test is over"))
        self.coordinator.ended.set()
        self.server.close(0)


def credentials(authority: Authority, name: str, role: Role = Role.CLIENT) -> Credentials:
    if not (authority.folder / f"{name}.pem").exists():
        authority.issue(name, role)
    cert, key = authority.folder / f"{name}.pem", authority.folder / f"{name}.key"
    return Credentials.read(cert, key, authority.ca, role)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(work: Callable[[], None]) -> Iterator[None]:
    """Does ``work`` in a thread; what it raised is raised at the end."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(LONG)
    assert not thread.is_alive()
    if errors:
        raise errors[0]
