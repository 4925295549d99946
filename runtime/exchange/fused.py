"""The explicit step: one call where labels are shared, two where they stay at home, and no graph across the wire.

Smashed data goes up and the answer comes back: the loss and the gradient at the cut where labels are shared; where they
stay at home the top's output, whose gradient goes up in a second call that brings the gradient at the cut. The server
steps before it answers, so nothing is left to say afterwards. Same doors, same order of operations, the same weights
bit for bit as the reference, `AutogradExchange`.

While wire and server work the client reads and augments the next batch, which changes no bit. With ``--overlap`` the
next batch goes down before the current one is back, with the bottom's weights as they are then, one step old; its
gradient is applied to the newer ones. Harlap et al.: PipeDream: Fast and efficient pipeline parallel DNN training,
arXiv:1806.03377 (weight stashing).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any

from suture.runtime.client.model import ClientModel
from suture.runtime.client.step import ClientStep
from suture.runtime.data.client_data import Batch
from suture.runtime.errors import SutureError
from suture.runtime.exchange.exchange import Exchange, Trained
from suture.runtime.exchange.rpc import RpcExchange
from suture.runtime.records.step_timer import SENDING, WAITING
from suture.runtime.scheduler import Turn
from suture.runtime.server.api import Endpoint, ServerApi
from suture.runtime.wire.messages import OutputGradient, Upload

log = logging.getLogger(__name__)


class FusedStep(Exchange):
    """The explicit step over any carrier."""

    def train_step(self, client: ClientModel, turn: Turn, batch: Batch) -> float:
        in_flight = self._in_flight(client, turn, batch)
        in_flight.depart()
        return in_flight.arrive()

    def _in_flight(
        self, client: ClientModel, turn: Turn, batch: Batch, stashed: bool = False
    ) -> _BatchInFlight:
        # Where others train in the same turn, the server may wait for them before it answers.
        return _BatchInFlight(
            partial(self.begin, patient=turn.together), ClientStep(client, turn, batch, stashed)
        )

    def train(self, client: ClientModel, turn: Turn, batches: Iterable[Batch]) -> Generator[Trained]:
        overlap, at_home = client.config.overlap, not client.config.labels_shared
        coming, under_way = iter(batches), deque[_BatchInFlight]()
        batch = next(coming, None)
        try:
            while batch is not None or under_way:
                if not under_way:
                    assert batch is not None
                    under_way.append(self._in_flight(client, turn, batch))
                    under_way[0].depart()
                    batch = next(coming, None)
                if overlap and batch is not None:
                    under_way.append(self._in_flight(client, turn, batch, stashed=True))
                    # A server that has the loss steps before it answers, and may have the next batch at once. Else
                    # it must have this one's gradient first.
                    under_way[1].depart(hold=at_home)
                    batch = next(coming, None)
                loss = under_way[0].arrive(then=under_way[-1].send)
                yield Trained(under_way.popleft().step.batch, loss)
        finally:
            for in_flight in under_way:
                in_flight.abandon()


class _BatchInFlight:
    """A batch on its way to the server and back.

    Args:
        begin: calls the server without waiting, see `Exchange.begin`.
        step: the client's half.
    """

    def __init__(self, begin: Callable[..., Callable[[], Any]], step: ClientStep) -> None:
        self.step = step
        self._begin, self._step_timer = begin, step.client.step_timer
        self._held: Upload | None = None
        self._wait: Callable[[], Any] | None = None

    def depart(self, hold: bool = False) -> None:
        """Through the bottom and off to the server; with ``hold`` it waits for `send`."""
        self._held = self.step.upload()
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
            SutureError: the server refused or is gone, an answer does not fit, or the loss is not finite.
        """
        step = self.step
        step.penalise()
        if step.labels is not None:
            return step.learn_shared(self._answer())
        message = step.head(self._answer())
        self._call(ServerApi.backward, message)
        then()
        step.learn_from(self._answer())
        return message.loss

    def abandon(self) -> None:
        """Waits for what is still under way, whatever becomes of it: nothing of a turn outlives it."""
        try:
            if self._wait is not None:
                self._wait()
        except (SutureError, RuntimeError) as error:
            log.debug("a call of an abandoned batch failed: %s", error)

    def _call(self, endpoint: Endpoint, message: Upload | OutputGradient) -> None:
        with self._step_timer.part(SENDING):
            self._wait = self._begin(endpoint, message)

    def _answer(self) -> Any:
        wait, self._wait = self._wait, None
        assert wait is not None
        with self._step_timer.part(WAITING):
            return wait()


class FusedExchange(FusedStep, RpcExchange):
    """The explicit step over torch RPC."""
