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

from collections import deque
from collections.abc import Generator, Iterable
from functools import partial

from suture.runtime.client.model import ClientModel
from suture.runtime.data.client_data import Batch
from suture.runtime.exchange.batch_in_flight import BatchInFlight
from suture.runtime.exchange.exchange import Exchange, Trained
from suture.runtime.exchange.rpc import RpcExchange
from suture.runtime.scheduler import Turn


class FusedStep(Exchange):
    """The explicit step over any carrier."""

    def train_step(self, client: ClientModel, turn: Turn, batch: Batch) -> float:
        in_flight = self._in_flight(client, turn, batch)
        in_flight.depart()
        return in_flight.arrive()

    def _in_flight(
        self, client: ClientModel, turn: Turn, batch: Batch, stashed: bool = False
    ) -> BatchInFlight:
        # Where others train in the same turn, the server may wait for them before it answers.
        return BatchInFlight(partial(self.begin, patient=turn.together), client, turn, batch, stashed)

    def train(self, client: ClientModel, turn: Turn, batches: Iterable[Batch]) -> Generator[Trained]:
        overlap, at_home = client.config.overlap, not client.config.labels_shared
        coming, under_way = iter(batches), deque[BatchInFlight]()
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
                yield Trained(under_way.popleft().batch, loss)
        finally:
            for in_flight in under_way:
                in_flight.abandon()


class FusedExchange(FusedStep, RpcExchange):
    """The explicit step over torch RPC."""
