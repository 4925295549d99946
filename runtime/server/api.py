"""What a client can ask of the server: the methods of one object, the same over every carrier.

Each client has a `ServerApi` of its own, which knows who asks. Over torch RPC the client holds a remote reference to it
(``runtime.rpc.functions``), over gRPC a session (``runtime.grpc.server``), in one process the object itself
(``runtime.exchange.local``). The carriers bring messages and take answers; what is asked, when it is allowed and
where it is computed is decided here and below.

An error that a person can meet is an answer, a `Refusal`: raised over a wire it would lose its class.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future as Task
from contextlib import contextmanager
from typing import Any, get_args, get_origin, get_type_hints

from torch import Tensor
from torch.futures import Future

from suture.runtime.errors import StoppedError, SutureError, WireError
from suture.runtime.host.executor import Executor, SameThread
from suture.runtime.scheduler import Turn
from suture.runtime.server.client_turn import ClientTurn
from suture.runtime.server.coordinator import Coordinator
from suture.runtime.server.membership import Member
from suture.runtime.wire.codec import fits
from suture.runtime.wire.messages import (
    Board,
    Farewell,
    Heads,
    Hello,
    LossReply,
    OutputGradient,
    Packed,
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

log = logging.getLogger(__name__)

GAP_SECONDS = 10.0  # in which a call that came is taken up and computed, or those behind it are refused


class ServerApi:
    """One client's endpoints. Any thread may call them; the server computes in that of ``executor``.

    Args:
        run: what is played.
        executor: where the server computes.
    """

    def __init__(self, run: Coordinator, executor: Executor | None = None) -> None:
        self._run = run
        self._executor = SameThread() if executor is None else executor
        self.member = Member()
        self._logged: set[str] = set()

    @property
    def client(self) -> str:
        """The member's name, empty before it has joined."""
        return self.member.name

    # Endpoints -----------------------------------------------------------------------------------

    def hello(self, message: Hello) -> Future[Welcome | Refusal]:
        """Joins the run; refused where an option differs from the server's."""
        answer: Future[Welcome | Refusal] = Future()

        def admit() -> None:
            answer.set_result(self._run.admit(self.member, message))

        return self._submitted("admit", admit, answer)

    def next_turn(self) -> Future[Turn | Refusal]:
        """Waits for this client's next turn."""
        return self._eventually(self._run.ready)

    def fetch(self) -> Future[SealedHandoff | Refusal | None]:
        """The newest sealed hand-off, None before the first."""
        return self._computed(self._run.transaction.newest_handoff)

    def share(self, index: int) -> Future[Share | Refusal | None]:
        """What one of the clients that trained at once sealed, for whoever is to average; None after the last."""
        return self._computed(self._run.transaction.share, index)

    def train(self, upload: Upload) -> Future[StepReply | Tensor | Packed | Refusal]:
        """One explicit training step, whole where labels are shared; else its forward half."""

        def train(member: Member, answer: Future[Any]) -> None:
            _turn(member).train(upload, answer)

        return self._eventually(train)

    def backward(self, gradient: OutputGradient) -> Future[Tensor | Packed | Refusal]:
        """The other half of an explicit step where labels stay at home; the server has stepped when it answers."""

        def backward(member: Member, answer: Future[Any]) -> None:
            _turn(member).backward(gradient, answer)

        return self._eventually(backward)

    def predict(self, upload: Upload) -> Future[Tensor | Packed | Refusal]:
        """One evaluation batch through the top."""

        def predict(member: Member) -> Tensor | Packed:
            return _turn(member).predict(upload)

        return self._computed(predict)

    def commit(self, handoff: SealedHandoff) -> Future[Refusal | None]:
        """Ends a training turn; when this answers it is on the disk, unless others still train in it."""
        return self._computed(self._run.commit, handoff)

    def report(self, message: Report) -> Future[Refusal | None]:
        """Ends an evaluation turn."""
        return self._computed(self._run.report, message)

    def abort(self, why: Refusal) -> Future[Refusal | None]:
        """Gives the running turn up: it is rolled back whole."""
        return self._computed(self._run.abort, why)

    def finish(self, farewell: Farewell) -> Future[Release | Refusal]:
        """Says goodbye after the last turn; the answer is the trained top."""
        return self._computed(self._run.finish, farewell)

    def leave(self) -> Future[Refusal | None]:
        """Ends the membership; after this call the client may close its connection."""
        return self._computed(self._run.leave)

    # Between sites that sign -----------------------------------------------------------------------

    def board(self) -> Future[Board | Refusal]:
        """What the sites have stated to each other."""
        return self._computed(self._run.consortium.board)

    def post(self, statement: Statement) -> Future[Refusal | None]:
        """States something to the other sites."""
        return self._computed(self._run.consortium.post, statement)

    def begin_epoch(self, epoch: Statement, handoff: SealedHandoff) -> Future[Refusal | None]:
        """Begins an epoch of the hand-off key; when this answers it is on the disk."""
        return self._computed(self._run.consortium.begin_epoch, epoch, handoff)

    def exhibit(self) -> Future[Share | Refusal]:
        """The hand-off, or share, that is accused, for whoever is to give a verdict."""
        return self._computed(self._run.consortium.exhibit)

    def heads(self) -> Future[Heads | Refusal]:
        """Waits until every site that is there has said goodbye; what each signed then."""
        return self._eventually(self._run.consortium.heads)

    # For distributed autograd, whose graph grows in the calling thread ----------------------------

    def forward(self, upload: Upload) -> LossReply | Tensor | Refusal:
        """One training batch through the top, inside the caller's autograd context."""
        answer: LossReply | Tensor | Refusal = self._here(
            "forward", lambda: _turn(self.member).forward(upload)
        )
        return answer

    def step(self, done: StepDone, gradients: Mapping[Tensor, Tensor]) -> Refusal | None:
        """Backward has come through: steps the top with ``gradients``."""
        answer: Refusal | None = self._here("step", lambda: _turn(self.member).stepped(done, gradients))
        return answer

    # For the carrier -----------------------------------------------------------------------------

    def await_order(self, message: Upload | OutputGradient) -> None:
        """Waits until what this client sent before ``message`` has been computed: RPC's threads may take two calls
        up in another order than that in which they came. Whoever sends too much ahead, or leaves a gap, does not wait
        for long and is refused by the turn's own checks.
        """
        run, member = self._run, self.member
        with run.computed:
            turn = member.turn
            if turn is None or turn.num_early >= run.config.in_flight - 1:
                return
            turn.num_early += 1
            run.computed.wait_for(lambda: member.turn is not turn or not turn.is_early(message), GAP_SECONDS)
            turn.num_early -= 1

    def heard(self) -> None:
        """The carrier had a sign of life from this client."""
        self._executor.submit(lambda: self._run.heard(self.member))

    def transfers(self, seconds: float) -> None:
        """The carrier is in the middle of a message from or to this client, which may take so many seconds."""
        self._executor.submit(lambda: self._run.transfers(self.member, seconds))

    def disconnected(self, reason: str) -> None:
        """The carrier noticed that this client's connection has ended."""
        self._executor.submit(lambda: self._run.disconnected(self.member, reason))

    # ---------------------------------------------------------------------------------------------

    def _computed(self, method: Callable[..., Any], *messages: Any) -> Future[Any]:
        """What ``method`` returns, computed by the executor under the coordinator's lock."""
        answer: Future[Any] = Future()

        def compute() -> None:
            with self._request():
                value = method(self.member, *messages)
            answer.set_result(value)

        return self._submitted(method.__name__, compute, answer)

    def _eventually(self, method: Callable[..., None], *messages: Any) -> Future[Any]:
        """What ``method``, which takes the future of its answer last, answers sooner or later."""
        answer: Future[Any] = Future()

        def compute() -> None:
            with self._request():
                method(self.member, *messages, answer)

        return self._submitted(method.__name__, compute, answer)

    @contextmanager
    def _request(self) -> Iterator[None]:
        """Holds the run's lock for what this client asks.

        Raises:
            SutureError: it is no member (any more); see `Member`.
        """
        run, member = self._run, self.member
        with run.lock:
            if member.refused is not None:
                raise member.refused
            began = time.monotonic()
            try:
                yield
            finally:
                run.computed.notify_all()
                member.last_seen = time.monotonic()
                run.busy_seconds += member.last_seen - began

    def _submitted(self, name: str, compute: Callable[[], None], answer: Future[Any]) -> Future[Any]:
        """``answer``, which ``compute`` gives when the executor has run it, or which says why it failed."""

        def settle(task: Task[None]) -> None:
            error = task.exception()
            if error is None:
                return
            if not isinstance(error, SutureError):  # a defect; its traceback is nobody else's
                log.error("%s failed", name, exc_info=error)
                error = StoppedError(f"{name} failed with {type(error).__name__}; see the server's log")
            if not answer.done():
                answer.set_result(self.refusal(name, error))

        self._executor.submit(compute).add_done_callback(settle)
        return answer

    def _here(self, name: str, compute: Callable[[], Any]) -> Any:
        try:
            with self._request():
                return compute()
        except SutureError as error:
            return self.refusal(name, error)

    def refusal(self, endpoint: str, error: SutureError) -> Refusal:
        """``error`` as an answer. What a peer must not send is logged, once an endpoint."""
        if isinstance(error, WireError) and endpoint not in self._logged:
            self._logged.add(endpoint)
            peer = self.client or "a newcomer"
            log.warning("refused %s of %s: %.300s (further ones are not logged)", endpoint, peer, error)
        return Refusal.of(error)


