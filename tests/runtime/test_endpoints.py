"""The server's endpoints: in which thread each does its work."""

import threading

import pytest
from torch.futures import Future

from runtime import endpoints
from runtime.members import Seat
from runtime.scheduler import Turn, TurnKind


class Noted:
    """In place of a coordinator: notes in which thread it was called, and keeps nothing else."""

    def __init__(self):
        self.threads = {}

    def __getattr__(self, name):
        def called(*args):
            self.threads[name] = threading.current_thread().name
            answer = Future()
            answer.set_result(Turn(TurnKind.WAIT))
            return answer if name == "ready" else name

        return called


class OpenDoor:
    def __init__(self):
        self.only = Seat()

    def seat(self, ticket):
        return self.only


@pytest.fixture
def noted():
    coordinator = Noted()
    endpoints.open_run(coordinator, OpenDoor())
    yield coordinator
    endpoints.close_run()


WRITES = {
    "next_turn": "ready",
    "commit": "commit",
    "report": "report",
    "abort": "abort",
    "finish": "finish",
    "leave": "leave",
    "predict": "predict",
}


@pytest.mark.parametrize(("endpoint", "method"), WRITES.items())
def test_what_copies_or_writes_the_state_does_so_in_one_thread(noted, endpoint, method):
    """Oracle: the thread's name. Each of RPC's threads would keep the memory of a checkpoint, once it had made one."""
    message = () if endpoint in ("next_turn", "leave") else ("a message",)
    answer = getattr(endpoints, endpoint)("a ticket", *message)
    assert noted.threads[method].startswith("compute")
    if endpoint == "next_turn":
        assert answer.wait().kind is TurnKind.WAIT
    # Where server and client share a process there is one thread anyway.
    noted.threads.clear()
    getattr(endpoints, endpoint)(Seat(), *message)
    assert noted.threads[method] == threading.current_thread().name
