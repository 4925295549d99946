"""A server and its sites in one process, over loopback and real TLS."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

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
from suture.runtime.records.observers import NoRecorder
from suture.runtime.server.coordinator import Coordinator

LONG = 60.0  # seconds that no test waits
LIMITS = Limits(batch=2**20, handoff=2**20, release=2**20)


class Events(NoRecorder):
    """Notes what a run tells its recorder; a test waits for one of them, or does something at a step."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, object]]] = []
        self.at_step: Callable[[int, str], None] = lambda step, client: None
        self._changed = threading.Condition()

    def train_step(self, step: int, round: int, turn: int, client: str, loss: float, num_images: int) -> None:
        self.at_step(step, client)

    def event(self, name: str, **fields: object) -> None:
        with self._changed:
            self.told.append((name, fields))
            self._changed.notify_all()

    def wait(self, name: str, number: int = 1) -> dict[str, object]:
        """What was told with the ``number``th event of that name, once it is there."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.named(name)) >= number, LONG), self.told
            return self.named(name)[number - 1]

    def named(self, name: str) -> list[dict[str, object]]:
        return [fields for told, fields in self.told if told == name]


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
