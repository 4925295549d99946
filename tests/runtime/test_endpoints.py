"""The server's endpoints: in which thread each does its work, and what becomes of it at the end."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.futures import Future

from runtime import endpoints
from runtime.errors import StoppedError
from runtime.members import Seat
from runtime.scheduler import Turn, TurnKind


class Noted:
    """In place of a coordinator: notes in which thread it was called, and keeps nothing else."""

    def __init__(self):
        self.threads = {}
        self.ended = threading.Event()
        self.raises = None

    def wait(self, knock, rest):
        while not rest(self.ended, 0.05):
            pass

    def __getattr__(self, name):
        def called(*args):
            self.threads[name] = threading.current_thread().name
            if self.raises is not None:
                raise self.raises
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


def ask(endpoint, caller="a ticket"):
    message = () if endpoint in ("next_turn", "leave") else ("a message",)
    return getattr(endpoints, endpoint)(caller, *message)


def serve_one(noted, endpoint):
    """What ``endpoint`` answers to another thread, as RPC's are, while this one serves the run."""

    def peer():
        try:
            return ask(endpoint)
        finally:
            noted.ended.set()

    with ThreadPoolExecutor(1) as rpc:
        answer = rpc.submit(peer)
        endpoints.serve_run(None)
        return answer.result(10)


@pytest.mark.parametrize(("endpoint", "method"), WRITES.items())
def test_what_copies_or_writes_the_state_does_so_in_the_thread_that_serves(noted, endpoint, method):
    """Oracle: the thread's name. Each of RPC's threads would keep the memory of a checkpoint, once it had made one."""
    answer = serve_one(noted, endpoint)
    assert noted.threads[method] == threading.current_thread().name
    if endpoint == "next_turn":
        assert answer.wait().kind is TurnKind.WAIT
    # Where server and client share a process there is one thread anyway.
    noted.threads.clear()
    ask(endpoint, Seat())
    assert noted.threads[method] == threading.current_thread().name


@pytest.mark.parametrize("endpoint", [*WRITES, "train", "backward"])
def test_a_call_is_refused_once_nobody_serves_the_run(noted, endpoint):
    """Oracle: a refusal, where a call that waited for ever would keep its thread, and RPC from ending."""
    noted.await_order = lambda *args: None
    with ThreadPoolExecutor(1) as rpc:
        early = rpc.submit(ask, endpoint)
        while not endpoints._tasks()._waiting.qsize():
            time.sleep(0.001)
        noted.ended.set()
        endpoints.serve_run(None)
        for answer in (early.result(10), ask(endpoint)):
            refusal = answer.wait() if isinstance(answer, Future) else answer
            assert refusal.error == StoppedError.__name__ and "ending" in refusal.message
    assert not noted.threads


def test_an_interrupt_in_a_task_stops_the_server_and_refuses_the_call(noted):
    """Oracle: the thread that serves sees its interrupt, the one that asked an error of ours."""
    noted.raises = KeyboardInterrupt()
    with ThreadPoolExecutor(1) as rpc:
        answer = rpc.submit(ask, "commit")
        with pytest.raises(KeyboardInterrupt):
            endpoints.serve_run(None)
        assert answer.result(10).error == StoppedError.__name__
