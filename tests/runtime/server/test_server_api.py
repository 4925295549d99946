"""What a client can ask of the server, asked by hand: which method answers, what is refused, and what is logged.

Oracle: the protocol of session.py, written out; a coordinator that notes what it was given and in which thread.
"""

import functools
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.futures import Future
from wire_messages import GOOD

from suture.runtime.errors import ERRORS, StoppedError, SutureError, WireError
from suture.runtime.host.executor import MainThreadExecutor
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server import api as server_api
from suture.runtime.server.api import ENDPOINTS, ServerApi, answer_type, ask
from suture.runtime.server.membership import Member
from suture.runtime.wire import codec
from suture.runtime.wire.codec import fits
from suture.runtime.wire.messages import (
    Board,
    Farewell,
    Heads,
    Hello,
    LossReply,
    OutputGradient,
    Refusal,
    Release,
    Report,
    SealedHandoff,
    Share,
    Statement,
    StepDone,
    StepReply,
    Upload,
    Welcome,
)

H = torch.zeros(1, 2, 3)
LONG = 60.0  # seconds that no test waits
HANDOFF = SealedHandoff(1, b"", bytes(12), torch.zeros(64, dtype=torch.uint8))
UPLOAD, GRADIENT = Upload(1, 0, "train", H, torch.tensor([1])), OutputGradient(1, 0, 0.5, H)
STATEMENT = Statement("head", "client0", "{}", "PEM", "00")
HELLO, TURN = Hello("client0", {}, 8, 2), Turn(TurnKind.WAIT)

# By endpoint: the coordinator's method, the messages that it takes, what it answers, and whether it may answer later.
TABLE: dict[str, tuple[str, list[Any], Any, bool]] = {
    "hello": ("admit", [HELLO], Welcome("run", "/runs/1", 60.0), False),
    "next_turn": ("ready", [], TURN, True),
    "fetch": ("newest_handoff", [], HANDOFF, False),
    "share": ("share", [0], Share("client0", HANDOFF), False),
    "train": ("train", [UPLOAD], StepReply(torch.tensor(0.5), 0.5, H), True),
    "backward": ("backward", [GRADIENT], H, True),
    "predict": ("predict", [UPLOAD], H, False),
    "commit": ("commit", [HANDOFF], None, False),
    "report": ("report", [Report(1, {"test": {"loss": 0.5}})], None, False),
    "abort": ("abort", [Refusal("DivergedError", "nan")], None, False),
    "finish": ("finish", [Farewell({"bottom": "a" * 64}, 1)], Release({}, 1), False),
    "leave": ("leave", [], None, False),
    "board": ("board", [], Board([STATEMENT], [], [], [], ""), False),
    "post": ("post", [STATEMENT], None, False),
    "begin_epoch": ("begin_epoch", [STATEMENT, HANDOFF], None, False),
    "exhibit": ("exhibit", [], Share("client0", HANDOFF), False),
    "heads": ("heads", [], Heads([STATEMENT]), True),
}


class Run:
    """In the place of a coordinator and its parts: notes each call and in which thread it was made, and answers as ``TABLE`` says."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[Any]]] = []
        self.members: list[Member] = []
        self.threads: set[str] = set()
        self.raises: BaseException | None = None
        self.later = False
        self.owed: list[Future[Any]] = []
        self.transaction = self.consortium = self
        self.lock, self.busy_seconds = threading.RLock(), 0.0
        self.computed = threading.Condition(self.lock)

    def api(self, executor: MainThreadExecutor | None = None) -> ServerApi:
        """A client's, who is a member and has the turn."""
        api = ServerApi(self, executor)
        api.member.refused, api.member.turn = None, HeldTurn(self, api.member)
        return api

    def __getattr__(self, name: str) -> Any:
        if name not in {method for method, *_ in TABLE.values()} | {
            "forward",
            "stepped",
            "heard",
            "transfers",
            "disconnected",
        }:
            raise AttributeError(name)

        def called(member: Member, *messages: Any) -> Any:
            self.threads.add(threading.current_thread().name)
            self.members.append(member)
            answer, eventually = next(((a, e) for m, _, a, e in TABLE.values() if m == name), (None, False))
            if eventually:
                *messages, owed = messages
            self.calls.append((name, list(messages)))
            if self.raises is not None:
                raise self.raises
            if not eventually:
                return answer
            self.owed.append(owed)
            if not self.later:
                owed.set_result(answer)
            return None

        called.__name__ = name
        return called


