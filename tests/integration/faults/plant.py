"""Faults, planted in a member's process: at one moment of one turn it kills, freezes or cuts off itself, once.

The product has no hooks for this: functions of the runtime are wrapped here, before the command line runs. Members
and harness write what happens into one file of events, opened before a sandbox could close it.
"""

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import suture.launch.roles.server
import suture.runtime.state.checkpoint
from suture.runtime.client.step import ClientStep
from suture.runtime.exchange.grpc import GrpcExchange
from suture.runtime.grpc import chunks
from suture.runtime.grpc.client import GrpcClient
from suture.runtime.server.consortium_turns import ConsortiumTurns
from suture.runtime.server.coordinator import Coordinator
from suture.runtime.server.dispatcher import Dispatcher
from suture.runtime.server.model import ServerModel
from suture.runtime.server.run_state import RunState
from suture.runtime.server.transaction import Transaction
from suture.runtime.server.turn_log import TurnLog

NUM_ROUNDS = 3
ROUND = 1  # in which faults strike: one round is left to go on in, and one to be back in
BATCH = 1  # the second of a turn, so that the server has something to undo

# A client's moments that are calls to the server: the call is under way when the fault strikes.
_CALLS = {
    "waiting": "next_turn",
    "forward": "train",
    "server step": "backward",
    "hand-off upload": "commit",
    "hand-off download": "fetch",
    "evaluation": "predict",
    "joining": "hello",
    "farewell": "finish",
    "asking for a key": "post",
    "key made": "begin_epoch",
    "comparing heads": "heads",
}
_SMALL_CHUNK = 4096
"""Bytes: in these tiny runs, too, half a hand-off is several chunks."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        who: whom it strikes: "server", a client's name, or "anybody", the first client to whom it happens.
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
        if fault.who == who or (fault.who == "anybody" and who != "server"):
            strike = lambda fault=fault: events.strike(fault)  # noqa: E731
            (_at_the_server if who == "server" else _at_a_client)(fault, strike)
    if who != "server":
        _note_arrival(events, who)


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    real = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: around(real, *args, **kwargs))


def _note_batches(events: Events) -> None:
    """Training goes on as soon as the server has computed somebody's next batch."""

    def computed(real: Callable[..., Any], server: ServerModel, batch: Any, *rest: Any) -> Any:
        answer = real(server, batch, *rest)
        events.say("batch", client=batch.client)
        return answer

    _wrap(ServerModel, "forward", computed)
    _wrap(ServerModel, "predict", computed)


def _note_arrival(events: Events, who: str) -> None:
    """A client is in when it has the server's answer: the server may count one in that has died meanwhile."""

    def join(real: Callable[..., Any], exchange: GrpcExchange, hello: Any) -> Any:
        welcome = real(exchange, hello)
        events.say("in", who=who)
        return welcome

    _wrap(GrpcExchange, "join", join)


class _NotYet(Exception):
    """Not everybody is there."""


def _gather_before_the_last_round(events: Events) -> None:
    """Holds the last round back until all are present: a tiny run would be over before anybody is back."""
    dispatchers: list[Dispatcher] = []

    def all_are_in(clients: list[str]) -> bool:
        newest = {event["who"]: event["what"] for event in events.all() if event["what"] in ("started", "in")}
        members = dispatchers[-1].membership
        expected = members._expected - len(members._shut_out)
        return len(clients) == expected and all(newest[c] == "in" for c in clients)

    def start_round(real: Callable[..., Any], turn_log: TurnLog, clients: list[str], *rest: Any) -> None:
        if turn_log.round == NUM_ROUNDS - 1 and not all_are_in(clients):
            raise _NotYet
        real(turn_log, clients, *rest)

    def go_on(real: Callable[..., Any], dispatcher: Dispatcher) -> None:
        dispatchers[:] = [dispatcher]
        with suppress(_NotYet):  # the coordinator asks again, twice a second
            real(dispatcher)

    _wrap(TurnLog, "start_round", start_round)
    _wrap(Dispatcher, "go_on", go_on)


