"""All roles in one process: a client holds its `ServerApi` itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.futures import Future

from runtime.coordinator import Coordinator
from runtime.exchange import baton
from runtime.exchange.fused import FusedStep
from runtime.server_api import Endpoint, ServerApi
from runtime.wire import unwrap


class LocalExchange(FusedStep):
    """A client and a coordinator in one process."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._api = ServerApi(coordinator)

    def begin(self, endpoint: Endpoint, *messages: Any, patient: bool = False) -> Callable[[], Any]:
        answer = endpoint(self._api, *messages)
        return lambda: unwrap(baton.wait(answer))

    def ask_turn(self) -> Future[Any]:
        """Asks for this client's next turn; who plays all roles must not wait for one of them."""
        return self._api.next_turn()