class HeldTurn:
    """In the place of a member's turn: notes each call as the run does."""

    def __init__(self, run: Run, member: Member) -> None:
        self._run, self._member = run, member

    def __getattr__(self, name: str) -> Any:
        return functools.partial(getattr(self._run, name), self._member)


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.mark.parametrize("endpoint", TABLE)
def test_an_endpoint_asks_the_run_for_this_client(endpoint, run):
    """Oracle: the table above: the method, the messages, this client's member, and the answer as it was given."""
    api = run.api()
    method, messages, answer, _ = TABLE[endpoint]
    assert ask(api, endpoint, messages).value() is answer
    assert run.calls == [(method, messages)] and run.members == [api.member]
    assert fits(answer, answer_type(ENDPOINTS[endpoint]))
    assert fits(Refusal("WireError", "no"), answer_type(ENDPOINTS[endpoint]))


def test_the_table_has_every_endpoint_and_each_client_a_seat_of_its_own(run):
    """Oracle: what the carriers offer; two objects of one run."""
    assert set(TABLE) == set(ENDPOINTS)
    one, other = run.api(), run.api()
    for api in (one, other, one):
        api.leave()
    assert run.members == [one.member, other.member, one.member] and one.member is not other.member


@pytest.mark.parametrize("endpoint", [name for name, (*_, eventually) in TABLE.items() if eventually])
def test_an_answer_may_come_later(endpoint, run):
    """Oracle: nothing until the run gives it; then what it gave."""
    run.later = True
    answer = ask(run.api(), endpoint, TABLE[endpoint][1])
    assert not answer.done()
    run.owed[0].set_result(TURN)
    assert answer.value() is TURN


@pytest.mark.parametrize(
    "endpoint",
    ["", "forward", "step", "heard", "disconnected", "client", "_run", "__init__", "refusal", "x" * 10_000, "Hello"],
)  # fmt: skip
def test_what_is_no_endpoint_is_refused(endpoint, run):
    """Oracle: the refusal, of which no more than 40 letters are the peer's; methods of the object are no endpoints."""
    refusal = ask(run.api(), endpoint, []).value()
    assert refusal.error == "WireError" and refusal.message.endswith(" is no endpoint; refused")
    assert len(refusal.message) < 100 and not run.calls


def _wrong(endpoint: str) -> list[list[Any]]:
    right = TABLE[endpoint][1]
    others = [
        [*right, None],
        [*right, *right, HELLO],
        [None for _ in right] or [HELLO],
        [TURN for _ in right] or [0],
    ]
    return others if not right else [*others, [], [right], [True for _ in right]]


@pytest.mark.parametrize(
    ("endpoint", "messages"), [(endpoint, wrong) for endpoint in TABLE for wrong in _wrong(endpoint)]
)
def test_other_messages_than_an_endpoint_takes_are_refused(endpoint, messages, run):
    """Oracle: one too many, one too few, of another type; the run is not asked."""
    refusal = ask(run.api(), endpoint, messages).value()
    assert refusal == Refusal("WireError", f"{endpoint}: it takes other messages; refused")
    assert not run.calls


MESSAGES = st.sampled_from(GOOD) | st.none() | st.integers() | st.text(max_size=5) | st.just(H)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([*ENDPOINTS, "nothing"]) | st.text(max_size=5), st.lists(MESSAGES, max_size=3))
def test_whatever_is_asked_is_answered_with_a_refusal_or_reaches_the_run_as_declared(endpoint, messages):
    """Fuzz. Oracle: no error but an answer; what the run is given is of the declared types."""
    run = Run()
    answer = ask(run.api(), endpoint, messages).value()
    if run.calls:
        ((method, given_to_run),) = run.calls
        assert method == TABLE[endpoint][0] and given_to_run == messages
        assert all(
            fits(m, t) for m, t in zip(messages, server_api._message_types(ENDPOINTS[endpoint]), strict=True)
        )
    else:
        assert answer.error == "WireError" and codec.encode(answer)


# Errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", TABLE)
def test_an_error_that_a_person_can_meet_is_an_answer(endpoint, run):
    """Oracle: the class and the words, for every class of ours; it is raised again on the other side."""
    for kind in ERRORS.values():
        run.raises = kind("client0: no")
        refusal = ask(run.api(), endpoint, TABLE[endpoint][1]).value()
        assert refusal == Refusal(kind.__name__, "client0: no")
        with pytest.raises(kind, match="^client0: no$"):
            refusal.raise_it()


def test_what_the_graph_of_autograd_crosses_is_answered_in_the_same_way(run):
    """Oracle: in the caller's thread: what the run returned, or the refusal."""
    api, done = run.api(MainThreadExecutor()), StepDone(1, 0, 0.5)
    assert api.forward(UPLOAD) is None and api.step(done, {}) is None
    assert run.calls == [("forward", [UPLOAD]), ("stepped", [done, {}])]
    assert run.threads == {threading.current_thread().name}
    run.raises = WireError("client0: no")
    assert api.forward(UPLOAD) == api.step(done, {}) == Refusal("WireError", "client0: no")
    assert fits(LossReply(H, 0.5), answer_type(ServerApi.forward)) and fits(None, answer_type(ServerApi.step))


def test_an_error_after_the_answer_does_not_answer_twice(run):
    """Oracle: the answer that was given first; the run's other clients are told by the run."""

    def answers_and_fails(member: Member, answer: Future[Any]) -> None:
        answer.set_result(TURN)
        raise WireError("too late")

    run.ready = answers_and_fails
    assert run.api().next_turn().value() is TURN


def served(executor: MainThreadExecutor, endpoint: str, api: ServerApi) -> Any:
    """What a carrier's thread is answered while this thread computes."""
    ended = threading.Event()

    def peer() -> Any:
        try:
            return ask(api, endpoint, TABLE[endpoint][1]).wait()
        finally:
            ended.set()
            executor.submit(lambda: None)

    with ThreadPoolExecutor(1, thread_name_prefix="carrier") as carrier:
        answer = carrier.submit(peer)
        while not ended.is_set():
            executor.work(ended, 0.05)
        return answer.result(LONG)


@pytest.mark.parametrize("endpoint", TABLE)
def test_the_server_computes_in_the_thread_that_works(endpoint, run):
    """Oracle: the thread's name. Each of a carrier's threads would keep the memory of a checkpoint, once it had made one."""
    executor = MainThreadExecutor()
    assert served(executor, endpoint, run.api(executor)) is TABLE[endpoint][2]
    assert run.threads == {threading.current_thread().name}


@pytest.mark.parametrize("endpoint", TABLE)
def test_a_call_is_refused_once_nobody_computes(endpoint, run):
    """Oracle: a refusal, where a call that waited for ever would keep its carrier from ending."""
    executor = MainThreadExecutor()
    api = run.api(executor)
    early = ask(api, endpoint, TABLE[endpoint][1])
    executor.close()
    for answer in (early, ask(api, endpoint, TABLE[endpoint][1])):
        assert answer.value() == Refusal("PeerLostError", "the server is ending; see its log")
    assert not run.calls


@pytest.mark.parametrize("endpoint", TABLE)
def test_a_defect_is_answered_without_its_text_and_logged_with_it(endpoint, run, caplog):
    """Oracle: the class's name goes over the wire; the file's stays in the log, with the traceback."""
    executor = MainThreadExecutor()
    run.raises = PermissionError(13, "Permission denied", "/runs/1/checkpoints/secret")
    refusal = served(executor, endpoint, run.api(executor))
    assert refusal.error == StoppedError.__name__
    assert refusal.message == f"{TABLE[endpoint][0]} failed with PermissionError; see the server's log"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and record.exc_info[1] is run.raises
    assert "/runs/1/checkpoints/secret" in caplog.text