def _at_the_server(fault: Fault, strike: Callable[[], None]) -> None:
    last: list[Any] = []  # the batches that the server has seen of that client

    def is_its(batch: Any) -> bool:
        if batch.client == fault.turn_of:
            last.append(batch)
        return bool(batch.client == fault.turn_of and batch.round == ROUND)

    def forward(real: Callable[..., Any], server: ServerModel, batch: Any, *rest: Any) -> Any:
        due = is_its(batch) and batch.batch == BATCH
        if due and fault.moment == "backward":
            batch.smashed.register_hook(lambda grad: strike())
        answer = real(server, batch, *rest)
        if due and fault.moment == "forward":
            strike()
        return answer

    def step(real: Callable[..., Any], server: ServerModel, *rest: Any) -> None:
        real(server, *rest)
        if last and last[-1].batch == BATCH:
            strike()

    def predict(real: Callable[..., Any], server: ServerModel, batch: Any) -> Any:
        answer = real(server, batch)
        if is_its(batch) and batch.phase == "test":  # the validation images went before
            strike()
        return answer

    def call(real: Callable[..., Any], asked: Any, member: Any, *rest: Any) -> Any:
        if member.name == fault.turn_of:
            strike()
        return real(asked, member, *rest)

    def counted(real: Callable[..., Any], coordinator: Coordinator, member: Any, message: Any) -> Any:
        answer = real(coordinator, member, message)
        if member.name == fault.turn_of:
            strike()
        return answer

    def any_call(real: Callable[..., Any], *rest: Any) -> Any:
        strike()  # whoever was asked to make the key
        return real(*rest)

    def any_counted(real: Callable[..., Any], *rest: Any) -> Any:
        answer = real(*rest)
        strike()
        return answer

    def conclude(real: Callable[..., Any], *rest: Any) -> None:
        strike()
        real(*rest)

    def ready(real: Callable[..., Any], coordinator: Coordinator, member: Any, answer: Any) -> None:
        real(coordinator, member, answer)
        if member.name == fault.turn_of and member.name in coordinator.trained_clients():
            strike()

    def admit(real: Callable[..., Any], coordinator: Coordinator, member: Any, hello: Any) -> Any:
        if hello.client == fault.turn_of:
            strike()
        return real(coordinator, member, hello)

    def fetched(real: Callable[..., Any], transaction: Transaction, member: Any) -> Any:
        answer = real(transaction, member)
        if member.name == fault.turn_of:
            _in_the_middle_of_the_next_handoff(strike)
        return answer

    def begin(real: Callable[..., Any], run_state: RunState, resume: bool) -> Any:
        answer = real(run_state, resume)
        if resume:
            strike()
        return answer

    match fault.moment:
        case "forward" | "backward":
            _wrap(ServerModel, "forward", forward)
        case "server step":
            _wrap(ServerModel, "forward", forward)
            _wrap(ServerModel, "step", step)
        case "evaluation":
            _wrap(ServerModel, "predict", predict)
        case "hand-off upload":
            _wrap(Coordinator, "commit", call)
        case "hand-off counted":
            _wrap(Coordinator, "commit", counted)
        case "key made":
            _wrap(ConsortiumTurns, "begin_epoch", any_call)
        case "key taken":
            _wrap(ConsortiumTurns, "begin_epoch", any_counted)
        case "asking for a key":
            _wrap(ConsortiumTurns, "post", call)
        case "comparing heads":
            _wrap(ConsortiumTurns, "heads", call)
        case "hand-off download":
            _wrap(Transaction, "newest_handoff", call)
        case "half a hand-off":
            _wrap(Transaction, "newest_handoff", fetched)
        case "waiting":
            _wrap(Coordinator, "ready", ready)
        case "joining":
            _wrap(Coordinator, "admit", admit)
        case "farewell":
            _wrap(Coordinator, "finish", counted)
        case "goodbye":
            _wrap(Coordinator, "leave", call)
        case "summary":
            _wrap(suture.launch.roles.server, "conclude", conclude)
        case "resuming":
            _wrap(RunState, "begin", begin)
        case "checkpoint write":
            # Turn 0 and the turn of the client before it have theirs.
            _while_writing(lambda path: path.name == ".turn_000002.pt.draft", strike)
        case _:
            raise ValueError(fault.moment)


