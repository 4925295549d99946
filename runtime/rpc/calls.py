"""Calling the server over torch RPC, and asking whether a member lives.

Whatever goes wrong, here or at the server, is raised as an error of ours that says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed.autograd as dist_autograd
from torch.distributed import rpc
from torch.futures import Future

from suture.runtime.errors import PeerLostError, WireError
from suture.runtime.rpc import functions
from suture.runtime.rpc.transport import SERVER

_SIGNS = ("RPC ran for more than", "EOF", "EPIPE", "ECONNRE", "pipe closed", "shutdown", "destroyed agent")
"""What torch's errors say where the connection is what failed."""


def connect() -> rpc.PyRRef[Any]:
    """Has the server make this client's `ServerApi`.

    Returns:
        A reference to it, for every later call.

    Raises:
        PeerLostError: the server is gone or did not answer within the timeout.
    """
    with peer_errors():
        reference: rpc.PyRRef[Any] = rpc.remote(SERVER, functions.connect)
        while (
            not reference.confirmed_by_owner()
        ):  # until then a call could reach the server before the object is there
            reference._get_future().wait()
    return reference


def begin(function: Callable[..., Any], *args: Any, patient: bool = False) -> Callable[[], Any]:
    """Calls one of ``functions`` at the server; what is returned waits for the answer; ``patient``, twice as long as
    usual.

    Raises:
        PeerLostError, WireError: the server is gone or refused to run it, now or when the answer is waited for.
    """
    timeout = 2 * rpc.get_rpc_timeout() if patient else rpc.constants.UNSET_RPC_TIMEOUT
    with peer_errors():
        answer = rpc.rpc_async(SERVER, function, args=args, timeout=timeout)

    def wait() -> Any:
        with peer_errors():
            return answer.wait()

    return wait


def backward(context: int, roots: list[torch.Tensor]) -> None:
    """Distributed backward from ``roots``, through the server and back.

    Raises:
        PeerLostError: the server is gone or did not answer within the timeout.
    """
    with peer_errors():
        dist_autograd.backward(context, roots)


@contextmanager
def peer_errors() -> Iterator[None]:
    """Raises what goes wrong in a call as an error of ours.

    Raises:
        PeerLostError: the connection is what failed.
        WireError: a wall refused what was called or answered, here or at the server.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if type(error) is RuntimeError and (refused := re.search(r"refused: ([^\n]*)", text)):
            raise WireError(f"server: {refused[1]:.300}; refused") from None
        if type(error) is RuntimeError and any(sign in text for sign in _SIGNS):
            raise PeerLostError(
                f"the server is gone or does not answer ({text.splitlines()[0]:.120}); see its log"
            ) from None
        raise


def ping(member: str, timeout: float) -> Future[torch.Tensor]:
    """Asks a member's process whether it lives: a sum, which torch computes there without running any Python.

    Returns:
        A future that fails at once when the process is gone, and after ``timeout`` seconds when it is frozen.

    Raises:
        RuntimeError: there is no such member.
    """
    answer: Future[torch.Tensor] = rpc.rpc_async(member, torch.add, args=(torch.zeros(1), 1), timeout=timeout)
    return answer
