"""What a client calls at the server over RPC: module-level functions, each given the client's reference to its
`ServerApi`.

The first, `connect`, makes that object at the server, and the client holds a remote reference (RRef) to it. The
others take the reference first; at the server, which owns the object, it is the object itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed.autograd as dist_autograd
from torch import Tensor
from torch.distributed import rpc
from torch.futures import Future

from suture.runtime.host.executor import MainThreadExecutor
from suture.runtime.rpc.lockdown import full_name
from suture.runtime.server import api as server_api
from suture.runtime.server.api import ServerApi
from suture.runtime.server.coordinator import Coordinator
from suture.runtime.wire.messages import LossReply, OutputGradient, Refusal, StepDone, Upload

if TYPE_CHECKING:
    Reference = rpc.PyRRef[Any]
else:
    Reference = rpc.PyRRef  # torch's class takes no arguments when the program runs
"""Of a client's `ServerApi`: the client holds it, the server owns it."""


class RpcServer:
    """The server's side of RPC: one run, an object for each of its clients, and the thread that computes.

    Args:
        run: what is played.
    """

    def __init__(self, run: Coordinator) -> None:
        self._run = run
        self._executor = MainThreadExecutor()

    def connect(self) -> ServerApi:
        """What `connect` is at the server."""
        return ServerApi(self._run, self._executor)

    def table(self) -> dict[str, Callable[..., Any]]:
        """All that a peer may call here, by the names that it is called by."""
        functions = (ask, forward, step)
        return {full_name(function): function for function in functions} | {full_name(connect): self.connect}

    def serve(self) -> None:
        """Plays the run until it is over; the server computes in this thread, which must be the main one.

        Raises:
            SutureError: the run stopped early; the message says why.
        """
        try:
            self._run.wait(ping, self._executor.work)
        finally:
            self._executor.close()


def ping(member: str, timeout: float) -> Future[Tensor]:
    """Asks a member's process whether it lives: a sum, which torch computes there without running any Python.

    Returns:
        A future that fails at once when the process is gone, and after ``timeout`` seconds when it is frozen.

    Raises:
        RuntimeError: there is no such member.
    """
    answer: Future[Tensor] = rpc.rpc_async(member, torch.add, args=(torch.zeros(1), 1), timeout=timeout)
    return answer


def connect() -> ServerApi:
    """A client's object at the server, for ``rpc.remote``. The server runs `RpcServer.connect` under this name."""
    raise AssertionError("only the server's table says what this does")


def _ask(reference: Reference, endpoint: str, messages: list) -> Future[Any]:  # type: ignore[type-arg]
    """Asks the client's `ServerApi` for one of `api.ENDPOINTS`; the answer may come later."""
    api = _owned(reference)
    for message in messages:
        if isinstance(
            message, (Upload, OutputGradient)
        ):  # RPC's threads may take up two calls in another order
            api.await_order(message)
    return server_api.ask(api, endpoint, messages)


# async_execution: the answer's future comes back at once, so that a call that waits holds no thread of RPC's.
ask = cast("Callable[[Reference, str, list[Any]], Future[Any]]", rpc.functions.async_execution(_ask))
ask.__qualname__ = ask.__name__ = "ask"


def forward(reference: Reference, upload: Upload) -> LossReply | Tensor | Refusal:
    """One training batch, inside the caller's autograd context: the graph grows on in this thread."""
    return _owned(reference).forward(upload)


def step(reference: Reference, done: StepDone, context: int) -> Refusal | None:
    """Steps the top with the gradients that backward has left in the caller's autograd context."""
    try:
        gradients = dist_autograd.get_gradients(context)
    except RuntimeError:
        return Refusal("WireError", f"step: no forward came through context {context!r:.40}; refused")
    return _owned(reference).step(done, gradients)


def _owned(reference: Reference) -> ServerApi:
    api: ServerApi = reference.local_value()
    return api
