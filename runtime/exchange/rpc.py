"""A client's calls to the server over torch RPC; what crosses in a step is the exchanges' business."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.distributed import rpc

from suture.runtime.exchange.exchange import Exchange
from suture.runtime.rpc import calls, functions
from suture.runtime.server.api import Endpoint


class RpcExchange(Exchange):
    """Holds a remote reference to the client's `ServerApi`; every call takes it along."""

    def __init__(self) -> None:
        self._server: rpc.PyRRef[Any] | None = None

    @property
    def server(self) -> rpc.PyRRef[Any]:
        """The reference, made with the first call."""
        if self._server is None:
            self._server = calls.connect()
        return self._server

    def begin(self, endpoint: Endpoint, *messages: Any, patient: bool = False) -> Callable[[], Any]:
        name = endpoint.__name__
        return self.answered(
            endpoint, calls.begin(functions.ask, self.server, name, list(messages), patient=patient)
        )

    def leave(self) -> None:
        super().leave()
        self._server = None  # the server's object goes with its last reference
