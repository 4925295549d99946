"""A client's calls to the server over torch RPC; what crosses in a step is the exchanges' business.

Whatever goes wrong, here or at the server, is raised as an error of ours that says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed import rpc

from suture.runtime.errors import PeerLostError, WireError
from suture.runtime.exchange.exchange import Exchange
from suture.runtime.rpc import functions
from suture.runtime.rpc.transport import SERVER
from suture.runtime.server.api import Endpoint, check_answer

_SIGNS = ("RPC ran for more than", "EOF", "EPIPE", "ECONNRE", "pipe closed", "shutdown", "destroyed agent")
"""What torch's errors say where the connection is what failed."""


class RpcExchange(Exchange):
    """Holds a remote reference to the client's `ServerApi`; every call takes it along."""

    def __init__(self) -> None:
        self._server: rpc.PyRRef[Any] | None = None

    def begin(self, endpoint: Endpoint, *messages: Any, patient: bool = False) -> Callable[[], Any]:
        arguments = (endpoint.__name__, list(messages))
        return self.begin_function(endpoint, functions.ask, *arguments, patient=patient)

    def begin_function(
        self, endpoint: Endpoint, function: Callable[..., Any], *arguments: Any, patient: bool = False
    ) -> Callable[[], Any]:
        """Has the server run one of ``functions`` on the client's `ServerApi`; as `begin`."""
        timeout = 2 * rpc.get_rpc_timeout() if patient else rpc.constants.UNSET_RPC_TIMEOUT
        with peer_errors():
            if self._server is None:
                self._server = _connected()
            answer = rpc.rpc_async(SERVER, function, args=(self._server, *arguments), timeout=timeout)

        def wait() -> Any:
            with peer_errors():
                value = answer.wait()
            return check_answer(endpoint, value)

        return wait

    def leave(self) -> None:
        super().leave()
        self._server = None  # the server's object goes with its last reference


def _connected() -> rpc.PyRRef[Any]:
    """Has the server make this client's `ServerApi`; a reference to it, for every later call."""
    reference: rpc.PyRRef[Any] = rpc.remote(SERVER, functions.connect)
    while (
        not reference.confirmed_by_owner()
    ):  # until then a call could reach the server before the object is there
        reference._get_future().wait()
    return reference


@contextmanager
def peer_errors() -> Iterator[None]:
    """Raises what goes wrong in a call as an error of ours.

    Raises:
        PeerLostError: the connection is what failed: the server is gone or did not answer within the timeout.
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
