"""One training step at the server: what a client sent is checked, goes through the top, and is answered.

Every method runs under the coordinator's lock. Which client's batch goes through the top when is for a lane to say,
see ``together``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.futures import Future

from runtime.compression import Payload
from runtime.errors import DivergedError, SutureError, WireError
from runtime.hooks import SmashedBatch
from runtime.journal import Journal
from runtime.members import Seat
from runtime.observers import NoRecorder, Recorder, Watcher
from runtime.scheduler import Turn, TurnKind
from runtime.wire import (
    LossReply,
    OutputGradient,
    Packed,
    Refusal,
    SealedHandoff,
    StepDone,
    StepReply,
    TensorSpec,
    Upload,
    check_gradient,
    check_upload,
)


@dataclass
class Running:
    """One client's part in the turn that is being played, and what it has come to so far.

    Attributes:
        turn: what it was asked to do.
        started: when, a time.
        heard: when it was last heard of, about this turn; a time.
        losses: of its steps.
        batch_images: images of the batch at work.
        num_images: of all its steps.
        owed: whether the server owes it an answer: it waits for others and cannot be late.
        share: what it sealed at its end, where others train in the same turn.
        uploaded: of the batch that waits for its step, where it crossed packed; ``answered`` the same.
    """

    turn: Turn
    started: float
    heard: float
    losses: list[float] = field(default_factory=list)
    batch_images: int = 0
    num_images: int = 0
    owed: bool = False
    share: SealedHandoff | None = None
    uploaded: Packed | None = None
    answered: Packed | None = None
    bytes_up: int = 0
    bytes_down: int = 0

    def place(self, batch: int) -> tuple[int, str, int]:
        """What a draw for one of the turn's batches is named by."""
        return self.turn.round, self.turn.client, batch


@dataclass
class Work:
    """What a client asked to be computed, checked, and the future of its answer.

    Attributes:
        seat: the client's.
        running: its part in the turn.
        answer: takes what the client is to be told, a `Refusal` included.
        batch: on its way up.
        gradient: where labels stay at home, the other half: the gradient of what was answered.
        done: the step that it belongs to.
    """

    seat: Seat
    running: Running
    answer: Future[Any]
    batch: SmashedBatch | None = None
    gradient: Tensor | None = None
    done: StepDone | None = None

    def settle(self, value: Any) -> None:
        """Answers the client."""
        self.running.owed = False
        self.running.heard = self.seat.last_seen = time.monotonic()
        self.answer.set_result(value)

    def attempt(self, compute: Callable[[Work], Any]) -> None:
        """Answers with what ``compute`` makes of it, or with the error that it ends in."""
        try:
            value = compute(self)
        except SutureError as error:
            value = Refusal.of(error)
        self.settle(value)


