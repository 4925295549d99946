"""What a client can ask of the server: module-level functions, the only ones the server answers.

A client's first two calls are ``greet`` and ``hello``, by which it and the server prove themselves to each other (see
``entry``). The ticket that comes back names its seat at the server, and every other endpoint asks for it first.

Errors that a person can meet travel as `Refusal` answers; see there.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from concurrent.futures import Future as Task
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch.distributed.autograd as dist_autograd
from torch import Tensor
from torch.distributed import rpc
from torch.futures import Future

from runtime import lockdown
from runtime.apart import Tasks
from runtime.coordinator import Coordinator
from runtime.entry import Door
from runtime.errors import StoppedError, SutureError, WireError
from runtime.leases import Knock
from runtime.members import Seat
from runtime.scheduler import Turn
from runtime.wire import (
    Answer,
    Challenge,
    Farewell,
    Hello,
    LossReply,
    OutputGradient,
    Packed,
    Refusal,
    Release,
    Report,
    SealedHandoff,
    Share,
    StepDone,
    StepReply,
    Upload,
    Welcome,
)

log = logging.getLogger(__name__)

# RPC calls functions, so the run they act on must be found from the process: one run a server process.
_OPEN: list[tuple[Coordinator, Door | None, Tasks]] = []

_SAID: set[tuple[str, str]] = set()

T = TypeVar("T")
SeatRef = str | Seat
"""A ticket over the wire, which no Seat can cross; a Seat where the server lives in the same process."""


def open_run(coordinator: Coordinator, door: Door | None = None) -> None:
    """From now on this process serves ``coordinator``'s run; without a door nobody comes in over the wire."""
    close_run()
    _OPEN[:] = [(coordinator, door, Tasks())]
    _SAID.clear()


def serve_run(knock: Knock) -> None:
    """Plays the open run with clients that call over the wire, until it is over: what they ask is computed here.

    Args:
        knock: see `Coordinator.wait`.

    Raises:
        SutureError: the run stopped early; the message says why.
    """
    tasks = _tasks()
    try:
        _run().wait(knock, tasks.work)
    finally:
        tasks.close()


def close_run() -> None:
    """From now on this process serves nothing."""
    for _, _, tasks in _OPEN:
        tasks.close()
    _OPEN.clear()


def table() -> dict[str, Callable[..., Any]]:
    """The endpoints by the names that they are called by: all that a peer can run here."""
    return {lockdown.full_name(function): function for function in _ENDPOINTS}


def who(data: bytes) -> str:
    """The member whose ticket these bytes hold, for the log."""
    door = _OPEN[0][1] if _OPEN else None
    return (door.who(data) if door is not None else "") or "a stranger"


def _run() -> Coordinator:
    return _open()[0]


def _tasks() -> Tasks:
    return _open()[2]


def _open() -> tuple[Coordinator, Door | None, Tasks]:
    if not _OPEN:
        raise SutureError("this server has no run; it has ended or not begun")
    return _OPEN[0]


def _door() -> Door:
    door = _OPEN[0][1] if _OPEN else None
    if door is None:
        raise SutureError("this server has no run to join; it has ended or not begun")
    return door


def _seat(reference: SeatRef) -> Seat:
    return _door().seat(reference) if isinstance(reference, str) else reference


