"""The turn that is being played: what its client may do in it, what it has come to, and undoing it.

Every method runs under the coordinator's lock.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from runtime.compression import Payload
from runtime.errors import DivergedError, WireError
from runtime.handoff import MAX_BYTES, handoff_digest
from runtime.hooks import SmashedBatch
from runtime.journal import Journal
from runtime.members import Seat
from runtime.observers import NoRecorder, Recorder, Watcher
from runtime.parts import Parts
from runtime.randomness import EVALUATION_BATCH, part_place
from runtime.scheduler import Turn, TurnKind
from runtime.wire import (
    LossReply,
    OutputGradient,
    Packed,
    Report,
    SealedHandoff,
    StepDone,
    StepReply,
    TensorSpec,
    Upload,
    check_gradient,
    check_handoff,
    check_scores,
    check_upload,
    check_weights,
)

log = logging.getLogger(__name__)


@dataclass
class Running:
    """The turn that is being played and what it has come to so far; ``heard`` of its client, about it, is a time.

    ``parts`` are of the batch that waits for its step; so are the bytes.
    """

    turn: Turn
    started: float
    heard: float
    losses: list[float] = field(default_factory=list)
    num_images: int = 0
    parts: Parts = field(default_factory=Parts)
    bytes_up: int = 0
    bytes_down: int = 0

    def place(self, batch: int, part: int = 0) -> tuple[int | str, ...]:
        """What a draw for one of the turn's batches, or a part of it, is named by."""
        return part_place((self.turn.round, self.turn.client, batch), part)


