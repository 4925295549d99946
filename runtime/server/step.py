"""One training step at the server: what a client sent is checked, goes through the top, and is answered.

Every method runs under the coordinator's lock. Which client's batch goes through the top when is for a queue to say,
see ``step_order``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from suture.runtime.errors import DivergedError, WireError
from suture.runtime.hooks import SmashedBatch
from suture.runtime.records.observers import NoRecorder, Recorder, Watcher
from suture.runtime.scheduler import TurnKind
from suture.runtime.server.client_turn import BatchUnderWay, ClientTurn
from suture.runtime.server.run_state import RunState
from suture.runtime.wire.checks import TensorSpec, check_gradient, check_upload
from suture.runtime.wire.compression import Payload
from suture.runtime.wire.messages import LossReply, OutputGradient, Packed, StepDone, StepReply, Upload


class Steps:
    """Computes the steps of the turn that is being played, and writes them down.

    Args:
        run_state: whose server computes.
        watcher: is told the progress.
    """

    def __init__(self, run_state: RunState, watcher: Watcher) -> None:
        self.run_state = run_state
        self.server = run_state.server
        self.recorder: Recorder = NoRecorder()
        self.num_done = 0
        self._watcher = watcher

    # A step whole -------------------------------------------------------------------------------

    def train(self, turn: ClientTurn) -> StepReply | Payload:
        """One explicit step, or its forward half where labels stay at home; see `ServerModel.forward_apart`.

        Raises:
            DivergedError: the loss is not finite.
        """
        under_way = turn.under_way
        answer, under_way.forward_pass = self.server.forward_apart(under_way.batch, turn.class_weights)
        if not isinstance(answer, LossReply):
            return self.output(turn, answer)
        self.check_loss(turn, answer.task_loss)
        return StepReply(answer.loss, answer.task_loss, self.backward(turn))

    def backward(self, turn: ClientTurn) -> Payload:
        """The other half of an explicit step: answers with the gradient at the cut, and steps the top."""
        under_way = turn.under_way
        forward_pass, under_way.forward_pass = under_way.forward_pass, None
        assert forward_pass is not None
        at_cut, gradients = self.server.backward(forward_pass, under_way.gradient, turn.name)
        self.server.step(gradients, turn.name)
        return self.at_cut(turn, at_cut)

    # Its parts -----------------------------------------------------------------------------------

    def arrived(self, turn: ClientTurn, upload: Upload) -> SmashedBatch:
        """Checks a training batch.

        Raises:
            WireError: it is not what comes next.
        """
        batch, name, due = self.checked(turn, upload), turn.name, len(turn.losses)
        if upload.batch != due or turn.answer is not None:
            raise WireError(f"{name}: batch: expected {due}, got {upload.batch}; refused")
        if turn.batch is not None:
            raise WireError(f"{name}: batch: expected the gradient of {due}, got it again; refused")
        packed = upload.smashed if isinstance(upload.smashed, Packed) else None
        turn.batch = BatchUnderWay(replace(batch, smashed=batch.smashed.detach()), packed)
        turn.bytes_up = turn.bytes_down = 0
        self.crossed(turn, up=upload.smashed)
        if upload.labels is not None:
            self.crossed(turn, up=upload.labels)
        return batch

    def gradient_arrived(self, turn: ClientTurn, message: OutputGradient) -> None:
        """Checks the gradient of an output that the server had answered with.

        Raises:
            WireError: it is none, or not the one that is due.
            DivergedError: the loss beside it is not finite.
        """
        under_way = self.may_step(turn, message.batch, message.loss)
        if under_way.forward_pass is None or turn.answer is not None:
            raise WireError(f"{turn.name}: backward: no forward waits for it; refused")
        output, answered = under_way.forward_pass.root, under_way.answered
        spec = TensorSpec.like(output)
        gradient = self.server.packer.unpack(message.gradient, spec, turn.name, "gradient", of=answered)
        under_way.gradient = check_gradient(gradient, output, turn.name)
        self.crossed(turn, up=message.gradient)

    def checked(self, turn: ClientTurn, upload: Upload) -> SmashedBatch:
        """Decodes a batch and checks its form.

        Raises:
            WireError: names the client and the field.
        """
        server, asked, name = self.server, turn.turn, turn.name
        training = asked.kind is TurnKind.TRAIN
        smashed = server.packer.unpack(upload.smashed, server.smashed, name, "smashed")
        decoded = replace(upload, smashed=smashed)
        check_upload(decoded, name, server.smashed, server.labels if training else None, training)
        return SmashedBatch(smashed, upload.labels, asked.client, asked.round, upload.batch, upload.phase)

    def output(self, turn: ClientTurn, output: Tensor) -> Payload:
        """What the top made of a batch, as it goes down."""
        under_way = turn.under_way
        packed = self.server.packer.pack(output, "output", *turn.place(under_way.batch.batch))
        under_way.answered = packed if isinstance(packed, Packed) else None
        self.crossed(turn, down=packed)
        return packed

    def may_step(self, turn: ClientTurn, batch: int, loss: float) -> BatchUnderWay:
        """The uploaded batch, if it may end with this loss.

        Raises:
            WireError: it was not uploaded.
            DivergedError: the loss is not finite.
        """
        if turn.batch is None or turn.batch.batch.batch != batch:
            raise WireError(f"{turn.name}: step: batch {batch!r:.40} was not uploaded; refused")
        self.check_loss(turn, loss)
        return turn.batch

    def check_loss(self, turn: ClientTurn, loss: float) -> None:
        """Takes the task loss of the batch that is under way.

        Raises:
            DivergedError: the loss is not finite.
        """
        if not isinstance(loss, float) or not math.isfinite(loss):
            raise DivergedError(
                f"{turn.name}: round {turn.turn.round}, batch {turn.under_way.batch.batch}: the loss is {loss}; "
                "start a new run with a lower --lr; the last good checkpoint is kept"
            )
        turn.under_way.loss = loss

    def at_cut(self, turn: ClientTurn, gradient: Tensor) -> Payload:
        """The gradient at the cut as it goes down; the step is written down."""
        done = turn.under_way
        self.record(turn)
        place = turn.place(done.batch.batch)
        payload = self.server.packer.pack(gradient, "gradient", *place, of=done.uploaded)
        self.crossed(turn, down=payload)
        return payload

    def stepped(self, turn: ClientTurn, done: StepDone, gradients: Mapping[Tensor, Tensor]) -> None:
        """Steps the top after a backward of distributed autograd's.

        Raises:
            WireError: its batch came in explicit halves.
            DivergedError: the loss is not finite.
        """
        if self.may_step(turn, done.batch, done.loss).forward_pass is not None:
            raise WireError(f"{turn.name}: step: its batch came in explicit halves; refused")
        self.server.step(gradients, turn.name)
        self.record(turn)

    def record(self, turn: ClientTurn) -> None:
        """Writes a step down, now that it is done."""
        asked, done, turn.batch = turn.turn, turn.under_way, None
        images = len(done.batch.smashed)
        turn.losses.append(done.loss)
        turn.num_images += images
        self.num_done += 1
        step = asked.step + self.num_done
        self.recorder.train_step(step, asked.round, asked.number, asked.client, done.loss, images)
        self._watcher.batch_done(asked.client, done.loss, images)

    def crossed(self, turn: ClientTurn, *, up: Payload | None = None, down: Payload | None = None) -> None:
        """Counts what crosses in a client's step; kept is the largest step."""
        totals = self.run_state.totals
        turn.bytes_up += 0 if up is None else up.nbytes
        turn.bytes_down += 0 if down is None else down.nbytes
        totals.bytes_up = max(totals.bytes_up, turn.bytes_up)
        totals.bytes_down = max(totals.bytes_down, turn.bytes_down)
