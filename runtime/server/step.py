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

from suture.runtime.errors import DivergedError, SutureError, WireError
from suture.runtime.hooks import SmashedBatch
from suture.runtime.records.observers import NoRecorder, Recorder, Watcher
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.membership import Member
from suture.runtime.server.parts import Parts
from suture.runtime.server.run_state import RunState
from suture.runtime.training.randomness import BatchAddress, part_place
from suture.runtime.wire.checks import TensorSpec, check_gradient, check_upload
from suture.runtime.wire.compression import Payload
from suture.runtime.wire.messages import (
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
class Running:
    """One client's part in the turn that is being played, and what it has come to so far.

    Attributes:
        turn: what it was asked to do.
        started: when, a time.
        heard: when it was last heard of, about this turn; a time.
        went_on_at: when it last went on with it; a time.
        losses: of its steps.
        num_images: of all its steps.
        parts: of the batch that waits for its step.
        owed: what the server has yet to answer, perhaps after other clients: meanwhile this one cannot be late.
        share: what it sealed at its end, where others train in the same turn.
        has_fetched: whether it has asked for the hand-off.
        num_shares: shares that it has asked for, in order.
        bytes_up: of the batch that waits for its step; ``bytes_down`` the same.
    """

    turn: Turn
    started: float
    heard: float
    went_on_at: float
    losses: list[float] = field(default_factory=list)
    num_images: int = 0
    parts: Parts = field(default_factory=Parts)
    owed: Work | None = None
    share: SealedHandoff | None = None
    has_fetched: bool = False
    num_shares: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def went_on(self) -> None:
        """The client has gone on with its turn, which renews the turn's lease."""
        self.heard = self.went_on_at = time.monotonic()

    def place(self, batch: int, part: int = 0) -> tuple[int | str, ...]:
        """What a draw for one of the turn's batches, or a part of it, is named by."""
        return part_place(BatchAddress(self.turn.round, self.turn.client, batch), part)


@dataclass
class Work:
    """What a client asked to be computed, checked, and the future of its answer.

    Attributes:
        member: the client's.
        running: its part in the turn.
        answer: takes what the client is to be told, a `Refusal` included.
        batch: on its way up, or a part of it.
        whole: y_N of the whole batch where ``batch`` is a part and labels are shared.
        gradient: where labels stay at home, the other half: the gradient of what was answered.
        done: the step that it belongs to.
    """

    member: Member
    running: Running
    answer: Future[Any]
    batch: SmashedBatch | None = None
    whole: Tensor | None = None
    gradient: Tensor | None = None
    done: StepDone | None = None

    def settle(self, value: Any) -> None:
        """Answers the client."""
        self.running.owed = None
        self.running.heard = self.member.last_seen = time.monotonic()
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
        run_state: whose server computes.
        watcher: is told the progress.
    """

    def __init__(self, run_state: RunState, watcher: Watcher) -> None:
        self.run_state = run_state
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
        server = self.run_state.server
        answer, pending = server.forward_apart(work.batch, class_weights(work.member), work.whole)
        work.running.parts.pending.append(pending)
        if not isinstance(answer, LossReply):
            return self.output(work, answer)
        work.done = self.done_with(work, answer)
        return StepReply(answer.loss, answer.task_loss, self.backward(work))

    def backward(self, work: Work) -> Payload:
        """The other half of an explicit step: answers with the gradient at the cut, and steps the top with the last
        part of a batch.
        """
        assert work.done is not None
        server, parts, client = self.run_state.server, work.running.parts, work.member.name
        at_cut, gradients = server.backward(parts.pending.popleft(), work.gradient, client)
        part = parts.done
        is_last = parts.add(gradients)
        if is_last:
            server.step(parts.gradients, client)
        else:
            server.attack.step()  # to which a part is a batch of its own
        return self.at_cut(work, at_cut, part, is_last)

    # Its parts -----------------------------------------------------------------------------------

    def arrived(self, member: Member, running: Running, upload: Upload, answer: Future[Any]) -> Work:
        """Checks a training batch, or a part of one.

        Raises:
            WireError: it is not what comes next.
        """
        server, parts = self.run_state.server, running.parts
        batch = self.checked(member, running.turn, upload)
        if upload.batch != member.num_stepped or running.owed is not None:
            raise WireError(
                f"{member.name}: batch: expected {member.num_stepped}, got {upload.batch}; refused"
            )
        most, images = server.microbatches, len(batch.smashed)
        labels = parts.take(upload, images, most, server.smashed.max_batch, member.name)
        member.uploaded = (running.turn.number, upload.batch)
        if upload.part == 0:
            running.bytes_up = running.bytes_down = 0
        parts.uploaded.append(upload.smashed if isinstance(upload.smashed, Packed) else None)
        self.crossed(running, up=upload.smashed)
        if upload.labels is not None:
            self.crossed(running, up=upload.labels)
        whole = parts.labels if parts.number > 1 else None
        return Work(member, running, answer, replace(batch, labels=labels), whole)

    def gradient_arrived(
        self, member: Member, running: Running, message: OutputGradient, answer: Future[Any]
    ) -> Work:
        """Checks the gradient of an output that the server had answered with.

        Raises:
            WireError: it is none, or not the one that is due.
            DivergedError: the loss beside it is not finite.
        """
        done, parts = StepDone(message.turn, message.batch, message.loss), running.parts
        self.may_step(member, running, done)
        if not parts.pending or running.owed is not None:
            raise WireError(f"{member.name}: backward: no forward waits for it; refused")
        if not parts.complete or message.part != parts.done:
            raise WireError(
                f"{member.name}: backward: part: expected {parts.done} when all {parts.number} have come, got "
                f"{message.part!r:.40} when {parts.came} have; refused"
            )
        output, answered = parts.pending[0].root, parts.answered[message.part]
        spec, packer = TensorSpec.like(output), self.run_state.server.packer
        gradient = packer.unpack(message.gradient, spec, member.name, "gradient", of=answered)
        check_gradient(gradient, output, member.name)
        self.crossed(running, up=message.gradient)
        parts.loss = message.loss
        return Work(member, running, answer, gradient=gradient, done=done)

    def checked(self, member: Member, turn: Turn, upload: Upload) -> SmashedBatch:
        """Decodes a batch and checks its form.

        Raises:
            WireError: names the client and the field.
        """
        server = self.run_state.server
        training = turn.kind is TurnKind.TRAIN
        smashed = server.packer.unpack(upload.smashed, server.smashed, member.name, "smashed")
        decoded = replace(upload, smashed=smashed)
        check_upload(decoded, member.name, server.smashed, server.labels if training else None, training)
        return SmashedBatch(
            smashed, upload.labels, turn.client, turn.round, upload.batch, upload.phase, upload.part
        )

    def output(self, work: Work, output: Tensor) -> Payload:
        """What the top made of a batch, as it goes down."""
        running, batch = work.running, work.batch
        assert batch is not None
        packed = self.run_state.server.packer.pack(output, "output", *running.place(batch.batch, batch.part))
        running.parts.answered.append(packed if isinstance(packed, Packed) else None)
        self.crossed(running, down=packed)
        return packed

    def done_with(self, work: Work, answer: LossReply) -> StepDone:
        """The step that an answered loss belongs to.

        Raises:
            DivergedError: the loss is not finite.
        """
        assert work.batch is not None
        done = StepDone(work.running.turn.number, work.batch.batch, answer.task_loss)
        self.may_step(work.member, work.running, done)
        work.running.parts.loss += answer.task_loss
        return done

    def may_step(self, member: Member, running: Running, done: StepDone) -> None:
        """Raises unless the client's uploaded batch may end with this loss.

        Raises:
            WireError: it was not uploaded.
            DivergedError: the loss is not finite.
        """
        if member.uploaded != (done.turn, done.batch):
            raise WireError(f"{member.name}: step: batch {done.batch!r:.40} was not uploaded; refused")
        if not isinstance(done.loss, float) or not math.isfinite(done.loss):
            raise DivergedError(
                f"{member.name}: round {running.turn.round}, batch {done.batch}: the loss is {done.loss}; "
                "start a new run with a lower --lr; the last good checkpoint is kept"
            )

    def at_cut(self, work: Work, gradient: Tensor, part: int = 0, is_last: bool = True) -> Payload:
        """The gradient at the cut as it goes down; with the last part of a batch its step is written down."""
        running = work.running
        assert work.done is not None
        place, of = running.place(work.done.batch, part), running.parts.uploaded[part]
        if is_last:
            self.record(work.member, running, running.parts.loss)
        payload = self.run_state.server.packer.pack(gradient, "gradient", *place, of=of)
        self.crossed(running, down=payload)
        return payload

    def stepped(
        self, member: Member, running: Running, done: StepDone, gradients: Mapping[Tensor, Tensor]
    ) -> None:
        """Steps the top after a backward of distributed autograd's.

        Raises:
            WireError: its batch is not whole.
            DivergedError: the loss is not finite.
        """
        self.may_step(member, running, done)
        if running.parts.pending or not running.parts.complete:
            raise WireError(
                f"{member.name}: step: its batch is not whole, or came in explicit halves; refused"
            )
        self.run_state.server.step(gradients, member.name)
        self.record(member, running, done.loss)

    def record(self, member: Member, running: Running, loss: float) -> None:
        """Writes a step down, now that it is done."""
        turn, images = running.turn, running.parts.num_images
        member.uploaded, member.num_stepped = (0, -1), member.num_stepped + 1
        running.parts = Parts()
        running.losses.append(loss)
        running.num_images += images
        self.num_done += 1
        step = turn.step + self.num_done
        self.recorder.train_step(step, turn.round, turn.number, turn.client, loss, images)
        self._watcher.batch_done(turn.client, loss, images)

    def crossed(self, running: Running, *, up: Payload | None = None, down: Payload | None = None) -> None:
        """Counts what crosses in a client's step; kept is the largest step."""
        totals = self.run_state.totals
        running.bytes_up += 0 if up is None else up.nbytes
        running.bytes_down += 0 if down is None else down.nbytes
        totals.bytes_up = max(totals.bytes_up, running.bytes_up)
        totals.bytes_down = max(totals.bytes_down, running.bytes_down)


def class_weights(member: Member) -> Tensor | None:
    """weights_K of a client's loss where it is the server's."""
    return None if member.hello is None else member.hello.class_weights


def in_order(works: Mapping[str, Work], names: Sequence[str]) -> list[Work]:
    """``works`` in the order of ``names``, those that are there."""
    return [works[name] for name in names if name in works]
