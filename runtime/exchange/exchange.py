"""What every exchange does: a client asks its `ServerApi`, and trains one step."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from suture.runtime.client.model import ClientModel
from suture.runtime.data.client_data import Batch
from suture.runtime.errors import SutureError
from suture.runtime.randomness import BatchAddress
from suture.runtime.scheduler import Turn
from suture.runtime.server.api import Endpoint, ServerApi
from suture.runtime.wire.messages import (
    Board,
    Farewell,
    Heads,
    Hello,
    Refusal,
    Release,
    Report,
    SealedHandoff,
    Share,
    Statement,
    Upload,
    Welcome,
)


@dataclass(frozen=True, slots=True)
class Trained:
    """A batch on which both sides have stepped, and the task loss that it had."""

    batch: Batch
    loss: float


class Exchange(ABC):
    """One client's way to its `ServerApi`, and how a training step crosses it."""

    @abstractmethod
    def begin(self, endpoint: Endpoint, *messages: Any, patient: bool = False) -> Callable[[], Any]:
        """Asks the server without waiting; the returned function waits for the answer.

        Args:
            endpoint: what is asked.
            messages: what it takes.
            patient: the server may wait for another client, whose lease must run out first.

        Raises:
            PeerLostError: the server is gone or did not answer within the timeout; now, or when the answer is waited
            for. WireError: the answer is not of the endpoint's kind; as above. SutureError: the server refused, and
            the error is of the class that it named; as above.
        """

    def call(self, endpoint: Endpoint, *messages: Any) -> Any:
        """Asks the server and waits; raises as `begin`."""
        return self.begin(endpoint, *messages)()

    def next_turn(self, meanwhile: Callable[[], None] | None = None) -> Callable[[], Turn]:
        """Asks for this client's next turn; the returned function waits for it.

        Args:
            meanwhile: is called several times a second while it waits; what it raises ends the waiting and leaves the
                call to the server as it is. A way to the server that cannot look up from its waiting never calls it.
        """
        return self.begin(ServerApi.next_turn)

    def join(self, hello: Hello) -> Welcome:
        """Becomes a member, and says who it is."""
        welcome: Welcome = self.call(ServerApi.hello, hello)
        return welcome

    def train(self, client: ClientModel, turn: Turn, batches: Iterable[Batch]) -> Generator[Trained]:
        """A turn's training steps; each batch is returned when both sides have stepped on it."""
        for batch in batches:
            yield Trained(batch, self.train_step(client, turn, batch))

    @abstractmethod
    def train_step(self, client: ClientModel, turn: Turn, batch: Batch) -> float:
        """Forward, backward and both sides' optimizer steps for one batch; returns the task loss."""

    def predict(self, client: ClientModel, turn: Turn) -> Callable[[str, int, Tensor], Any]:
        """The server's top in evaluation mode, as a function of phase, batch number and smashed data."""

        def predict(phase: str, batch: int, smashed: Tensor) -> Any:
            address = BatchAddress.evaluation(turn.round, client.name, batch)
            sent = client.packer.pack(smashed, f"smashed/{phase}", *address)
            return client.unpack_output(self.call(ServerApi.predict, Upload(turn.number, batch, phase, sent)))

        return predict

    def fetch(self) -> SealedHandoff | None:
        """The newest hand-off."""
        handoff: SealedHandoff | None = self.call(ServerApi.fetch)
        return handoff

    def shares(self) -> Iterator[Share]:
        """What each client of the last turn sealed, one after the other."""
        for index in itertools.count():
            share: Share | None = self.call(ServerApi.share, index)
            if share is None:
                return
            yield share

    def commit(self, handoff: SealedHandoff) -> None:
        """Ends a training turn."""
        self.call(ServerApi.commit, handoff)

    def report(self, turn: Turn, scores: dict[str, dict[str, float]]) -> None:
        """Ends an evaluation turn."""
        self.call(ServerApi.report, Report(turn.number, scores))

    def abort(self, error: SutureError) -> None:
        """Gives the running turn up."""
        self.call(ServerApi.abort, Refusal.of(error))

    def finish(self, farewell: Farewell) -> Release:
        """Says goodbye after the last turn."""
        release: Release = self.call(ServerApi.finish, farewell)
        return release

    def board(self) -> Board:
        """What the sites have stated to each other."""
        board: Board = self.call(ServerApi.board)
        return board

    def post(self, statement: Statement) -> None:
        """States something to the other sites."""
        self.call(ServerApi.post, statement)

    def begin_epoch(self, epoch: Statement, handoff: SealedHandoff) -> None:
        """Begins an epoch of the hand-off key, with what was sealed under it."""
        self.call(ServerApi.begin_epoch, epoch, handoff)

    def exhibit(self) -> Share:
        """The hand-off, or share, that is accused."""
        share: Share = self.call(ServerApi.exhibit)
        return share

    def heads(self) -> Heads:
        """Waits for what the other sites have signed at their farewell."""
        heads: Heads = self.begin(ServerApi.heads, patient=True)()
        return heads

    def leave(self) -> None:
        """Ends the membership."""
        self.call(ServerApi.leave)
