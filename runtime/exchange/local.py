"""All roles in one process: a client holds its `ServerApi` itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.futures import Future

from suture.runtime.exchange import turnstile
from suture.runtime.exchange.fused import FusedStep
from suture.runtime.server.api import Endpoint, ServerApi
from suture.runtime.server.coordinator import Coordinator
from suture.runtime.wire.messages import unwrap


class LocalExchange(FusedStep):
    """A client and a coordinator in one process."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._api = ServerApi(coordinator)

    def begin(self, endpoint: Endpoint, *messages: Any, patient: bool = False) -> Callable[[], Any]:
        answer = endpoint(self._api, *messages)
        return lambda: unwrap(turnstile.wait(answer))

    def ask_turn(self) -> Future[Any]:
        """Asks for this client's next turn; who plays all roles must not wait for one of them."""
        return self._api.next_turn()
