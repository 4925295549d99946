"""The explicit step: one call where labels are shared, two where they stay at home, and no graph across the wire.

The server's half of the step is one node in the client's own graph. Its forward sends smashed data and takes the
answer; its backward gives the gradient that came home: with the answer where the server has the loss, by a second
call where the client has it. The server steps before it answers, so nothing is left to say afterwards. Same doors,
same order of operations, the same weights bit for bit as the reference, `AutogradExchange`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime import endpoints, transport
from runtime.client import Client
from runtime.compression import Payload
from runtime.data.client_data import Batch
from runtime.exchange.line import RpcLine
from runtime.exchange.seam import Exchange
from runtime.scheduler import Turn
from runtime.wire import LossReply, OutputGradient, TensorSpec, Upload, check_gradient, check_step_reply


class FusedStep(Exchange):
    """The explicit step over any line."""

    def train_step(self, client: Client, turn: Turn, batch: Batch) -> float:
        crossing = _Crossing(self, client, turn, batch.number)
        total, crossing.loss = client.forward(turn, batch, crossing)
        ours = client.parameters()
        # autograd.grad leaves the parameters of a defence's own nets alone, as a distributed context does.
        gradients = torch.autograd.grad(total, ours, allow_unused=True)
        client.step({p: grad for p, grad in zip(ours, gradients, strict=True) if grad is not None})
        return crossing.loss


class FusedExchange(FusedStep, RpcLine):
    """The explicit step over torch RPC."""


class _Crossing:
    """One batch's way over the wire and back; a `TopCall`.

    Attributes:
        loss: the task loss, once the client knows it; the server is told it beside its output's gradient.
    """

    def __init__(self, exchange: Exchange, client: Client, turn: Turn, batch: int) -> None:
        self._exchange = exchange
        self._client, self._packer = client, client.packer
        self._turn, self._batch, self._patient = turn.number, batch, turn.together
        self._place = (turn.round, client.name, batch)
        self._sent: Payload | None = None
        self._answer: Payload | None = None
        self._gradient: Tensor | None = None
        self.loss = 0.0

    def __call__(self, smashed: Tensor, labels: Tensor | None) -> Any:
        """The server's answer as a node of the client's graph: a `LossReply`, or the top's output."""
        self._sent = self._packer.pack(smashed.detach(), "smashed", *self._place)
        upload = Upload(self._turn, self._batch, "train", self._sent, labels)
        answer = self._exchange.call(endpoints.train, upload, patient=self._patient)
        if labels is None:
            self._answer, output = answer, self._client.unpack_output(answer)
            return _Node.apply(smashed, _Answer(output), self) if isinstance(output, Tensor) else output
        reply = check_step_reply(answer, transport.SERVER)
        self._gradient = self._at_cut(reply.gradient, smashed)
        return LossReply(_Node.apply(smashed, _Answer(reply.loss), self), reply.task_loss)

    def backward(self, of_answer: Tensor, like: Tensor) -> Tensor:
        """d loss / d smashed (h_ND, shaped like ``like``) from the gradient of what the server answered."""
        if self._gradient is not None:
            return self._gradient
        packed = self._packer.pack(of_answer, "output gradient", *self._place, of=self._answer)
        message = OutputGradient(self._turn, self._batch, self.loss, packed)
        return self._at_cut(self._exchange.call(endpoints.backward, message, patient=self._patient), like)

    def _at_cut(self, payload: Any, like: Tensor) -> Tensor:
        spec = TensorSpec.like(like)
        gradient = self._packer.unpack(payload, spec, transport.SERVER, "gradient", of=self._sent)
        return check_gradient(gradient, like, transport.SERVER)


@dataclass(frozen=True)
class _Answer:
    """Hides a tensor from autograd: what `_Node` returns must be its own output, not an input passed on."""

    tensor: Tensor


class _Node(torch.autograd.Function):
    """The server's half of the step in the client's graph."""

    @staticmethod
    def forward(context: Any, smashed: Tensor, answer: _Answer, crossing: _Crossing) -> Tensor:
        context.crossing = crossing
        context.save_for_backward(smashed)
        return answer.tensor

    @staticmethod
    def backward(context: Any, *of_answer: Tensor) -> tuple[Tensor, None, None]:
        (smashed,) = context.saved_tensors
        return context.crossing.backward(of_answer[0], smashed), None, None
