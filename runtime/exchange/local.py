"""All roles in one process: the same endpoints, called directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.futures import Future

from runtime.calls import unwrap
from runtime.coordinator import Coordinator
from runtime.exchange import baton
from runtime.exchange.fused import FusedStep
from runtime.members import Seat
from runtime.scheduler import Turn
from runtime.wire import Hello, Refusal, Welcome


class LocalExchange(FusedStep):
    """A client's line to a coordinator in its own process."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._seat = Seat()

    def call(self, endpoint: Callable[..., Any], *args: Any) -> Any:
        return self.begin(endpoint, *args)()

    def begin(self, endpoint: Callable[..., Any], *args: Any, patient: bool = False) -> Callable[[], Any]:
        answer = endpoint(self._seat, *args)
        return lambda: unwrap(baton.wait(answer) if isinstance(answer, Future) else answer)

    def join(self, hello: Hello, rpc_name: str = "") -> Welcome:
        return self._coordinator.admit(self._seat, hello, rpc_name or hello.client)

    def next_turn(self) -> Future[Turn | Refusal]:
        return self._coordinator.ready(self._seat)
