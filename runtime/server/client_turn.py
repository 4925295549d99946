"""A client's open turn: made when the turn is granted, dropped whole when it ends or is rolled back.

A step of the turn: what the client sent is checked, goes through the top, and is answered. Which client's batch goes
through the top when is for a queue to say, see ``step_order``. Every method runs under the run's lock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.futures import Future

from suture.runtime.errors import DivergedError, SutureError, WireError
from suture.runtime.hooks import SmashedBatch
from suture.runtime.randomness import BatchAddress
from suture.runtime.records.observers import StepLog
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.model import ForwardPass, ServerModel
from suture.runtime.server.run_state import RunState
from suture.runtime.wire.checks import TensorSpec, check_gradient, check_upload
from suture.runtime.wire.compression import Payload
from suture.runtime.wire.messages import (
    Hello,
    LossReply,
    OutputGradient,
    Packed,
    Refusal,
    SealedHandoff,
    StepDone,
    StepReply,
    Upload,
)


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


class StepQueue:
    """Batches that wait for their step. In this one none does: its client is alone, or has a top of its own
    (splitfed).
    """

    @property
    def order(self) -> str:
        """Whose batch was taken when, names with a blank between them, where nothing else settles it."""
        return ""

    def train(self, turn: ClientTurn) -> None:
        """Takes the batch that is under way in a client's turn; answers now or later."""
        turn.attempt(ClientTurn.step)

    def backward(self, turn: ClientTurn) -> None:
        """Takes the gradient of what the server answered, where labels stay at home; answers now or later."""
        turn.attempt(ClientTurn.step_back)

    def ended(self, client: str) -> None:
        """The client has no more batches."""


