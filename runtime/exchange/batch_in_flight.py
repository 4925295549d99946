"""One training batch on its way over the wire and back.

Shape legend: N batch; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

import logging
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
from suture.runtime.wire.checks import TensorSpec, check_gradient, check_step_reply
from suture.runtime.wire.messages import OutputGradient, Upload

log = logging.getLogger(__name__)

Begin = Callable[..., Callable[[], Any]]  # `Exchange.begin`


class BatchInFlight:
    """A client's explicit step: its calls to the server, and between them the client's own halves (`ClientStep`).

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
        self._begin, self._client, self._turn = begin, client, turn
        self._step = ClientStep(client, turn, batch, stashed)
        self._held: Upload | None = None
        self._wait: Callable[[], Any] | None = None

    def depart(self, hold: bool = False) -> None:
        """Through the bottom and off to the server; with ``hold`` it waits for `send`."""
        self._smashed, number = self._step.down(), self.batch.number
        self._sent = self._client.packer.pack(self._smashed, "smashed", *self._step.place)
        self._held = Upload(self._turn.number, number, "train", self._sent, self._step.labels)
        if not hold:
            self.send()

    def send(self) -> None:
        """Sends what was held."""
        if self._held is not None:
            self._call(ServerApi.train, self._held)
            self._held = None

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
        return self._arrive_home(then) if self._step.labels is None else self._arrive_shared()

    def abandon(self) -> None:
        """Waits for what is still under way, whatever becomes of it: nothing of a turn outlives it."""
        try:
            if self._wait is not None:
                self._wait()
        except (SutureError, RuntimeError) as error:
            log.debug("a call of an abandoned batch failed: %s", error)

    def _arrive_shared(self) -> float:
        reply = check_step_reply(self._answer(), "server")
        self._step.check_loss(reply.loss)
        self._step.back(self._at_cut(reply.gradient))
        return reply.task_loss

    def _arrive_home(self, then: Callable[[], None]) -> float:
        client, step = self._client, self._step
        answer = self._answer()
        output = client.output.check(client.unpack_output(answer), "server", "output")
        loss, gradient = step.head(output)
        packed = client.packer.pack(gradient, "output gradient", *step.place, of=answer)
        self._call(ServerApi.backward, OutputGradient(self._turn.number, self.batch.number, loss, packed))
        then()
        step.back(self._at_cut(self._answer()))
        return loss

    def _call(self, endpoint: Endpoint, message: Any) -> None:
        with self._client.step_timer.part(SENDING):
            self._wait = self._begin(endpoint, message)

    def _answer(self) -> Any:
        wait, self._wait = self._wait, None
        assert wait is not None
        with self._client.step_timer.part(WAITING):
            return wait()

    def _at_cut(self, payload: Any) -> Tensor:
        spec = TensorSpec.like(self._smashed)
        gradient = self._client.packer.unpack(payload, spec, "server", "gradient", of=self._sent)
        return check_gradient(gradient, self._smashed, "server")
