"""All roles in one process: the same endpoints, called directly, over one ordinary autograd graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.futures import Future

from runtime import endpoints
from runtime.client import Client
from runtime.coordinator import Coordinator
from runtime.data.client_data import Batch
from runtime.exchange.seam import Exchange
from runtime.scheduler import Turn
from runtime.transport import unwrap
from runtime.wire import Refusal, StepDone


class LocalExchange(Exchange):
    """A client's line to a coordinator in its own process."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._seat = endpoints.take_seat()

    def call(self, endpoint: Callable[..., Any], *args: Any) -> Any:
        return unwrap(endpoint(self._seat, *args))

    def next_turn(self) -> Future[Turn | Refusal]:
        return self._coordinator.ready(self._seat)

    def train_step(self, client: Client, turn: Turn, batch: Batch) -> float:
        total, loss = client.forward(turn, batch, self.top(turn, batch.number))
        ours, tops = client.parameters(), list(self._coordinator.journal.server.top.parameters())
        # autograd.grad leaves the parameters of an attack's or a defence's own nets alone, as a context does.
        gradients = torch.autograd.grad(total, ours + tops, allow_unused=True)
        found: dict[Tensor, Tensor] = {
            parameter: gradient
            for parameter, gradient in zip(ours + tops, gradients, strict=True)
            if gradient is not None
        }
        done = StepDone(turn.number, batch.number, loss)
        self._coordinator.stepped(self._seat, done, found)
        client.step(found)
        return loss
