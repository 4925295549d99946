"""The reference exchange: torch RPC, one distributed-autograd context a step.

The client is the root of backward. Gradients stay in the context: each side reads its own and steps an ordinary
torch optimizer (``DistributedOptimizer`` would write ``.grad`` on an attack's nets, too).
"""

from __future__ import annotations

import torch.distributed.autograd as dist_autograd

from runtime import calls, endpoints
from runtime.client import Client
from runtime.data.client_data import Batch
from runtime.exchange.line import RpcLine
from runtime.scheduler import Turn
from runtime.stopwatch import WAITING
from runtime.wire import StepDone


class AutogradExchange(RpcLine):
    """One autograd graph over both processes."""

    def train_step(self, client: Client, turn: Turn, batch: Batch) -> float:
        with dist_autograd.context() as context:
            total, loss = client.forward(turn, batch, self.top(client, turn, batch.number))
            with client.stopwatch.part("backward"):  # the server's half of it and the wire's included
                calls.backward(context, [total])
            with client.stopwatch.part(WAITING):
                self.call(endpoints.step, StepDone(turn.number, batch.number, loss), context)
            client.step(dist_autograd.get_gradients(context))
        return loss
