"""One training batch on its way over the wire and back, whole or part after part.

Shape legend: N batch; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from torch import Tensor

from suture.runtime.client.model import ClientModel
from suture.runtime.client.step import ClientStep
from suture.runtime.data.client_data import Batch
from suture.runtime.errors import SutureError
from suture.runtime.records.step_timer import SENDING, WAITING
from suture.runtime.scheduler import Turn
from suture.runtime.server.api import Endpoint, ServerApi
from suture.runtime.training.randomness import part_place
from suture.runtime.wire.checks import TensorSpec, check_gradient, check_step_reply
from suture.runtime.wire.compression import Payload
from suture.runtime.wire.messages import OutputGradient, Upload

log = logging.getLogger(__name__)
MOST_UNDER_WAY = 4
"""Calls of one batch that wait for the server at once. One that comes early holds an RPC thread; two keep both busy."""

Begin = Callable[..., Callable[[], Any]]  # `Exchange.begin`


class BatchInFlight:
    """See the module.

    Args:
        begin: calls the server without waiting.
        client: whose batch.
        turn: in which.
        batch: the images.
        stashed: see `ClientStep`.
    """

    def __init__(
        self, begin: Begin, client: ClientModel, turn: Turn, batch: Batch, stashed: bool = False
    ) -> None:
        self.batch = batch
        self._calls, self._client, self._turn = _Calls(begin), client, turn.number
        self._step = ClientStep(client, turn, batch, client.num_parts(len(batch.inputs)), stashed)
        self._held: list[Upload] = []
        self._sent: list[tuple[Payload, Tensor]] = []

    def depart(self, hold: bool = False) -> None:
        """Part after part through the bottom and off to the server; with ``hold`` they wait for `send`."""
        step, parts = self._step, self._step.num_parts
        for part in range(parts):
            smashed = step.down()
            packed = self._client.feedback.pack(smashed, step.place, part)
            self._sent.append((packed, smashed))
            labels = step.labels if part == 0 else None
            self._held.append(Upload(self._turn, self.batch.number, "train", packed, labels, part, parts))
            if not hold:
                self.send()

    def send(self) -> None:
        """Sends what was held."""
        for upload in self._held:
            self._call(ServerApi.train, upload)
        self._held.clear()

    def arrive(self, then: Callable[[], None] = lambda: None) -> float:
        """Waits for the server and learns from what comes home.

        Args:
            then: is called when everything has been sent that the server needs to finish this batch.

        Returns:
            The task loss.

        Raises:
            SutureError: the server refused or is gone, an answer does not fit, or the loss is no number.
        """
        self._step.penalise()
        loss = self._arrive_home(then) if self._step.labels is None else self._arrive_shared()
        self._step.finish()
        return loss

    def abandon(self) -> None:
        """Waits for what is still under way, whatever becomes of it: nothing of a turn outlives it."""
        self._calls.abandon()

    def _arrive_shared(self) -> float:
        total = 0.0
        for part in range(len(self._sent)):
            reply = check_step_reply(self._answer(), "server")
            self._step.check_loss(reply.loss)
            total += reply.task_loss
            self._step.back(self._at_cut(part, reply.gradient))
        return total

    def _arrive_home(self, then: Callable[[], None]) -> float:
        client, step = self._client, self._step
        answers = [self._answer() for _ in self._sent]
        outputs = [client.output.check(client.unpack_output(a), "server", "output") for a in answers]
        loss, gradients = step.head(outputs)
        for part, gradient in enumerate(gradients):
            place = part_place(step.place, part)
            packed = client.packer.pack(gradient, "output gradient", *place, of=answers[part])
            message = OutputGradient(self._turn, self.batch.number, loss, packed, part)
            self._call(ServerApi.backward, message)
        then()
        for part in range(len(self._sent)):
            step.back(self._at_cut(part, self._answer()))
        return loss

    def _call(self, endpoint: Endpoint, message: Any) -> None:
        with self._client.step_timer.part(SENDING):
            self._calls.go(endpoint, message)

    def _answer(self) -> Any:
        with self._client.step_timer.part(WAITING):
            return self._calls.come()

    def _at_cut(self, part: int, payload: Any) -> Tensor:
        sent, like = self._sent[part]
        spec = TensorSpec.like(like)
        gradient = self._client.packer.unpack(payload, spec, "server", "gradient", of=sent)
        return check_gradient(gradient, like, "server")


class _Calls:
    """Calls to the server whose answers are taken in the order in which they went."""

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._under_way: deque[Callable[[], Any]] = deque()
        self._answers: deque[Any] = deque()

    def go(self, endpoint: Endpoint, message: Any) -> None:
        """Calls, once there is room."""
        if len(self._under_way) == MOST_UNDER_WAY:
            self._answers.append(self._under_way.popleft()())
        self._under_way.append(self._begin(endpoint, message))

    def come(self) -> Any:
        """The next answer; raises what the server refused with."""
        return self._answers.popleft() if self._answers else self._under_way.popleft()()

    def abandon(self) -> None:
        """See `BatchInFlight.abandon`."""
        while self._under_way:
            try:
                self._under_way.popleft()()
            except (SutureError, RuntimeError) as error:
                log.debug("a call of an abandoned batch failed: %s", error)
