"""A client's turn in flight: made when the turn is granted, dropped whole when it ends or is rolled back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.futures import Future

from suture.runtime.errors import SutureError
from suture.runtime.hooks import SmashedBatch
from suture.runtime.scheduler import Turn
from suture.runtime.server.membership import Member
from suture.runtime.server.model import ForwardPass
from suture.runtime.training.randomness import BatchAddress
from suture.runtime.wire.messages import OutputGradient, Packed, Refusal, SealedHandoff, Upload


@dataclass
class BatchUnderWay:
    """A training batch that has come and is not stepped yet.

    Attributes:
        batch: as it came, decoded and without a graph.
        uploaded: as it crossed, where it was packed.
        forward_pass: of an explicit step, where it waits for its backward.
        answered: as the top's output went down, where it was packed.
        gradient: of that output, where labels stay at home.
        loss: the task loss, once it is known.
    """

    batch: SmashedBatch
    uploaded: Packed | None = None
    forward_pass: ForwardPass | None = None
    answered: Packed | None = None
    gradient: Tensor | None = None
    loss: float = 0.0


@dataclass(eq=False)
class ClientTurn:
    """What one client was asked to do, and what it has come to so far.

    Attributes:
        member: the client's.
        turn: what it was asked to do.
        started: when, a time.
        heard: when it was last heard of, about this turn; a time.
        went_on_at: when it last went on with it; a time.
        losses: of its steps.
        num_images: of all its steps.
        batch: what waits for its step.
        answer: takes what the server owes it, perhaps after other clients: meanwhile this one cannot be late.
        num_early: calls that wait for one which was sent before them.
        share: what it sealed at its end, where others train in the same turn.
        has_fetched: whether it has asked for the hand-off.
        num_shares: shares that it has asked for, in order.
        bytes_up: of the batch that waits for its step; ``bytes_down`` the same.
    """

    member: Member
    turn: Turn
    started: float
    heard: float
    went_on_at: float
    losses: list[float] = field(default_factory=list)
    num_images: int = 0
    batch: BatchUnderWay | None = None
    answer: Future[Any] | None = None
    num_early: int = 0
    share: SealedHandoff | None = None
    has_fetched: bool = False
    num_shares: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def name(self) -> str:
        """The client's."""
        return self.member.name

    @property
    def under_way(self) -> BatchUnderWay:
        """The batch that waits for its step, where there is one."""
        assert self.batch is not None
        return self.batch

    @property
    def class_weights(self) -> Tensor | None:
        """weights_K of the client's loss where it is the server's."""
        return None if self.member.hello is None else self.member.hello.class_weights

    def place(self, batch: int) -> BatchAddress:
        """What a draw for one of the turn's batches is named by."""
        return BatchAddress(self.turn.round, self.turn.client, batch)

    def is_early(self, message: Upload | OutputGradient) -> bool:
        """Whether ``message`` belongs behind one that this turn still waits for."""
        if self.turn.number != message.turn or type(message.batch) is not int:
            return False
        return message.batch == len(self.losses) + 1

    def went_on(self) -> None:
        """The client has gone on with its turn, which renews the turn's lease."""
        self.heard = self.went_on_at = time.monotonic()

    def settle(self, value: Any) -> None:
        """Answers the client."""
        answer, self.answer = self.answer, None
        assert answer is not None
        self.heard = self.member.last_seen = time.monotonic()
        answer.set_result(value)

    def attempt(self, compute: Callable[[ClientTurn], Any]) -> None:
        """Answers with what ``compute`` makes of the batch, or with the error that it ends in."""
        try:
            value = compute(self)
        except SutureError as error:
            value = Refusal.of(error)
        self.settle(value)
