"""A server and its sites in one process, over loopback and real TLS."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from house import LONG, Events, House, credentials, free_port
from tiny import BATCH, build_coordinator, build_server

from suture.launch.kits.authority import Authority
from suture.runtime.consortium.board import ServerBoard
from suture.runtime.grpc.credentials import Role
from suture.runtime.grpc.loop import LoopThread
from suture.runtime.grpc.server import GrpcServer, GrpcServerConfig
from suture.runtime.server.membership import OpenMembership


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("consortium"))
    made.issue("hub", Role.SERVER)
    return made


@pytest.fixture(scope="session")
def thread() -> Iterator[LoopThread]:
    """One loop for the sites of all tests, as a site has one for all its connections."""
    made = LoopThread()
    yield made
    made.close()


@pytest.fixture
def house(tmp_path: Path, authority: Authority, thread: LoopThread) -> Iterator[Callable[..., House]]:
    """Builds servers that are gone after the test; each listens, and plays its run unless told to wait."""
    torch.set_num_threads(1)
    houses: list[House] = []

    def build(
        clients: int = 1,
        *,
        rounds: int = 1,
        home: bool = False,
        plays: bool = True,
        run_dir: Path | None = None,
        batch_size: int = BATCH,
        board: ServerBoard | None = None,
        **changes: object,
    ) -> House:
        events, port = Events(), free_port()
        coordinator = build_coordinator(
            run_dir or tmp_path / f"run{len(houses)}",
            build_server(home, batch_size=batch_size),
            clients,
            rounds=rounds,
            recorder=events,
            door=OpenMembership(least=clients, grace=LONG),
            board=board,
        )
        config = GrpcServerConfig(
            host="127.0.0.1",
            port=port,
            credentials=credentials(authority, "hub", Role.SERVER),
            sites=clients,
            lease=LONG,
            line_timeout=3.0,
        )
        server = GrpcServer(replace(config, **changes))
        # An event of gRPC's that comes late for a loop that is closed would fail in the next test's loop.
        server._loop.close = lambda: None
        server.start()
        houses.append(House(authority, thread, coordinator, events, server, port))
        if plays:
            houses[-1].play()
        return houses[-1]

    yield build
    for one in houses:
        one.close()