def _turn(member: Member) -> ClientTurn:
    if member.turn is None:
        raise member.without_turn()
    return member.turn


Endpoint = Callable[..., Any]
"""An unbound method of `ServerApi`: names what is asked, whichever carrier asks it."""

ENDPOINTS: dict[str, Endpoint] = {
    method.__name__: method
    for method in (
        ServerApi.hello,
        ServerApi.next_turn,
        ServerApi.fetch,
        ServerApi.share,
        ServerApi.train,
        ServerApi.backward,
        ServerApi.predict,
        ServerApi.commit,
        ServerApi.report,
        ServerApi.abort,
        ServerApi.finish,
        ServerApi.leave,
        ServerApi.board,
        ServerApi.post,
        ServerApi.begin_epoch,
        ServerApi.exhibit,
        ServerApi.heads,
    )
}
"""What every carrier offers, by name; `ServerApi.forward` and `ServerApi.step` need distributed autograd."""


def ask(api: ServerApi, endpoint: str, messages: Sequence[Any]) -> Future[Any]:
    """Asks for one of `ENDPOINTS` by name, with messages as they came off a wire. What does not fit is a `Refusal`."""
    method = ENDPOINTS.get(endpoint)
    try:
        if method is None:
            raise WireError(f"{endpoint!r:.40} is no endpoint; refused")
        expected = _message_types(method)
        if len(messages) != len(expected) or not all(map(fits, messages, expected)):
            raise WireError(f"{endpoint}: it takes other messages; refused")
    except WireError as error:
        refused: Future[Any] = Future()
        refused.set_result(api.refusal(endpoint if method is not None else "a call", error))
        return refused
    answer: Future[Any] = method(api, *messages)
    return answer


@functools.cache
def _message_types(endpoint: Endpoint) -> tuple[Any, ...]:
    hints = get_type_hints(endpoint)
    return tuple(kind for name, kind in hints.items() if name != "return")


def check_answer(endpoint: Endpoint, answer: Any) -> Any:
    """What came back over a wire, at the client.

    Raises:
        WireError: the endpoint answers with something else.
        SutureError: the server refused; of the class that it named.
    """
    if not fits(answer, answer_type(endpoint)):
        raise WireError(f"server: {endpoint.__name__}: answered with a {type(answer).__name__}; refused")
    if isinstance(answer, Refusal):
        answer.raise_it()
    return answer


@functools.cache
def answer_type(endpoint: Endpoint) -> Any:
    """What an endpoint answers with, a `Refusal` included, as it declares it."""
    declared = get_type_hints(endpoint)["return"]
    return get_args(declared)[0] if get_origin(declared) is Future else declared