class Steps:
    """See the module.

    Args:
        journal: whose server computes.
        watcher: is told the progress.
    """

    def __init__(self, journal: Journal, watcher: Watcher) -> None:
        self.journal = journal
        self.recorder: Recorder = NoRecorder()
        self.num_done = 0
        self._watcher = watcher

    # A step whole -------------------------------------------------------------------------------

    def train(self, work: Work) -> StepReply | Payload:
        """One explicit step, or its forward half where labels stay at home; see `Server.forward_apart`.

        Raises:
            DivergedError: the loss is not finite.
        """
        assert work.batch is not None
        answer = self.journal.server.forward_apart(work.batch, class_weights(work.seat))
        return self.output(work, answer) if not isinstance(answer, LossReply) else self._stepped(work, answer)

    def _stepped(self, work: Work, answer: LossReply) -> StepReply:
        done = self.done_with(work, answer)
        at_cut, gradients = self.journal.server.backward(work.seat.name, None)
        self.journal.server.step(work.seat.name, gradients)
        return StepReply(answer.loss, answer.task_loss, self.at_cut(work, done, at_cut))

    def backward(self, work: Work) -> Payload:
        """The other half of an explicit step: steps the top and answers with the gradient at the cut."""
        assert work.done is not None
        at_cut, gradients = self.journal.server.backward(work.seat.name, work.gradient)
        self.journal.server.step(work.seat.name, gradients)
        return self.at_cut(work, work.done, at_cut)

    # Its parts -----------------------------------------------------------------------------------

    def arrived(self, seat: Seat, running: Running, upload: Upload) -> SmashedBatch:
        """Checks a training batch.

        Raises:
            WireError: it is not what comes next.
        """
        batch = self.checked(seat, running.turn, upload)
        if upload.batch != seat.num_stepped or running.owed:
            raise WireError(f"{seat.name}: batch: expected {seat.num_stepped}, got {upload.batch}; refused")
        seat.uploaded = (running.turn.number, upload.batch)
        running.batch_images = len(batch.smashed)
        running.uploaded = upload.smashed if isinstance(upload.smashed, Packed) else None
        running.answered, running.bytes_up, running.bytes_down = None, 0, 0
        self.crossed(running, up=upload.smashed)
        if upload.labels is not None:
            self.crossed(running, up=upload.labels)
        return batch

    def gradient_arrived(
        self, seat: Seat, running: Running, message: OutputGradient, output: Tensor
    ) -> Tensor:
        """Checks the gradient of ``output``, which the server had answered with.

        Raises:
            WireError: it is none.
        """
        gradient = self.journal.server.packer.unpack(
            message.gradient, TensorSpec.like(output), seat.name, "gradient", of=running.answered
        )
        check_gradient(gradient, output, seat.name)
        self.crossed(running, up=message.gradient)
        checked: Tensor = gradient
        return checked

    def checked(self, seat: Seat, turn: Turn, upload: Upload) -> SmashedBatch:
        """Decodes a batch and checks its form.

        Raises:
            WireError: names the client and the field.
        """
        server = self.journal.server
        training = turn.kind is TurnKind.TRAIN
        smashed = server.packer.unpack(upload.smashed, server.smashed, seat.name, "smashed")
        decoded = replace(upload, smashed=smashed)
        check_upload(decoded, seat.name, server.smashed, server.labels if training else None, training)
        return SmashedBatch(smashed, upload.labels, turn.client, turn.round, upload.batch, upload.phase)

    def output(self, work: Work, output: Tensor) -> Payload:
        """What the top made of a batch, as it goes down."""
        running = work.running
        assert work.batch is not None
        packed = self.journal.server.packer.pack(output, "output", *running.place(work.batch.batch))
        running.answered = packed if isinstance(packed, Packed) else None
        self.crossed(running, down=packed)
        return packed

    def done_with(self, work: Work, answer: LossReply) -> StepDone:
        """The step that an answered loss ends.

        Raises:
            DivergedError: the loss is not finite.
        """
        assert work.batch is not None
        done = StepDone(work.running.turn.number, work.batch.batch, answer.task_loss)
        self.may_step(work.seat, work.running, done)
        return done

    def may_step(self, seat: Seat, running: Running, done: StepDone) -> None:
        """Raises unless the client's uploaded batch may end with this loss.

        Raises:
            WireError: it was not uploaded.
            DivergedError: the loss is not finite.
        """
        if seat.uploaded != (done.turn, done.batch):
            raise WireError(f"{seat.name}: step: batch {done.batch!r:.40} was not uploaded; refused")
        if not isinstance(done.loss, float) or not math.isfinite(done.loss):
            raise DivergedError(
                f"{seat.name}: round {running.turn.round}, batch {done.batch}: the loss is {done.loss}; "
                "start a new run with a lower --lr; the last good checkpoint is kept"
            )

    def at_cut(self, work: Work, done: StepDone, gradient: Tensor) -> Payload:
        """Writes the step down and gives the gradient at the cut as it goes down."""
        self.record(work.seat, work.running, done)
        server, running = self.journal.server, work.running
        payload = server.packer.pack(gradient, "gradient", *running.place(done.batch), of=running.uploaded)
        self.crossed(running, down=payload)
        return payload

    def stepped(
        self, seat: Seat, running: Running, done: StepDone, gradients: Mapping[Tensor, Tensor]
    ) -> None:
        """Steps the top after a backward of distributed autograd's."""
        self.may_step(seat, running, done)
        self.journal.server.step(seat.name, gradients)
        self.record(seat, running, done)

    def record(self, seat: Seat, running: Running, done: StepDone) -> None:
        """Writes a step down, now that it is done."""
        turn = running.turn
        seat.uploaded, seat.num_stepped = (0, -1), seat.num_stepped + 1
        running.losses.append(done.loss)
        running.num_images += running.batch_images
        self.num_done += 1
        self.recorder.train_step(turn.step + self.num_done, turn.round, turn.number, turn.client, done.loss)
        self._watcher.batch_done(turn.client, done.loss, running.batch_images)

    def crossed(self, running: Running, *, up: Payload | None = None, down: Payload | None = None) -> None:
        """Counts what crosses in a client's step; kept is the largest step."""
        totals = self.journal.totals
        running.bytes_up += 0 if up is None else up.nbytes
        running.bytes_down += 0 if down is None else down.nbytes
        totals.bytes_up = max(totals.bytes_up, running.bytes_up)
        totals.bytes_down = max(totals.bytes_down, running.bytes_down)


def class_weights(seat: Seat) -> Tensor | None:
    """weights_K of a client's loss where it is the server's."""
    return None if seat.hello is None else seat.hello.class_weights


def in_order(works: Mapping[str, Work], names: Sequence[str]) -> list[Work]:
    """``works`` in the order of ``names``, those that are there."""
    return [works[name] for name in names if name in works]
