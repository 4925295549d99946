"""What a client can ask of the server: module-level functions, the only ones the server answers.

A client's first call is ``take_seat``, through ``rpc.remote``: the reference that comes back names its seat at
the server. It is an opaque handle, handed to the other endpoints; no method is called through it.

Errors that a person can meet travel as `Refusal` answers; see there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch.distributed.autograd as dist_autograd
from torch import Tensor
from torch.distributed import rpc
from torch.futures import Future

from runtime.coordinator import Coordinator
from runtime.errors import SutureError
from runtime.members import Seat
from runtime.scheduler import Turn
from runtime.wire import (
    Farewell,
    Hello,
    LossReply,
    OutputGradient,
    Refusal,
    Release,
    Report,
    SealedHandoff,
    StepDone,
    StepReply,
    Upload,
    Welcome,
)

# RPC calls functions, so the run they act on must be found from the process: one run a server process.
_OPEN: list[Coordinator] = []

SeatRef = Any  # rpc.RRef[Seat] over the wire, a Seat where the server lives in the same process


def open_run(coordinator: Coordinator) -> None:
    """From now on this process serves ``coordinator``'s run."""
    _OPEN[:] = [coordinator]


def close_run() -> None:
    """From now on this process serves nothing."""
    _OPEN.clear()


def _run() -> Coordinator:
    if not _OPEN:
        raise SutureError("this server has no run; it has ended or not begun")
    return _OPEN[0]


def _seat(reference: SeatRef) -> Seat:
    seat: Seat = reference.local_value() if isinstance(reference, rpc.PyRRef) else reference
    return seat


def _endpoint(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def answer(*args: Any) -> Any:
        try:
            return function(*args)
        except SutureError as error:
            return Refusal.of(error)

    return answer


def take_seat() -> Seat:
    """A new seat; it is nobody's until ``hello``."""
    return Seat()


@_endpoint
def hello(seat: SeatRef, message: Hello, rpc_name: str) -> Welcome:
    """Joins the run under a name; refused where an option differs from the server's."""
    return _run().admit(_seat(seat), message, rpc_name)


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def next_turn(seat: SeatRef) -> Future[Turn | Refusal]:
    """Waits for this client's next turn without holding a thread."""
    try:
        return _run().ready(_seat(seat))
    except SutureError as error:
        refused: Future[Turn | Refusal] = Future()
        refused.set_result(Refusal.of(error))
        return refused


@_endpoint
def fetch(seat: SeatRef) -> SealedHandoff | None:
    """The newest sealed hand-off, None before the first."""
    return _run().newest_handoff(_seat(seat))


@_endpoint
def forward(seat: SeatRef, upload: Upload) -> LossReply | Tensor:
    """One training batch through the top, inside the caller's autograd context."""
    return _run().forward(_seat(seat), upload)


@_endpoint
def train(seat: SeatRef, upload: Upload) -> StepReply | Tensor:
    """One explicit training step, whole where labels are shared; else its forward half."""
    return _run().train(_seat(seat), upload)


@_endpoint
def backward(seat: SeatRef, gradient: OutputGradient) -> Tensor:
    """The other half of an explicit step where labels stay at home; the server has stepped when it answers."""
    return _run().backward(_seat(seat), gradient)


@_endpoint
def predict(seat: SeatRef, upload: Upload) -> Tensor:
    """One evaluation batch through the top."""
    return _run().predict(_seat(seat), upload)


@_endpoint
def step(seat: SeatRef, done: StepDone, context: int) -> None:
    """Backward has come through: step the top with the gradients of the caller's autograd context."""
    _run().stepped(_seat(seat), done, dist_autograd.get_gradients(context))


@_endpoint
def commit(seat: SeatRef, handoff: SealedHandoff) -> None:
    """Ends a training turn; when this returns the turn is on the disk."""
    _run().commit(_seat(seat), handoff)


@_endpoint
def report(seat: SeatRef, message: Report) -> None:
    """Ends an evaluation turn."""
    _run().report(_seat(seat), message)


@_endpoint
def abort(seat: SeatRef, why: Refusal) -> None:
    """Gives the running turn up: it is rolled back whole and the run stops with that error."""
    _run().abort(_seat(seat), why)


@_endpoint
def finish(seat: SeatRef, farewell: Farewell) -> Release:
    """Says goodbye after the last turn; the answer is the trained top."""
    return _run().finish(_seat(seat), farewell)


@_endpoint
def leave(seat: SeatRef) -> None:
    """Gives the seat back; after this call the client may close its connection."""
    _run().leave(_seat(seat))