def _at_a_client(fault: Fault, strike: Callable[[], None]) -> None:
    has_trained = False  # in this process

    def is_due(endpoint: str, messages: Sequence[Any]) -> bool:
        if endpoint != _CALLS.get(fault.moment):
            return False
        if fault.moment == "waiting":
            return has_trained
        if fault.moment in ("forward", "server step"):
            return bool(messages[0].batch == BATCH)
        return fault.moment != "evaluation" or messages[0].phase == "test"

    def begin(
        real: Callable[..., Any], line: GrpcClient, endpoint: str, messages: Any, *more: Any, **named: Any
    ) -> Any:
        nonlocal has_trained
        if endpoint == "commit" and fault.moment == "half a hand-off":
            _in_the_middle_of_the_next_handoff(strike)
        answer = real(line, endpoint, messages, *more, **named)
        if is_due(endpoint, messages):
            strike()
        has_trained = has_trained or endpoint == "commit"

        def wait() -> Any:
            answered = answer()
            if (endpoint, fault.moment) in (("commit", "hand-off counted"), ("begin_epoch", "key taken")):
                strike()
            return answered

        return wait

    def stay(real: Callable[..., Any], line: GrpcClient) -> None:
        strike()  # the server has let it in, and it has not yet said that it is there
        real(line)

    def back(real: Callable[..., Any], step: ClientStep, at_cut: Any) -> None:
        if step.batch.number == BATCH:
            strike()  # the gradient is home, the bottom is still to come
        real(step, at_cut)

    steps: list[Any] = []

    def note(real: Callable[..., Any], step: ClientStep, at_cut: Any) -> None:
        steps.append(step)
        real(step, at_cut)

    match fault.moment:
        case "backward":
            _wrap(ClientStep, "back", back)
        case "checkpoint write":
            # What a site keeps of a run, once it has trained: keys, passes, the newest hand-off that it has seen.
            _wrap(ClientStep, "back", note)
            _while_writing(lambda path: path.parent.name == "state" and bool(steps), strike)
        case "joined":
            _wrap(GrpcClient, "stay", stay)
        case moment if moment in (*_CALLS, "hand-off counted", "half a hand-off", "key taken"):
            _wrap(GrpcClient, "begin", begin)
        case _:
            raise ValueError(fault.moment)


def _in_the_middle_of_the_next_handoff(strike: Callable[[], None]) -> None:
    """Strikes, in the thread that writes, when half of the next long message has been given to gRPC."""
    real = chunks.chunks

    def halved(pieces: Sequence[memoryview]) -> Iterator[bytes]:
        every = list(real(pieces))
        if len(every) < 4:
            yield from every
            return
        chunks.chunks, chunks.CHUNK_BYTES = real, usual
        yield from every[: len(every) // 2]
        strike()
        yield from every[len(every) // 2 :]

    usual, chunks.CHUNK_BYTES = chunks.CHUNK_BYTES, _SMALL_CHUNK
    chunks.chunks = halved


def _while_writing(is_it: Callable[[Path], bool], strike: Callable[[], None]) -> None:
    """Strikes when the draft has been written and is to be synced: the file itself is not there yet."""

    class Os:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fsync(self, descriptor: int) -> None:
            if is_it(Path(f"/proc/self/fd/{descriptor}").readlink()):
                strike()
            os.fsync(descriptor)

    suture.runtime.state.checkpoint.os = Os()