@dataclass(eq=False)
class ClientTurn:
    """What one client was asked to do, what it may ask for meanwhile, and what it has come to so far.

    Attributes:
        hello: the client's.
        turn: what it was asked to do.
        group: all whose turn it is.
        run_state: whose server computes.
        log: where steps are written down.
        queue: says when a batch of this turn has its step.
        granted_at: when, a time.
        heard: when the client was last heard of, about this turn; a time.
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

    hello: Hello
    turn: Turn
    group: tuple[str, ...]
    run_state: RunState
    log: StepLog
    queue: StepQueue
    granted_at: float
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

    def __post_init__(self) -> None:
        self.heard = self.went_on_at = self.granted_at

    @property
    def name(self) -> str:
        """The client's."""
        return self.turn.client

    @property
    def server(self) -> ServerModel:
        """Computes."""
        return self.run_state.server

    @property
    def under_way(self) -> BatchUnderWay:
        """The batch that waits for its step, where there is one."""
        assert self.batch is not None
        return self.batch

    @property
    def is_open(self) -> bool:
        """Whether something of it is left to do."""
        return self.share is None

    # What the client may ask for -------------------------------------------------------------------

    def train(self, upload: Upload, answer: Future[Any]) -> None:
        """One explicit step, or its forward half where labels stay at home; ``answer`` takes what comes of it.

        Raises:
            WireError: it is not what comes next in the turn.
        """
        self.check(upload.turn, TurnKind.TRAIN)
        announced = self.hello.num_batches
        if self.turn.together and upload.batch >= announced:
            raise WireError(f"{self.name}: batch: it announced {announced}, got {upload.batch}; refused")
        self._arrived(upload)
        self.answer = answer
        self.queue.train(self)

    def backward(self, message: OutputGradient, answer: Future[Any]) -> None:
        """The other half of an explicit step; ``answer`` takes the gradient at the cut.

        Raises:
            WireError: no forward waits for it, or it is not shaped like that one's answer.
            DivergedError: the loss is not finite.
        """
        self.check(message.turn, TurnKind.TRAIN)
        under_way = self._may_step(message.batch, message.loss)
        if under_way.forward_pass is None or self.answer is not None:
            raise WireError(f"{self.name}: backward: no forward waits for it; refused")
        output, answered = under_way.forward_pass.root, under_way.answered
        spec = TensorSpec.like(output)
        gradient = self.server.packer.unpack(message.gradient, spec, self.name, "gradient", of=answered)
        under_way.gradient = check_gradient(gradient, output, self.name)
        self._crossed(up=message.gradient)
        self.answer = answer
        self.queue.backward(self)

    def predict(self, upload: Upload) -> Payload:
        """One evaluation batch; see `ServerModel.predict`."""
        self.check(upload.turn, TurnKind.EVALUATE)
        output = self.server.predict(self._checked(upload))
        address = BatchAddress.evaluation(self.turn.round, self.name, upload.batch)
        return self.server.packer.pack(output, f"output/{upload.phase}", *address)

    def forward(self, upload: Upload) -> LossReply | Tensor:
        """One training batch on the client's own graph; see `ServerModel.forward`."""
        server = self.server
        if not server.packer.differentiable:
            raise WireError(f"{self.name}: forward: no graph crosses in {server.packer.wire}; refused")
        self.check(upload.turn, TurnKind.TRAIN)
        if self.turn.together:
            raise WireError(f"{self.name}: forward: others train in this turn; no graph crosses; refused")
        answer = server.forward(self._arrived(upload), self.hello.class_weights)
        # The gradients cross in autograd's own messages, each in the form of what it is the gradient of.
        self._crossed(down=upload.smashed)
        if isinstance(answer, LossReply):
            return answer
        output = self.output(answer)
        assert isinstance(output, Tensor)
        self._crossed(up=output)
        return output

    def stepped(self, done: StepDone, gradients: Mapping[Tensor, Tensor]) -> None:
        """Steps the top after a backward of distributed autograd's.

        Raises:
            WireError: its batch came in explicit halves.
            DivergedError: the loss is not finite.
        """
        self.check(done.turn, TurnKind.TRAIN)
        if self._may_step(done.batch, done.loss).forward_pass is not None:
            raise WireError(f"{self.name}: step: its batch came in explicit halves; refused")
        self.server.step(gradients, self.name)
        self.record()

    def check(self, number: int, kind: TurnKind) -> None:
        """The client goes on with its turn, which renews the turn's lease.

        Raises:
            WireError: it is another turn that runs, or this one has ended for its client.
        """
        if not self.is_open or (self.turn.number, self.turn.kind) != (number, kind):
            raise WireError(
                f"{self.name}: {kind} in turn {number!r:.40}, but turn {self.turn.number} ({self.turn.kind}) of "
                f"{'+'.join(self.group)} is running; refused"
            )
        self.went_on()

    def went_on(self) -> None:
        """The client has gone on with its turn, which renews the turn's lease."""
        self.heard = self.went_on_at = time.monotonic()

    def is_early(self, message: Upload | OutputGradient) -> bool:
        """Whether ``message`` belongs behind one that this turn still waits for."""
        if not self.is_open or self.turn.number != message.turn or type(message.batch) is not int:
            return False
        return message.batch == len(self.losses) + 1

    # A step, when its queue lets it ------------------------------------------------------------------

    def attempt(self, compute: Callable[[ClientTurn], Any]) -> None:
        """Answers with what ``compute`` makes of the batch, or with the error that it ends in."""
        try:
            value = compute(self)
        except SutureError as error:
            value = Refusal.of(error)
        self.settle(value)

    def settle(self, value: Any) -> None:
        """Answers the client."""
        answer, self.answer = self.answer, None
        assert answer is not None
        self.heard = time.monotonic()
        answer.set_result(value)

    def step(self) -> StepReply | Payload:
        """One explicit step, or its forward half where labels stay at home; see `ServerModel.forward_apart`.

        Raises:
            DivergedError: the loss is not finite.
        """
        under_way = self.under_way
        answer, under_way.forward_pass = self.server.forward_apart(under_way.batch, self.hello.class_weights)
        if not isinstance(answer, LossReply):
            return self.output(answer)
        self.check_loss(answer.task_loss)
        return StepReply(answer.loss, answer.task_loss, self.step_back())

    def step_back(self) -> Payload:
        """The other half of an explicit step: answers with the gradient at the cut, and steps the top."""
        under_way = self.under_way
        forward_pass, under_way.forward_pass = under_way.forward_pass, None
        assert forward_pass is not None
        at_cut, gradients = self.server.backward(forward_pass, under_way.gradient, self.name)
        self.server.step(gradients, self.name)
        return self.at_cut(at_cut)

    # Its parts -----------------------------------------------------------------------------------

    def _arrived(self, upload: Upload) -> SmashedBatch:
        """Checks a training batch.

        Raises:
            WireError: it is not what comes next.
        """
        batch, due = self._checked(upload), len(self.losses)
        if upload.batch != due or self.answer is not None:
            raise WireError(f"{self.name}: batch: expected {due}, got {upload.batch}; refused")
        if self.batch is not None:
            raise WireError(f"{self.name}: batch: expected the gradient of {due}, got it again; refused")
        packed = upload.smashed if isinstance(upload.smashed, Packed) else None
        self.batch = BatchUnderWay(replace(batch, smashed=batch.smashed.detach()), packed)
        self.bytes_up = self.bytes_down = 0
        self._crossed(up=upload.smashed)
        if upload.labels is not None:
            self._crossed(up=upload.labels)
        return batch

    def _checked(self, upload: Upload) -> SmashedBatch:
        """Decodes a batch and checks its form.

        Raises:
            WireError: names the client and the field.
        """
        server, asked = self.server, self.turn
        training = asked.kind is TurnKind.TRAIN
        smashed = server.packer.unpack(upload.smashed, server.smashed, self.name, "smashed")
        decoded = replace(upload, smashed=smashed)
        check_upload(decoded, self.name, server.smashed, server.labels if training else None, training)
        return SmashedBatch(smashed, upload.labels, (self.name,), asked.round, upload.batch, upload.phase)

    def output(self, output: Tensor) -> Payload:
        """What the top made of a batch, as it goes down."""
        under_way = self.under_way
        packed = self.server.packer.pack(output, "output", *self._place())
        under_way.answered = packed if isinstance(packed, Packed) else None
        self._crossed(down=packed)
        return packed

    def _place(self) -> BatchAddress:
        """What a draw for the batch that is under way is named by."""
        return BatchAddress(self.turn.round, self.name, self.under_way.batch.batch)

    def _may_step(self, batch: int, loss: float) -> BatchUnderWay:
        """The uploaded batch, if it may end with this loss.

        Raises:
            WireError: it was not uploaded.
            DivergedError: the loss is not finite.
        """
        if self.batch is None or self.batch.batch.batch != batch:
            raise WireError(f"{self.name}: step: batch {batch!r:.40} was not uploaded; refused")
        self.check_loss(loss)
        return self.batch

    def check_loss(self, loss: float) -> None:
        """Takes the task loss of the batch that is under way.

        Raises:
            DivergedError: the loss is not finite.
        """
        if not isinstance(loss, float) or not math.isfinite(loss):
            raise DivergedError(
                f"{self.name}: round {self.turn.round}, batch {self.under_way.batch.batch}: the loss is {loss}; "
                "start a new run with a lower --lr; the last good checkpoint is kept"
            )
        self.under_way.loss = loss

    def at_cut(self, gradient: Tensor) -> Payload:
        """The gradient at the cut as it goes down; the step is written down."""
        done, place = self.under_way, self._place()
        self.record()
        payload = self.server.packer.pack(gradient, "gradient", *place, of=done.uploaded)
        self._crossed(down=payload)
        return payload

    def record(self) -> None:
        """Writes a step down, now that it is done."""
        done, self.batch = self.under_way, None
        images = len(done.batch.smashed)
        self.losses.append(done.loss)
        self.num_images += images
        self.log.step_done(self.turn, done.loss, images)

    def _crossed(self, *, up: Payload | None = None, down: Payload | None = None) -> None:
        """Counts what crosses in a client's step; kept is the largest step."""
        totals = self.run_state.totals
        self.bytes_up += 0 if up is None else up.nbytes
        self.bytes_down += 0 if down is None else down.nbytes
        totals.bytes_up = max(totals.bytes_up, self.bytes_up)
        totals.bytes_down = max(totals.bytes_down, self.bytes_down)
