"""The reference exchange: torch RPC, remote references, one distributed-autograd context a step.

    client                                                     server
    server = rpc.remote("server", connect)          ->         a ServerApi, owned there
    with dist_autograd.context() as context:
        smashed = bottom(x)
        rpc_sync(forward, server, smashed, y)       <->        loss = criterion(top(smashed), y), in the same graph
        dist_autograd.backward(context, [loss])     <->        the top's gradients stay there, in the context
        rpc_sync(step, server, context)             ->         optimizer.step()
        optimizer.step()

The client is the root of backward. Each side reads its own gradients out of the context and steps an ordinary torch
optimizer (``DistributedOptimizer`` would write ``.grad`` on an attack's nets, too).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed.autograd as dist_autograd
from torch import Tensor

from suture.runtime.client.model import ClientModel
from suture.runtime.client.step import ClientStep
from suture.runtime.data.client_data import Batch
from suture.runtime.exchange.rpc import RpcExchange, peer_errors
from suture.runtime.randomness import BatchAddress
from suture.runtime.records.step_timer import WAITING
from suture.runtime.rpc import functions
from suture.runtime.scheduler import Turn
from suture.runtime.server.api import ServerApi
from suture.runtime.wire.messages import StepDone, Upload


class AutogradExchange(RpcExchange):
    """One autograd graph over both processes."""

    def train_step(self, client: ClientModel, turn: Turn, batch: Batch) -> float:
        with dist_autograd.context() as context:
            step = ClientStep(client, turn, batch)
            total, loss = step.whole(self.top(client, turn, batch.number))
            # The server's half of it and the wire's included.
            with client.step_timer.part("backward"), peer_errors():
                dist_autograd.backward(context, [total])
            with client.step_timer.part(WAITING):
                done = StepDone(turn.number, batch.number, loss)
                self.begin_function(ServerApi.step, functions.step, done, context)()
            step.learn(dist_autograd.get_gradients(context))
        return loss

    def top(self, client: ClientModel, turn: Turn, batch: int) -> Callable[[Tensor, Tensor | None], Any]:
        """The server's top in training mode, as a function of smashed data and labels."""

        def forward(smashed: Tensor, labels: Tensor | None) -> Any:
            sent = client.packer.pack(smashed, "smashed", *BatchAddress(turn.round, client.name, batch))
            upload = Upload(turn.number, batch, "train", sent, labels)
            answer = self.begin_function(ServerApi.forward, functions.forward, upload)()
            return answer if labels is not None else client.unpack_output(answer)

        return forward