class Turns:
    """Plays one turn at a time.

    Args:
        journal: what counted, and the server that computes.
        watcher: is told the progress.
    """

    def __init__(self, journal: Journal, watcher: Watcher) -> None:
        self.journal = journal
        self.recorder: Recorder = NoRecorder()
        self.running: Running | None = None
        self._watcher = watcher

    def grant(self, seat: Seat, turn: Turn) -> None:
        """Gives ``turn`` to the member, who waits for it."""
        now = time.monotonic()
        self.running = Running(turn, started=now, heard=now)
        seat.uploaded, seat.num_stepped, seat.last_seen = (0, -1), 0, now
        num_batches = seat.hello.num_batches if seat.hello is not None else 0
        self._watcher.turn_started(turn.round, turn.number, turn.client, turn.kind, num_batches)
        seat.answer(turn)

    def of(self, seat: Seat) -> Running | None:
        """The running turn if it is this member's."""
        is_its = self.running is not None and self.running.turn.client == seat.name
        return self.running if is_its else None

    def newest_handoff(self, seat: Seat) -> SealedHandoff | None:
        """What the last counted training turn sealed."""
        running = self.of(seat)
        if running is not None:
            running.heard = time.monotonic()
        return self.journal.handoff

    def forward(self, seat: Seat, upload: Upload) -> LossReply | Tensor:
        """One training batch on the client's own graph; see `Server.forward`."""
        server = self.journal.server
        if not server.packer.differentiable:
            raise WireError(f"{seat.name}: forward: no graph crosses in {server.packer.wire}; refused")
        if upload.parts != 1:
            raise WireError(f"{seat.name}: forward: a graph crosses whole, not in parts; refused")
        answer = self._train(seat, upload, server.forward)
        # The gradients cross in autograd's own messages, each in the form of what it is the gradient of.
        if isinstance(answer, LossReply):
            self._crossed(down=upload.smashed)
            return answer
        assert isinstance(answer, Tensor)
        self._crossed(up=answer, down=upload.smashed)
        return answer

    def train(self, seat: Seat, upload: Upload) -> StepReply | Payload:
        """One explicit step, or its forward half where labels stay at home; see `Server.forward_apart`.

        Raises:
            DivergedError: the loss is not finite.
        """
        answer = self._train(seat, upload, self._forward_apart)
        if not isinstance(answer, LossReply):
            return answer
        done = StepDone(upload.turn, upload.batch, answer.task_loss)
        running = self._may_step(seat, done)
        running.parts.loss += answer.task_loss
        return StepReply(answer.loss, answer.task_loss, self._step_apart(seat, running, done, None))

    def backward(self, seat: Seat, message: OutputGradient) -> Payload:
        """The other half of an explicit step: answers with the gradient at the cut, and steps the top with the last
        part of a batch.

        Raises:
            DivergedError: the loss is not finite.
        """
        done = StepDone(message.turn, message.batch, message.loss)
        running = self._may_step(seat, done)
        parts = running.parts
        if not parts.pending:
            raise WireError(f"{seat.name}: backward: no forward waits for it; refused")
        if not parts.complete or message.part != parts.done:
            raise WireError(
                f"{seat.name}: backward: part: expected {parts.done} when all {parts.number} have come, got "
                f"{message.part!r:.40} when {parts.came} have; refused"
            )
        output, answered = parts.pending[0].root, parts.answered[message.part]
        spec, packer = TensorSpec.like(output), self.journal.server.packer
        gradient = packer.unpack(message.gradient, spec, seat.name, "gradient", of=answered)
        check_gradient(gradient, output, seat.name)
        self._crossed(up=message.gradient)
        parts.loss = message.loss
        return self._step_apart(seat, running, done, gradient)

    def is_early(self, seat: Seat, message: Upload | OutputGradient) -> bool:
        """Whether ``message`` belongs behind one that this member's turn still waits for."""
        running = self.of(seat)
        its = running is not None and running.turn.number == message.turn
        return running is not None and its and running.parts.is_early(message, seat.num_stepped)

    def predict(self, seat: Seat, upload: Upload) -> Payload:
        """One evaluation batch; see `Server.predict`."""
        running, server = self._held(seat, upload.turn, TurnKind.EVALUATE), self.journal.server
        if upload.parts != 1:
            raise WireError(f"{seat.name}: predict: images are evaluated whole, not in parts; refused")
        output = server.predict(self._checked(seat, running.turn, upload))
        place = running.place(EVALUATION_BATCH - upload.batch)
        return server.packer.pack(output, f"output/{upload.phase}", *place)

    def stepped(self, seat: Seat, done: StepDone, gradients: Mapping[Tensor, Tensor]) -> None:
        """Steps the top after a backward.

        Raises:
            DivergedError: the loss is not finite.
        """
        running = self._may_step(seat, done)
        if running.parts.pending or not running.parts.complete:
            raise WireError(f"{seat.name}: step: its batch is not whole, or came in explicit halves; refused")
        self._step(seat, running, done.loss, gradients)

    def commit(self, seat: Seat, handoff: SealedHandoff) -> None:
        """Counts a training turn and keeps its hand-off; the caller brings that to the disk."""
        check_handoff(handoff, seat.name, MAX_BYTES)
        running, journal = self._held(seat, handoff.turn, TurnKind.TRAIN), self.journal
        if handoff.previous != handoff_digest(journal.handoff):
            raise WireError(f"{seat.name}: handoff.previous: it does not follow the newest hand-off; refused")
        if not running.losses:
            raise WireError(f"{seat.name}: a turn without a step cannot be committed; refused")
        if running.parts.came:
            raise WireError(f"{seat.name}: a turn with a batch half done cannot be committed; refused")
        top = journal.server.top.state_dict().values()
        check_weights(top, seat.name, f"round {running.turn.round}, the top")
        journal.handoff = handoff
        journal.train_loss[seat.name] = sum(running.losses) / len(running.losses)
        journal.totals.train_images += running.num_images
        journal.totals.train_seconds += time.monotonic() - running.started
        journal.ledger.count(running.turn, len(running.losses))
        self.running = None
        self._watcher.turn_done()

    def report(self, seat: Seat, report: Report) -> None:
        """Counts an evaluation turn."""
        turn, journal = self._held(seat, report.turn, TurnKind.EVALUATE).turn, self.journal
        scores = check_scores(report.scores, seat.name)
        journal.scores[turn.client] = scores
        journal.ledger.count(turn, 0)
        for phase, values in scores.items():
            self.recorder.scores(turn.step, turn.round, turn.number, turn.client, phase, values)
            self._watcher.scores(turn.client, phase, values)
        self.running = None
        self._watcher.turn_done()

    def roll_back(self, reason: str) -> None:
        """Undoes the running turn whole."""
        if self.running is None:
            return
        turn, self.running = self.running.turn, None
        self.journal.roll_back()
        self.recorder.event("rolled_back", turn=turn.number, client=turn.client, reason=reason)
        log.warning("turn %d of %s was rolled back: %s", turn.number, turn.client, reason)
        self._watcher.client_state(turn.client, "rolled back")

    def _held(self, seat: Seat, number: int, kind: TurnKind) -> Running:
        running = self.running
        turn = None if running is None else running.turn
        if (
            running is None
            or turn is None
            or (turn.client, turn.number, turn.kind) != (seat.name, number, kind)
        ):
            what = "no turn" if turn is None else f"turn {turn.number} ({turn.kind}) of {turn.client}"
            raise WireError(f"{seat.name}: {kind} in turn {number!r:.40}, but {what} is running; refused")
        running.heard = time.monotonic()
        return running

    def _train(
        self, seat: Seat, upload: Upload, forward: Callable[..., LossReply | Tensor]
    ) -> LossReply | Payload:
        running, server = self._held(seat, upload.turn, TurnKind.TRAIN), self.journal.server
        batch = self._checked(seat, running.turn, upload)
        if upload.batch != seat.num_stepped:
            raise WireError(f"{seat.name}: batch: expected {seat.num_stepped}, got {upload.batch}; refused")
        parts, images = running.parts, len(batch.smashed)
        labels = parts.take(upload, images, server.microbatches, server.smashed.max_batch, seat.name)
        seat.uploaded = (running.turn.number, upload.batch)
        if upload.part == 0:
            running.bytes_up = running.bytes_down = 0
        parts.uploaded.append(upload.smashed if isinstance(upload.smashed, Packed) else None)
        self._crossed(up=upload.smashed)
        if upload.labels is not None:
            self._crossed(up=upload.labels)
        whole = parts.labels if parts.number > 1 else None
        answer = forward(
            replace(batch, labels=labels), seat.hello.class_weights if seat.hello else None, whole
        )
        if isinstance(answer, LossReply):
            return answer
        packed = server.packer.pack(answer, "output", *running.place(upload.batch, upload.part))
        parts.answered.append(packed if isinstance(packed, Packed) else None)
        self._crossed(down=packed)
        return packed

    def _forward_apart(self, *batch: Any) -> LossReply | Tensor:
        answer, pending = self.journal.server.forward_apart(*batch)
        assert self.running is not None
        self.running.parts.pending.append(pending)
        return answer

    def _step_apart(self, seat: Seat, running: Running, done: StepDone, of_output: Tensor | None) -> Payload:
        server, parts = self.journal.server, running.parts
        place, of = running.place(done.batch, parts.done), parts.uploaded[parts.done]
        at_cut, gradients = server.backward(parts.pending.popleft(), of_output)
        if parts.add(gradients):
            self._step(seat, running, parts.loss, parts.gradients)
        else:
            server.attack.step()  # to which a part is a batch of its own
        payload = server.packer.pack(at_cut, "gradient", *place, of=of)
        self._crossed(down=payload)
        return payload

    def _may_step(self, seat: Seat, done: StepDone) -> Running:
        running = self._held(seat, done.turn, TurnKind.TRAIN)
        if seat.uploaded != (done.turn, done.batch):
            raise WireError(f"{seat.name}: step: batch {done.batch!r:.40} was not uploaded; refused")
        if not isinstance(done.loss, float) or not math.isfinite(done.loss):
            raise DivergedError(
                f"{seat.name}: round {running.turn.round}, batch {done.batch}: the loss is {done.loss}; "
                "start a new run with a lower --lr; the last good checkpoint is kept"
            )
        return running

    def _step(self, seat: Seat, running: Running, loss: float, gradients: Mapping[Tensor, Tensor]) -> None:
        turn, images = running.turn, running.parts.num_images
        self.journal.server.step(gradients)
        seat.uploaded, seat.num_stepped = (0, -1), seat.num_stepped + 1
        running.parts = Parts()
        running.losses.append(loss)
        running.num_images += images
        step = turn.step + len(running.losses)
        self.recorder.train_step(step, turn.round, turn.number, turn.client, loss)
        self._watcher.batch_done(loss, images)

    def _checked(self, seat: Seat, turn: Turn, upload: Upload) -> SmashedBatch:
        server = self.journal.server
        training = turn.kind is TurnKind.TRAIN
        smashed = server.packer.unpack(upload.smashed, server.smashed, seat.name, "smashed")
        decoded = replace(upload, smashed=smashed)
        check_upload(decoded, seat.name, server.smashed, server.labels if training else None, training)
        return SmashedBatch(
            smashed, upload.labels, turn.client, turn.round, upload.batch, upload.phase, upload.part
        )

    def _crossed(self, *, up: Payload | None = None, down: Payload | None = None) -> None:
        """Counts what crosses in the running step; kept is the largest step."""
        running, totals = self.running, self.journal.totals
        assert running is not None
        running.bytes_up += 0 if up is None else up.nbytes
        running.bytes_down += 0 if down is None else down.nbytes
        totals.bytes_up = max(totals.bytes_up, running.bytes_up)
        totals.bytes_down = max(totals.bytes_down, running.bytes_down)
