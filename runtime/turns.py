"""The turn that is being played: what its client may do in it, what it has come to, and undoing it.

Every method runs under the coordinator's lock.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from runtime.errors import DivergedError, WireError
from runtime.handoff import MAX_BYTES, handoff_digest
from runtime.hooks import SmashedBatch
from runtime.journal import Journal
from runtime.members import Seat
from runtime.observers import NoRecorder, Recorder, Watcher
from runtime.scheduler import Turn, TurnKind
from runtime.wire import (
    LossReply,
    OutputGradient,
    Report,
    SealedHandoff,
    StepDone,
    StepReply,
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
    """The turn that is being played and what it has come to so far; ``heard`` of its client, about it, is a time."""

    turn: Turn
    started: float
    heard: float
    losses: list[float] = field(default_factory=list)
    batch_images: int = 0
    num_images: int = 0


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
        return self._train(seat, upload, self.journal.server.forward)

    def train(self, seat: Seat, upload: Upload) -> StepReply | Tensor:
        """One explicit step, or its forward half where labels stay at home; see `Server.forward_apart`.

        Raises:
            DivergedError: the loss is not finite.
        """
        answer = self._train(seat, upload, self.journal.server.forward_apart)
        if isinstance(answer, Tensor):
            return answer
        gradient = self._step_apart(seat, StepDone(upload.turn, upload.batch, answer.task_loss), None)
        return StepReply(answer.loss, answer.task_loss, gradient)

    def backward(self, seat: Seat, message: OutputGradient) -> Tensor:
        """The other half of an explicit step: steps the top and answers with the gradient at the cut.

        Raises:
            DivergedError: the loss is not finite.
        """
        output = self.journal.server.pending
        if output is None:
            raise WireError(f"{seat.name}: backward: no forward waits for it; refused")
        check_gradient(message.gradient, output, seat.name)
        return self._step_apart(seat, StepDone(message.turn, message.batch, message.loss), message.gradient)

    def predict(self, seat: Seat, upload: Upload) -> Tensor:
        """One evaluation batch; see `Server.predict`."""
        running = self._held(seat, upload.turn, TurnKind.EVALUATE)
        return self.journal.server.predict(self._checked(seat, running.turn, upload))

    def stepped(self, seat: Seat, done: StepDone, gradients: Mapping[Tensor, Tensor]) -> None:
        """Steps the top after a backward.

        Raises:
            DivergedError: the loss is not finite.
        """
        self._step(seat, self._may_step(seat, done), done, gradients)

    def commit(self, seat: Seat, handoff: SealedHandoff) -> None:
        """Counts a training turn and keeps its hand-off; the caller brings that to the disk."""
        check_handoff(handoff, seat.name, MAX_BYTES)
        running, journal = self._held(seat, handoff.turn, TurnKind.TRAIN), self.journal
        if handoff.previous != handoff_digest(journal.handoff):
            raise WireError(f"{seat.name}: handoff.previous: it does not follow the newest hand-off; refused")
        if not running.losses:
            raise WireError(f"{seat.name}: a turn without a step cannot be committed; refused")
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
    ) -> LossReply | Tensor:
        running = self._held(seat, upload.turn, TurnKind.TRAIN)
        batch = self._checked(seat, running.turn, upload)
        if upload.batch != seat.num_stepped:
            raise WireError(f"{seat.name}: batch: expected {seat.num_stepped}, got {upload.batch}; refused")
        seat.uploaded = (running.turn.number, upload.batch)
        running.batch_images = len(batch.smashed)
        answer = forward(batch, seat.hello.class_weights if seat.hello else None)
        self._measure(batch, answer)
        return answer

    def _step_apart(self, seat: Seat, done: StepDone, of_output: Tensor | None) -> Tensor:
        running = self._may_step(seat, done)
        at_cut, gradients = self.journal.server.backward(of_output)
        self._step(seat, running, done, gradients)
        return at_cut

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

    def _step(self, seat: Seat, running: Running, done: StepDone, gradients: Mapping[Tensor, Tensor]) -> None:
        turn = running.turn
        self.journal.server.step(gradients)
        seat.uploaded, seat.num_stepped = (0, -1), seat.num_stepped + 1
        running.losses.append(done.loss)
        running.num_images += running.batch_images
        step = turn.step + len(running.losses)
        self.recorder.train_step(step, turn.round, turn.number, turn.client, done.loss)
        self._watcher.batch_done(done.loss, running.batch_images)

    def _checked(self, seat: Seat, turn: Turn, upload: Upload) -> SmashedBatch:
        server = self.journal.server
        training = turn.kind is TurnKind.TRAIN
        check_upload(upload, seat.name, server.smashed, server.labels if training else None, training)
        return SmashedBatch(
            upload.smashed, upload.labels, turn.client, turn.round, upload.batch, upload.phase
        )

    def _measure(self, batch: SmashedBatch, answer: LossReply | Tensor) -> None:
        up = down = batch.smashed.nbytes
        if isinstance(answer, Tensor):  # the top's output goes down and its gradient comes up
            up, down = up + answer.nbytes, down + answer.nbytes
        elif batch.labels is not None:
            up += batch.labels.nbytes
        totals = self.journal.totals
        totals.bytes_up, totals.bytes_down = max(totals.bytes_up, up), max(totals.bytes_down, down)
