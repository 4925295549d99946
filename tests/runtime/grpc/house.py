"""A server and its sites in one process, over loopback and real TLS."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fakes import LONG, Events
from tiny import BATCH, build_client, build_coordinator, build_server

from suture.launch.kits.authority import Authority
from suture.launch.kits.kit import Kit
from suture.launch.site.join import JoinConfig
from suture.runtime.consortium.credentials import Credentials, Role
from suture.runtime.errors import PeerLostError, StoppedError, SutureError
from suture.runtime.exchange import LocalExchange
from suture.runtime.exchange.grpc import GrpcExchange
from suture.runtime.grpc.chunks import Limits
from suture.runtime.grpc.client import GrpcClient, GrpcClientConfig
from suture.runtime.grpc.loop import LoopThread
from suture.runtime.grpc.server import GrpcServer
from suture.runtime.one_process import run_local
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.scheduler import Scheduler
from suture.runtime.server.coordinator import Coordinator
from suture.runtime.wire.messages import Hello

HELLO = Hello("client0", {}, 6, 3)
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


def joined(line: GrpcClient, name: str = "client0") -> GrpcExchange:
    """A site that has joined and stays."""
    exchange = GrpcExchange(line)
    exchange.join(replace(HELLO, client=name))
    return exchange


def noting(made: House, monkeypatch) -> list[int]:
    """The numbers of the shares that were asked for, in the order in which the run was asked."""
    asked, share = [], made.coordinator.transaction.share

    def noted(member, index):
        asked.append(index)
        return share(member, index)

    noted.__name__ = "share"
    monkeypatch.setattr(made.coordinator.transaction, "share", noted)
    return asked


def told(made: House, method: str, **changes: object) -> Exception:
    """What a site is told that goes on trying: gRPC may lose a status to the request that is still being sent."""
    for _ in range(20):
        try:
            made.line(**changes).begin(method, [HELLO])()
        except PeerLostError:
            continue
        except Exception as error:
            return error
    raise AssertionError("it was never told")


def local(
    run_dir: Path,
    clients: int,
    rounds: int,
    home: bool,
    scheduler: Scheduler | None = None,
    batch_size: int = BATCH,
    **config: Any,
) -> str:
    """The digest of the same run in one process."""
    server, config = build_server(home, batch_size=batch_size), config | {"batch_size": batch_size}
    coordinator = build_coordinator(run_dir, server, clients, rounds=rounds, scheduler=scheduler)
    members = [
        Participant(build_client(i, home, **config), LocalExchange(coordinator), NoClientObserver())
        for i in range(clients)
    ]
    run_local(members, {})
    return coordinator.weights_sha256()


def joins(name: str, server: str, patience: float) -> JoinConfig:
    """How a site looks for its server; the rest of its kit is not read here."""
    kit = Kit(folder=Path("kit"), role=Role.CLIENT, name=name, server=server)
    return JoinConfig(kit=kit, server=server, patience=patience)
