"""What every exchange does: a client's calls to the server, and one training step."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.futures import Future

from runtime import endpoints
from runtime.client import Client
from runtime.data.client_data import Batch
from runtime.errors import SutureError
from runtime.randomness import EVALUATION_BATCH
from runtime.scheduler import Turn
from runtime.wire import Farewell, Hello, Refusal, Release, Report, SealedHandoff, Share, Upload, Welcome


class Exchange(ABC):
    """One client's line to the server."""

    @abstractmethod
    def call(self, endpoint: Callable[..., Any], *args: Any) -> Any:
        """Calls an endpoint from this client's seat; raises what the server refused with."""

    @abstractmethod
    def begin(self, endpoint: Callable[..., Any], *args: Any, patient: bool = False) -> Callable[[], Any]:
        """Calls an endpoint without waiting; the returned function waits for the answer, or raises as `call`.

        ``patient`` where the server may wait for another client, whose lease must run out first.
        """

    def train(self, client: Client, turn: Turn, batches: Iterable[Batch]) -> Generator[Batch]:
        """A turn's training steps; each batch is returned when both sides have stepped on it."""
        for batch in batches:
            self.train_step(client, turn, batch)
            yield batch

    @abstractmethod
    def train_step(self, client: Client, turn: Turn, batch: Batch) -> float:
        """Forward, backward and both sides' optimizer steps for one batch; returns the task loss."""

    @abstractmethod
    def next_turn(self) -> Future[Turn | Refusal]:
        """A future of this client's next turn."""

    @abstractmethod
    def join(self, hello: Hello, rpc_name: str = "") -> Welcome:
        """Takes a seat and says who sits on it."""

    def top(self, client: Client, turn: Turn, batch: int) -> Callable[[Tensor, Tensor | None], Any]:
        """The server's top in training mode, as a function of smashed data and labels."""

        def forward(smashed: Tensor, labels: Tensor | None) -> Any:
            sent = client.packer.pack(smashed, "smashed", turn.round, client.name, batch)
            answer = self.call(endpoints.forward, Upload(turn.number, batch, "train", sent, labels))
            return answer if labels is not None else client.unpack_output(answer)

        return forward

    def predict(self, client: Client, turn: Turn) -> Callable[[str, int, Tensor], Any]:
        """The server's top in evaluation mode, as a function of phase, batch number and smashed data."""

        def predict(phase: str, batch: int, smashed: Tensor) -> Any:
            place = (turn.round, client.name, EVALUATION_BATCH - batch)
            sent = client.packer.pack(smashed, f"smashed/{phase}", *place)
            return client.unpack_output(self.call(endpoints.predict, Upload(turn.number, batch, phase, sent)))

        return predict

    def fetch(self) -> SealedHandoff | None:
        """The newest hand-off."""
        handoff: SealedHandoff | None = self.call(endpoints.fetch)
        return handoff

    def shares(self) -> Iterator[Share]:
        """What each client of the last turn sealed, one after the other."""
        for index in itertools.count():
            share: Share | None = self.call(endpoints.share, index)
            if share is None:
                return
            yield share

    def commit(self, handoff: SealedHandoff) -> None:
        """Ends a training turn."""
        self.call(endpoints.commit, handoff)

    def report(self, turn: Turn, scores: dict[str, dict[str, float]]) -> None:
        """Ends an evaluation turn."""
        self.call(endpoints.report, Report(turn.number, scores))

    def abort(self, error: SutureError) -> None:
        """Gives the running turn up."""
        self.call(endpoints.abort, Refusal.of(error))

    def finish(self, farewell: Farewell) -> Release:
        """Says goodbye after the last turn."""
        release: Release = self.call(endpoints.finish, farewell)
        return release

    def leave(self) -> None:
        """Gives the seat back."""
        self.call(endpoints.leave)
