"""The reference exchange: torch RPC, one distributed-autograd context a step.

The client is the root of backward. Gradients stay in the context: each side reads its own and steps an ordinary
torch optimizer (``DistributedOptimizer`` would write ``.grad`` on an attack's nets, too).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed.autograd as dist_autograd
from torch.distributed import rpc
from torch.futures import Future

from runtime import endpoints, transport
from runtime.client import Client
from runtime.data.client_data import Batch
from runtime.exchange.seam import Exchange
from runtime.scheduler import Turn
from runtime.wire import Refusal, StepDone


class AutogradExchange(Exchange):
    """A client's line over RPC; built after `transport.Transport.join`."""

    def __init__(self) -> None:
        self._seat = rpc.remote(transport.SERVER, endpoints.take_seat)

    def call(self, endpoint: Callable[..., Any], *args: Any) -> Any:
        return transport.call(endpoint, self._seat, *args)

    def next_turn(self) -> Future[Turn | Refusal]:
        future: Future[Turn | Refusal] = rpc.rpc_async(
            transport.SERVER, endpoints.next_turn, args=(self._seat,)
        )
        return future

    def train_step(self, client: Client, turn: Turn, batch: Batch) -> float:
        with dist_autograd.context() as context:
            total, loss = client.forward(turn, batch, self.top(turn, batch.number))
            transport.backward(context, [total])
            self.call(endpoints.step, StepDone(turn.number, batch.number, loss), context)
            client.step(dist_autograd.get_gradients(context))
        return loss