@pytest.mark.parametrize("endpoint", TABLE)
def test_in_one_process_a_defect_is_raised_where_it_is(endpoint, run, caplog):
    """Oracle: the error itself, not an answer: there is no wire between, and the traceback is whole."""
    run.raises = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError, match="a defect"):
        ask(run.api(), endpoint, TABLE[endpoint][1])
    assert not caplog.records


def test_a_defect_after_the_answer_is_logged(run, caplog):
    """Oracle: it may be another client's batch that failed; the answer that was given stays."""
    executor = MainThreadExecutor()

    def answers_and_fails(member: Member, answer: Future[Any]) -> None:
        answer.set_result(TURN)
        raise ZeroDivisionError("a defect")

    run.ready = answers_and_fails
    assert served(executor, "next_turn", run.api(executor)) is TURN
    assert "a defect" in caplog.text


# The log --------------------------------------------------------------------------------------------


def test_what_a_peer_must_not_send_is_logged_once_an_endpoint(run, caplog):
    """Oracle: a hundred calls of each of two endpoints and of as many that are none: three lines, and a second client's."""
    api, other = run.api(), run.api()
    api.member.name = "client0"
    for number in range(100):
        for endpoint in ("train", "commit", f"nothing{number}"):
            assert ask(api, endpoint, [None]).value().error == "WireError"
    ask(other, "train", [None])
    assert [(record.levelno, record.name) for record in caplog.records] == [
        (logging.WARNING, "suture.runtime.server.api")
    ] * 4
    assert caplog.messages == [
        "refused train of client0: train: it takes other messages; refused (further ones are not logged)",
        "refused commit of client0: commit: it takes other messages; refused (further ones are not logged)",
        "refused a call of client0: 'nothing0' is no endpoint; refused (further ones are not logged)",
        "refused train of a newcomer: train: it takes other messages; refused (further ones are not logged)",
    ]


def test_a_long_text_of_a_peers_does_not_fill_the_log(run, caplog):
    """Oracle: a name of ten thousand letters and an error of as many leave short lines."""
    run.raises = WireError("x" * 10_000)
    api = run.api()
    ask(api, "leave", [])
    ask(api, "y" * 10_000, [])
    assert len(caplog.messages) == 2 and max(map(len, caplog.messages)) < 500


def test_what_is_no_fault_of_the_peers_is_answered_and_not_logged(run, caplog):
    """Oracle: every class of ours but a WireError: the run itself says more where it must."""
    for kind in {*ERRORS.values(), SutureError} - {WireError}:
        run.raises = kind("no")
        ask(run.api(), "next_turn", [])
    assert not caplog.records


# For the carrier --------------------------------------------------------------------------------------


def test_what_the_carrier_notices_is_told_in_the_thread_that_works(run):
    """Oracle: the calls, once this thread works; a carrier's thread never waits for it."""
    executor = MainThreadExecutor()
    api = run.api(executor)
    with ThreadPoolExecutor(1) as carrier:
        carrier.submit(api.heard).result(LONG)
        carrier.submit(api.transfers, 8.0).result(LONG)
        carrier.submit(api.disconnected, "its connection has ended").result(LONG)
    assert not run.calls
    executor.work(threading.Event(), 0.01)
    assert run.calls == [("heard", []), ("transfers", [8.0]), ("disconnected", ["its connection has ended"])]
    assert run.threads == {threading.current_thread().name} and set(run.members) == {api.member}
    executor.close()
    api.heard()
    api.disconnected("again")
    assert len(run.calls) == 3


def test_a_name_is_known_from_joining_on(run):
    """Oracle: the member's, which the run writes on it."""
    api = run.api()
    assert api.client == ""
    api.member.name = "client0"
    assert api.client == "client0"
