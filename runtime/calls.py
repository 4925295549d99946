"""Calling the server's endpoints over torch RPC, and asking whether a member lives.

Whatever goes wrong, here or at the server, is raised as an error of ours that says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed.autograd as dist_autograd
from torch.distributed import rpc
from torch.futures import Future

from runtime import codec, lockdown
from runtime.errors import PeerLostError, WireError
from runtime.scheduler import Turn
from runtime.transport import SERVER
from runtime.wire import Refusal

T = TypeVar("T")


def unwrap(answer: T | Refusal) -> T:
    """An endpoint's answer, or the error that it refused with."""
    if isinstance(answer, Refusal):
        answer.raise_it()
        raise AssertionError("unreachable")
    return answer


def begin(endpoint: Callable[..., Any], *args: Any, patient: bool = False) -> Callable[[], Any]:
    """Calls one of the server's endpoints; what is returned waits for the answer; ``patient``, twice as long as usual.

    Raises:
        PeerLostError, WireError, SutureError: as `call`, now or when the answer is waited for.
    """
    timeout = 2 * rpc.get_rpc_timeout() if patient else rpc.constants.UNSET_RPC_TIMEOUT
    try:
        answer = rpc.rpc_async(SERVER, endpoint, args=args, timeout=timeout)
    except RuntimeError as error:
        raise _peer_lost(error) from None
    return lambda: _answered(endpoint, answer.wait)


def call(endpoint: Callable[..., Any], *args: Any) -> Any:
    """Calls one of the server's endpoints and waits for the answer.

    Raises:
        PeerLostError: the server is gone or did not answer within the timeout.
        WireError: the answer is not of the endpoint's kind.
        SutureError: the server refused; the error is of the class that it named.
    """
    return _answered(endpoint, lambda: rpc.rpc_sync(SERVER, endpoint, args=args))


def _answered(endpoint: Callable[..., Any], wait_for_it: Callable[[], Any]) -> Any:
    try:
        answer = unwrap(wait_for_it())
    except RuntimeError as error:
        raise _peer_lost(error) from None
    if not codec.fits(answer, lockdown.answer_type(endpoint)):
        raise WireError(f"server: {endpoint.__name__}: answered with a {type(answer).__name__}; refused")
    return answer


def wait(answer: Future[Turn | Refusal]) -> Turn:
    """Waits for a turn.

    Raises:
        PeerLostError, WireError, SutureError: as `call`.
    """
    try:
        turn = unwrap(answer.wait())
    except RuntimeError as error:
        raise _peer_lost(error) from None
    if not isinstance(turn, Turn):
        raise WireError(f"server: next_turn: answered with a {type(turn).__name__}; refused")
    return turn


def backward(context: int, roots: list[torch.Tensor]) -> None:
    """Distributed backward from ``roots``, through the server and back.

    Raises:
        PeerLostError: the server is gone or did not answer within the timeout.
    """
    try:
        dist_autograd.backward(context, roots)
    except RuntimeError as error:
        raise _peer_lost(error) from None


def _peer_lost(error: RuntimeError) -> RuntimeError:
    """``error`` itself if it is ours or a defect; a PeerLostError if the connection is what failed.

    A WireError if a wall refused what was called or answered, here or at the server.
    """
    text = str(error)
    if type(error) is RuntimeError and (refused := re.search(r"refused: ([^\n]*)", text)):
        return WireError(f"server: {refused[1]:.300}; refused")
    signs = ("RPC ran for more than", "EOF", "EPIPE", "ECONNRE", "pipe closed", "shutdown", "destroyed agent")
    if type(error) is RuntimeError and any(sign in text for sign in signs):
        return PeerLostError(
            f"the server is gone or does not answer ({text.splitlines()[0]:.120}); see its log"
        )
    return error


def knock(member: str, timeout: float) -> Future[torch.Tensor]:
    """Asks a member's process whether it lives: a sum, which torch computes there without running any Python.

    Returns:
        A future that fails at once when the process is gone, and after ``timeout`` seconds when it is frozen.

    Raises:
        RuntimeError: there is no such member.
    """
    answer: Future[torch.Tensor] = rpc.rpc_async(member, torch.add, args=(torch.zeros(1), 1), timeout=timeout)
    return answer
