"""Faults, planted in a member's process: at one moment of one turn it kills, freezes or cuts off itself, once.

The product has no hooks for this: functions of the runtime are wrapped here, before the command line runs. Members
and harness write what happens into one file of events, opened before a sandbox could close it.
"""

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import rpc

import runtime.checkpoint
from runtime.client import Client
from runtime.coordinator import Coordinator
from runtime.course import Course
from runtime.exchange.line import RpcLine
from runtime.journal import Journal
from runtime.ledger import Ledger
from runtime.server import Server
from runtime.step import ClientStep
from runtime.wire import Refusal

NUM_ROUNDS = 3
ROUND = 1  # in which faults strike: one round is left to go on in, and one to be back in
BATCH = 1  # the second of a turn, so that the server has something to undo

# A client's moments that are calls to the server: the call is under way when the fault strikes.
_CALLS = {
    "forward": ("forward", "train"),  # of the exchanges autograd and fused
    "server step": ("step", "backward"),
    "hand-off upload": ("commit",),
    "hand-off download": ("fetch",),
    "evaluation": ("predict",),
    "joining": ("hello",),
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        who: whom it strikes: "server" or a client's name.
        moment: when.
        kind: "kill", "stop", or "ask": the harness does it, while the member waits.
        turn_of: the client whose turn it strikes in.
        after: the name of the fault that must have struck before; empty for none.
    """

    who: str
    moment: str
    kind: str
    turn_of: str
    after: str = ""

    @property
    def name(self) -> str:
        """What events call it."""
        return f"{self.who}/{self.moment}/{self.kind}"


class Events:
    """A file of JSON lines that several processes append to and read."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)

    def say(self, what: str, **more: Any) -> None:
        """Appends an event, with its time and this process's id."""
        line = json.dumps({"what": what, "time": time.time(), "pid": os.getpid()} | more) + "\n"
        os.write(self._descriptor, line.encode())

    def all(self) -> list[dict[str, Any]]:
        """Everything that has happened."""
        content = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        return [json.loads(line) for line in content.splitlines()]

    def strike(self, fault: Fault) -> None:
        """Does it, unless it has been done."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        struck = [event["fault"] for event in self.all() if event["what"] == "struck"]
        due = fault.name not in struck and (not fault.after or fault.after in struck)
        if due:
            self.say("struck", fault=fault.name)
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        if not due:
            return
        if fault.kind == "ask":
            while not any(e["what"] == "done" and e["fault"] == fault.name for e in self.all()):
                time.sleep(0.005)
        else:
            os.kill(os.getpid(), signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)


def plant(who: str, faults: list[Fault], path: Path) -> None:
    """Prepares this process, the member ``who``, for its faults."""
    events = Events(path)
    events.say("started", who=who)
    if who == "server":
        _note_batches(events)
        _gather_before_the_last_round(events)
    for fault in faults:
        if fault.who == who:
            strike = lambda fault=fault: events.strike(fault)  # noqa: E731
            (_at_the_server if who == "server" else _at_a_client)(fault, strike)
    if who != "server":
        _note_arrival(events, who)


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    real = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: around(real, *args, **kwargs))


def _note_batches(events: Events) -> None:
    """Training goes on as soon as the server has computed somebody's next batch."""

    def computed(real: Callable[..., Any], server: Server, batch: Any, *rest: Any) -> Any:
        answer = real(server, batch, *rest)
        events.say("batch", client=batch.client)
        return answer

    _wrap(Server, "forward", computed)
    _wrap(Server, "predict", computed)


def _note_arrival(events: Events, who: str) -> None:
    """A client is in when it has the server's answer: the server may count one in that has died meanwhile."""

    def call(
        real: Callable[..., Any], to: str, endpoint: Callable[..., Any], args: tuple, **more: Any
    ) -> Any:
        answer = real(to, endpoint, args=args, **more)
        if endpoint.__name__ == "hello" and not isinstance(answer, Refusal):
            events.say("in", who=who)
        return answer

    _wrap(rpc, "rpc_sync", call)


class _NotYet(Exception):
    """Not everybody is there."""


def _gather_before_the_last_round(events: Events) -> None:
    """Holds the last round back until all are present: a tiny run would be over before anybody is back."""
    courses: list[Course] = []

    def all_are_in(clients: list[str]) -> bool:
        newest = {event["who"]: event["what"] for event in events.all() if event["what"] in ("started", "in")}
        return len(clients) == courses[-1].members._expected and all(newest[c] == "in" for c in clients)

    def start_round(real: Callable[..., Any], ledger: Ledger, clients: list[str]) -> None:
        if ledger.round == NUM_ROUNDS - 1 and not all_are_in(clients):
            raise _NotYet
        real(ledger, clients)

    def go_on(real: Callable[..., Any], course: Course) -> None:
        courses[:] = [course]
        with suppress(_NotYet):  # the coordinator asks again, twice a second
            real(course)

    _wrap(Ledger, "start_round", start_round)
    _wrap(Course, "go_on", go_on)


def _at_the_server(fault: Fault, strike: Callable[[], None]) -> None:
    last: list[Any] = []  # the batches that the server has seen of that client

    def is_its(batch: Any) -> bool:
        if batch.client == fault.turn_of:
            last.append(batch)
        return bool(batch.client == fault.turn_of and batch.round == ROUND)

    def forward(real: Callable[..., Any], server: Server, batch: Any, *rest: Any) -> Any:
        due = is_its(batch) and batch.batch == BATCH
        if due and fault.moment == "backward":
            batch.smashed.register_hook(lambda grad: strike())
        answer = real(server, batch, *rest)
        if due and fault.moment == "forward":
            strike()
        return answer

    def step(real: Callable[..., Any], server: Server, *rest: Any) -> None:
        real(server, *rest)
        if last and last[-1].batch == BATCH:
            strike()

    def predict(real: Callable[..., Any], server: Server, batch: Any) -> Any:
        answer = real(server, batch)
        if is_its(batch) and batch.phase == "test":  # the validation images went before
            strike()
        return answer

    def call(real: Callable[..., Any], coordinator: Coordinator, seat: Any, *rest: Any) -> Any:
        if seat.name == fault.turn_of:
            strike()
        return real(coordinator, seat, *rest)

    def ready(real: Callable[..., Any], coordinator: Coordinator, seat: Any) -> Any:
        answer = real(coordinator, seat)
        if seat.name == fault.turn_of and seat.name in coordinator.trained_clients():
            strike()
        return answer

    def admit(real: Callable[..., Any], coordinator: Coordinator, seat: Any, hello: Any, name: str) -> Any:
        if hello.client == fault.turn_of:
            strike()
        return real(coordinator, seat, hello, name)

    def begin(real: Callable[..., Any], journal: Journal, resume: bool) -> Any:
        answer = real(journal, resume)
        if resume:
            strike()
        return answer

    match fault.moment:
        case "forward" | "backward":
            _wrap(Server, "forward", forward)
        case "server step":
            _wrap(Server, "forward", forward)
            _wrap(Server, "step", step)
        case "evaluation":
            _wrap(Server, "predict", predict)
        case "hand-off upload":
            _wrap(Coordinator, "commit", call)
        case "hand-off download":
            _wrap(Coordinator, "newest_handoff", call)
        case "waiting":
            _wrap(Coordinator, "ready", ready)
        case "joining":
            _wrap(Coordinator, "admit", admit)
        case "resuming":
            _wrap(Journal, "begin", begin)
        case "checkpoint write":
            # Turn 0 and the turn of the client before it have theirs.
            _while_writing(lambda path: path.name == ".turn_000002.pt.draft", strike)
        case _:
            raise ValueError(fault.moment)


def _at_a_client(fault: Fault, strike: Callable[[], None]) -> None:
    has_trained = [False]  # in this process

    real_async = rpc.rpc_async

    def is_due(endpoint: Callable[..., Any], args: tuple) -> bool:
        message = args[1] if len(args) > 1 else None  # the ticket goes first
        due = endpoint.__name__ in _CALLS.get(fault.moment, ())
        if due and fault.moment in ("forward", "server step"):
            due = message.batch == BATCH
        if due and fault.moment == "evaluation":
            due = message.phase == "test"
        has_trained[0] = has_trained[0] or endpoint.__name__ == "commit"
        return due

    def call(real: Callable[..., Any], to: str, endpoint: Callable[..., Any], args: tuple) -> Any:
        if not is_due(endpoint, args):
            return real(to, endpoint, args=args)
        answer = real_async(to, endpoint, args=args)
        strike()
        return answer.wait()

    def begin(real: Callable[..., Any], to: str, endpoint: Callable[..., Any], **more: Any) -> Any:
        answer = real(to, endpoint, **more)
        if is_due(endpoint, more.get("args", ())):
            strike()
        return answer

    def next_turn(real: Callable[..., Any], line: RpcLine) -> Any:
        answer = real(line)
        if has_trained[0]:
            strike()
        return answer

    def forward(real: Callable[..., Any], client: Client, turn: Any, batch: Any, top: Any) -> Any:
        def hooked(sent: Any, labels: Any) -> Any:
            if batch.number == BATCH and sent.requires_grad:
                sent.register_hook(lambda grad: strike())  # the gradient is home, the bottom is still to come
            return top(sent, labels)

        return real(client, turn, batch, hooked)

    def back(real: Callable[..., Any], step: ClientStep, at_cut: Any) -> None:
        if step.batch.number == BATCH:
            strike()
        real(step, at_cut)

    match fault.moment:
        case "backward":
            _wrap(Client, "forward", forward)
            _wrap(ClientStep, "back", back)
        case "waiting":
            _wrap(rpc, "rpc_sync", call)
            _wrap(RpcLine, "next_turn", next_turn)
        case "checkpoint write":
            # All that a client writes during a run: its note of the newest hand-off that it has seen.
            _while_writing(lambda path: path.parent.name == "suture" and path.suffix == ".draft", strike)
        case moment if moment in _CALLS:
            _wrap(rpc, "rpc_sync", call)
            _wrap(rpc, "rpc_async", begin)
        case _:
            raise ValueError(fault.moment)


def _while_writing(is_it: Callable[[Path], bool], strike: Callable[[], None]) -> None:
    """Strikes when the draft has been written and is to be synced: the file itself is not there yet."""

    class Os:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fsync(self, descriptor: int) -> None:
            if is_it(Path(f"/proc/self/fd/{descriptor}").readlink()):
                strike()
            os.fsync(descriptor)

    runtime.checkpoint.os = Os()
