"""A site that looks for its server: what a person is told, when it gives up, and what it does not look through.

Oracle: nobody listens on the port; the sentences, written out.
"""

import re
import socket

import pytest
from tiny import build_client

from suture.launch.kits.provision import Project, provision
from suture.launch.site import join, search
from suture.launch.site.join import JoinConfig
from suture.runtime.errors import ConfigError, PeerLostError, UnreachableError
from suture.runtime.grpc.chunks import Limits
from suture.runtime.grpc.client import GrpcClientConfig
from suture.runtime.participant.participant import NoClientObserver


@pytest.fixture
def nobody() -> int:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_wrong_address_is_said_at_once_and_given_up_in_the_end(nobody, tmp_path, caplog):
    """Oracle: one line at the first try, with gRPC's reason and the seconds left, and the error that names the remedies."""
    address = f"127.0.0.1:{nobody}"
    kit = provision(Project(address=address, sites=("client0",)), tmp_path / "kits")["client0"]
    line = GrpcClientConfig(
        host="127.0.0.1",
        port=nobody,
        credentials=kit.credentials(),
        limits=Limits(batch=1, handoff=1, release=1),
        lease=5.0,
        line_timeout=3.0,
    )
    config = JoinConfig(kit=kit, server=address, patience=0.6)
    with (
        caplog.at_level("WARNING"),
        pytest.raises(
            UnreachableError,
            match=f"no server at {address} for 0.6 s .*is the address right, is suture serve running there, "
            r".*--patience SECONDS waits longer",
        ),
    ):
        join.take_part(build_client(0), NoClientObserver(), line, {}, config)
    (said,) = caplog.messages
    assert re.match(
        f"no server at {address} yet .*Connection refused.*; looking for it for 1 s more", said
    ), said


class Clock:
    """Time as the search reads it: it goes on only when the search sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 1000.0, []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(search, "time", made)
    return made


def searching(patience: float) -> search.Search:
    return search.Search("hub:29500", patience)


def test_it_waits_longer_from_try_to_try_and_never_beyond_its_patience(clock, caplog):
    """Oracle: doubled from a quarter of a second to four; the last wait is what is left; one line for all tries."""
    looking = searching(20.0)
    with pytest.raises(UnreachableError, match=r"no server at hub:29500 for 20 s \(refused\)"):
        while True:
            looking.goes_on(PeerLostError("refused"))
    assert clock.slept == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 0.25] and sum(clock.slept) == 20.0
    assert caplog.messages == ["no server at hub:29500 yet (refused); looking for it for 20 s more"]


def test_one_that_was_in_looks_anew_each_time(clock, caplog):
    """Oracle: the whole patience and a line of its own for each loss; a run of hours does not use it up."""
    looking = searching(10.0)
    clock.now += 9.0
    looking.goes_on(PeerLostError("refused"))
    for _ in range(2):
        looking.found()
        clock.now += 3600.0
        looking.goes_on(PeerLostError("the connection has ended"))
        looking.goes_on(PeerLostError("refused"))
    assert clock.slept == [0.25, 0.25, 0.5, 0.25, 0.5]
    lost = "lost the server at hub:29500 (the connection has ended); looking for it for 10 s"
    assert caplog.messages == [
        "no server at hub:29500 yet (refused); looking for it for 1 s more",
        lost,
        lost,
    ]
    clock.now += 10.0
    with pytest.raises(UnreachableError):
        looking.goes_on(PeerLostError("refused"))


def test_patience_must_be_above_zero(tmp_path):
    """Oracle: the message."""
    kit = provision(Project(address="hub:1", sites=("client0",)), tmp_path / "kits")["client0"]
    for patience in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="patience must be above 0 seconds, got"):
            JoinConfig(kit=kit, server=kit.server, patience=patience)