def _endpoint(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def answer(*args: Any) -> Any:
        try:
            return function(*args)
        except SutureError as error:
            return _refusal(function.__name__, args[0], error)

    return answer


def _refusal(endpoint: str, caller: Any, error: SutureError) -> Refusal:
    """``error`` as an answer. What a peer must not send is logged, once a peer and endpoint."""
    try:
        peer = _seat(caller).name if isinstance(caller, (str, Seat)) else ""
    except SutureError:
        peer = ""
    if isinstance(error, WireError) and (peer, endpoint) not in _SAID and len(_SAID) < 1000:
        _SAID.add((peer, endpoint))
        log.warning(
            "refused %s of %s: %.300s (further ones are not logged)", endpoint, peer or "a stranger", error
        )
    return Refusal.of(error)


def _done(method: Callable[..., T], caller: SeatRef, *messages: Any) -> T:
    """What computes on a client's data, or copies and writes the server's state, does so in one thread: see `Tasks`."""
    seat = _seat(caller)
    if isinstance(caller, Seat):  # there is no other thread
        return method(seat, *messages)
    return _tasks().call(partial(method, seat), *messages).result()


def _eventually(
    method: Callable[[Coordinator, Seat, Any, Future[Any]], None], caller: SeatRef, message: Any
) -> Future[Any]:
    """`_done` without holding a thread of RPC's: the future's value is the answer, a `Refusal` included."""
    answer: Future[Any] = Future()

    def refuse(error: SutureError) -> None:
        if not answer.done():
            answer.set_result(_refusal(method.__name__, caller, error))

    def settle(task: Task[None]) -> None:
        error = task.exception()
        if isinstance(error, SutureError):
            refuse(error)
        elif error is not None:  # a defect; its traceback is nobody else's
            log.error("%s failed", method.__name__, exc_info=error)
            refuse(
                StoppedError(f"{method.__name__} failed with {type(error).__name__}; see the server's log")
            )

    try:
        run, seat = _run(), _seat(caller)
        if isinstance(caller, Seat):
            method(run, seat, message, answer)
        else:
            run.await_order(seat, message)
            task = _tasks().call(lambda taken: method(run, seat, taken, answer), message)
            task.add_done_callback(settle)
    except SutureError as error:
        refuse(error)
    return answer


@_endpoint
def greet(name: str, rpc_name: str, nonce: bytes) -> Challenge:
    """A client that wants to come in under ``name``, which joined RPC as ``rpc_name``; gives nothing away."""
    return _door().challenge(name, rpc_name, nonce)


@_endpoint
def hello(answer: Answer, message: Hello, rpc_name: str) -> Welcome:
    """Joins the run; refused without the token of the name, and where an option differs from the server's."""
    door, seat = _door(), Seat()
    door.check(answer, message.client, rpc_name)
    welcome = _run().admit(seat, message, rpc_name)
    return replace(welcome, ticket=door.ticket(seat))


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def next_turn(seat: SeatRef) -> Future[Turn | Refusal]:
    """Waits for this client's next turn without holding a thread."""
    try:
        return _done(_run().ready, seat)
    except SutureError as error:
        refused: Future[Turn | Refusal] = Future()
        refused.set_result(_refusal("next_turn", seat, error))
        return refused


@_endpoint
def fetch(seat: SeatRef) -> SealedHandoff | None:
    """The newest sealed hand-off, None before the first."""
    return _run().newest_handoff(_seat(seat))


@_endpoint
def share(seat: SeatRef, index: int) -> Share | None:
    """What one of the clients that trained at once sealed, for whoever is to average; None after the last."""
    return _run().share(_seat(seat), index)


@_endpoint
def forward(seat: SeatRef, upload: Upload) -> LossReply | Tensor:
    """One training batch through the top, inside the caller's autograd context."""
    return _run().forward(_seat(seat), upload)


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def train(seat: SeatRef, upload: Upload) -> Future[StepReply | Tensor | Packed | Refusal]:
    """One explicit training step, whole where labels are shared; else its forward half. May wait for other clients."""
    return _eventually(Coordinator.train, seat, upload)


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def backward(seat: SeatRef, gradient: OutputGradient) -> Future[Tensor | Packed | Refusal]:
    """The other half of an explicit step where labels stay at home; the server has stepped when it answers."""
    return _eventually(Coordinator.backward, seat, gradient)


@_endpoint
def predict(seat: SeatRef, upload: Upload) -> Tensor | Packed:
    """One evaluation batch through the top."""
    output: Tensor | Packed = _done(_run().predict, seat, upload)
    return output


@_endpoint
def step(seat: SeatRef, done: StepDone, context: int) -> None:
    """Backward has come through: step the top with the gradients of the caller's autograd context."""
    held = _seat(seat)
    try:
        gradients = dist_autograd.get_gradients(context)
    except RuntimeError:
        raise WireError(f"{held.name}: step: no forward came through context {context}; refused") from None
    _run().stepped(held, done, gradients)


@_endpoint
def commit(seat: SeatRef, handoff: SealedHandoff) -> None:
    """Ends a training turn; when this returns it is on the disk, unless others still train in it."""
    _done(_run().commit, seat, handoff)


@_endpoint
def report(seat: SeatRef, message: Report) -> None:
    """Ends an evaluation turn."""
    _done(_run().report, seat, message)


@_endpoint
def abort(seat: SeatRef, why: Refusal) -> None:
    """Gives the running turn up: it is rolled back whole and the run stops with that error."""
    _done(_run().abort, seat, why)


@_endpoint
def finish(seat: SeatRef, farewell: Farewell) -> Release:
    """Says goodbye after the last turn; the answer is the trained top."""
    return _done(_run().finish, seat, farewell)


@_endpoint
def leave(seat: SeatRef) -> None:
    """Gives the seat back; after this call the client may close its connection."""
    _done(_run().leave, seat)


_ENDPOINTS: tuple[Callable[..., Any], ...] = (
    greet,
    hello,
    next_turn,
    fetch,
    share,
    forward,
    step,
    train,
    backward,
    predict,
    commit,
    report,
    abort,
    finish,
    leave,
)
