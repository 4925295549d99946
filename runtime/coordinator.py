"""The run at the server: whose turn it is and what counts. A turn is a transaction under a lease.

Every method is called through an endpoint, by any RPC thread, and runs under one lock. Between a turn's first
forward and its commit only the client that holds the turn is answered, so forward to step is one unit although
the lock is free in between.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from torch.futures import Future

from runtime.errors import (
    ERRORS,
    CheckpointError,
    ConfigError,
    DivergedError,
    StoppedError,
    SutureError,
    WireError,
)
from runtime.handoff import MAX_BYTES, handoff_digest, weights_digest
from runtime.hooks import SmashedBatch
from runtime.journal import Journal
from runtime.members import Members, Seat, natural
from runtime.observers import NoRecorder, NoWatcher, Recorder, Watcher
from runtime.scheduler import Turn, TurnKind
from runtime.wire import (
    Farewell,
    Hello,
    LossReply,
    OutputGradient,
    Refusal,
    Release,
    Report,
    SealedHandoff,
    StepDone,
    StepReply,
    Upload,
    Welcome,
    check_farewell,
    check_gradient,
    check_handoff,
    check_hello,
    check_scores,
    check_upload,
    check_weights,
)

log = logging.getLogger(__name__)

SECONDS_BETWEEN_KNOCKS = 0.5
Knock = Callable[[str, float], "Future[Tensor]"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the coordinator needs to know of a run.

    Attributes:
        run: the run's id, bound to every hand-off.
        run_dir: RUN, chosen by the server.
        lease: seconds after which a silent member is lost.
        release_top: whether clients that finish are handed the trained top.
    """

    run: str
    run_dir: Path
    lease: float
    release_top: bool = True


@dataclass
class _Running:
    """The turn that is being played and what it has come to so far."""

    turn: Turn
    started: float
    heard: float
    losses: list[float] = field(default_factory=list)
    batch_images: int = 0
    num_images: int = 0


class Coordinator:
    """See the module.

    Args:
        journal: what counted and the weights it led to.
        members: who is in.
        config: the run.
        watcher: is told the progress.
    """

    def __init__(
        self, journal: Journal, members: Members, config: RunConfig, watcher: Watcher | None = None
    ) -> None:
        self.journal = journal
        self.members = members
        self.config = config
        self._recorder: Recorder = NoRecorder()
        self._watcher: Watcher = NoWatcher() if watcher is None else watcher
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._begun = False
        self._finished_at: float | None = None
        self._running: _Running | None = None
        self._error: SutureError | None = None

    # Start and end -------------------------------------------------------------------------------

    def begin(self, resume: bool, open_recorder: Callable[[int | None], Recorder]) -> None:
        """Makes turn 0 the first state to go back to, or with ``resume`` goes on from the newest checkpoint.

        Args:
            resume: whether the folder holds this run's checkpoints.
            open_recorder: makes the recorder; is given the last step that counts, None for a new run.

        Raises:
            CheckpointError: nothing can be read (resume) or written.
        """
        turn = self.journal.begin(resume)
        self._recorder = open_recorder(None if turn is None else self.journal.ledger.step)
        if turn is not None:
            self._recorder.event("resumed", after_turn=turn, step=self.journal.ledger.step)

    def wait(self, knock: Knock | None = None) -> None:
        """Blocks until every member has left, or the run has stopped, watching the members meanwhile.

        Args:
            knock: asks a member's process for a sign of life, by RPC name and with so many seconds' patience; its
                future fails where there is none. None where members live in this process.

        Raises:
            SutureError: the run stopped early; the message says why.
        """
        while not self._ended.wait(min(SECONDS_BETWEEN_KNOCKS, self.config.lease / 10)):
            # What fails in here has stopped the run already, and its members are still to be told.
            with self._lock, suppress(SutureError):
                self._watch(knock)
        self.raise_if_stopped()

    def raise_if_stopped(self) -> None:
        """Raises what the run stopped with, if it stopped early."""
        if self._error is not None:
            raise self._error

    def weights_sha256(self) -> str:
        """Digest of the whole final model; the clients' parts as they reported them.

        Raises:
            WireError: two clients opened the same hand-off and report different weights.
        """
        farewells = [seat.farewell for seat in self.members if seat.farewell is not None]
        reported = {tuple(sorted(farewell.digests.items())) for farewell in farewells}
        if len(reported) != 1:
            raise WireError(f"the clients report {len(reported)} different digests of the same parts")
        return weights_digest(dict(reported.pop()) | {"top": self.journal.server.digest()})

    def trained_clients(self) -> list[str]:
        """The clients that have a counted turn, in the order in which people count."""
        return sorted({entry.client for entry in self.journal.ledger.entries}, key=natural)

    # Members -------------------------------------------------------------------------------------

    def admit(self, seat: Seat, hello: Hello, rpc_name: str) -> Welcome:
        """Takes a member in; see `Members.admit`."""
        with self._lock:
            labels = self.journal.server.labels
            try:
                check_hello(hello, None if labels is None else labels.below)
                self.members.admit(seat, hello, rpc_name)
            except SutureError as error:
                # The ranks of a run that was started as a whole are not replaced: it cannot begin any more.
                if self.members.door is None and not self.members.complete:
                    self.stop(error)
                else:
                    log.warning("refused: %s", error)
                raise
            log.info("%s joined with %d training images", seat.name, hello.num_images)
            self._recorder.event("joined", client=seat.name)
            self._watcher.client_state(seat.name, "waits")
            return Welcome(self.config.run, str(self.config.run_dir), self.config.lease)

    def ready(self, seat: Seat) -> Future[Turn | Refusal]:
        """A future of the client's next turn; kind wait after a while, so that a silent client is noticed."""
        with self._lock:
            self.members.heard(seat)
            answer: Future[Turn | Refusal] = Future()
            seat.waiting, seat.waiting_since = answer, time.monotonic()
            self._dispatch()
            return answer

    def finish(self, seat: Seat, farewell: Farewell) -> Release:
        """Takes a member's farewell and hands it the trained top."""
        with self._lock:
            self.members.heard(seat)
            if not self.journal.ledger.finished:
                raise WireError(f"{seat.name}: finish: the run is not over; refused")
            seat.farewell = check_farewell(farewell, seat.name)
            return self.journal.release() if self.config.release_top else Release({}, self.journal.best_round)

    def leave(self, seat: Seat) -> None:
        """Frees a seat; when the last has been given back the run has ended."""
        with self._lock:
            self.members.heard(seat)
            if self._error is None and seat.farewell is None:
                self._lose(seat, "it left")
            seat.left = True
            self._end_if_over()

    # Turns ---------------------------------------------------------------------------------------

    def newest_handoff(self, seat: Seat) -> SealedHandoff | None:
        """What the last counted training turn sealed."""
        with self._lock:
            self.members.heard(seat)
            if self._running is not None and self._running.turn.client == seat.name:
                self._running.heard = time.monotonic()
            return self.journal.handoff

    def forward(self, seat: Seat, upload: Upload) -> LossReply | Tensor:
        """One training batch on the client's own graph; see `Server.forward`."""
        with self._working(seat):
            return self._train(seat, upload, self.journal.server.forward)

    def train(self, seat: Seat, upload: Upload) -> StepReply | Tensor:
        """One explicit step, or its forward half where labels stay at home; see `Server.forward_apart`.

        Raises:
            DivergedError: the loss is not finite.
        """
        with self._working(seat):
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
        with self._working(seat):
            output = self.journal.server.pending
            if output is None:
                raise WireError(f"{seat.name}: backward: no forward waits for it; refused")
            check_gradient(message.gradient, output, seat.name)
            done = StepDone(message.turn, message.batch, message.loss)
            return self._step_apart(seat, done, message.gradient)

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

    def predict(self, seat: Seat, upload: Upload) -> Tensor:
        """One evaluation batch; see `Server.predict`."""
        with self._working(seat):
            running = self._held(seat, upload.turn, TurnKind.EVALUATE)
            return self.journal.server.predict(self._checked(seat, running.turn, upload))

    def stepped(self, seat: Seat, done: StepDone, gradients: Mapping[Tensor, Tensor]) -> None:
        """Steps the top after a backward.

        Raises:
            DivergedError: the loss is not finite.
        """
        with self._working(seat):
            self._step(seat, self._may_step(seat, done), done, gradients)

    def _may_step(self, seat: Seat, done: StepDone) -> _Running:
        running = self._held(seat, done.turn, TurnKind.TRAIN)
        if seat.uploaded != (done.turn, done.batch):
            raise WireError(f"{seat.name}: step: batch {done.batch!r:.40} was not uploaded; refused")
        if not isinstance(done.loss, float) or not math.isfinite(done.loss):
            raise DivergedError(
                f"{seat.name}: round {running.turn.round}, batch {done.batch}: the loss is {done.loss}; "
                "start a new run with a lower --lr; the last good checkpoint is kept"
            )
        return running

    def _step(
        self, seat: Seat, running: _Running, done: StepDone, gradients: Mapping[Tensor, Tensor]
    ) -> None:
        turn = running.turn
        self.journal.server.step(gradients)
        seat.uploaded, seat.num_stepped = (0, -1), seat.num_stepped + 1
        running.losses.append(done.loss)
        running.num_images += running.batch_images
        step = turn.step + len(running.losses)
        self._recorder.train_step(step, turn.round, turn.number, turn.client, done.loss)
        self._watcher.batch_done(done.loss, running.batch_images)

    def commit(self, seat: Seat, handoff: SealedHandoff) -> None:
        """Makes a training turn count: the hand-off is kept and everything is on the disk."""
        with self._working(seat):
            check_handoff(handoff, seat.name, MAX_BYTES)
            running, journal = self._held(seat, handoff.turn, TurnKind.TRAIN), self.journal
            if handoff.previous != handoff_digest(journal.handoff):
                raise WireError(
                    f"{seat.name}: handoff.previous: it does not follow the newest hand-off; refused"
                )
            if not running.losses:
                raise WireError(f"{seat.name}: a turn without a step cannot be committed; refused")
            check_weights(
                journal.server.top.state_dict().values(), seat.name, f"round {running.turn.round}, the top"
            )
            journal.handoff = handoff
            journal.train_loss[seat.name] = sum(running.losses) / len(running.losses)
            journal.totals.train_images += running.num_images
            journal.totals.train_seconds += time.monotonic() - running.started
            journal.ledger.count(running.turn, len(running.losses))
            self._running = None
            self._watcher.turn_done()
            self._save()
            self._dispatch()

    def report(self, seat: Seat, report: Report) -> None:
        """Makes an evaluation turn count."""
        with self._lock:
            turn, journal = self._held(seat, report.turn, TurnKind.EVALUATE).turn, self.journal
            scores = check_scores(report.scores, seat.name)
            journal.scores[turn.client] = scores
            journal.ledger.count(turn, 0)
            for phase, values in scores.items():
                self._recorder.scores(turn.step, turn.round, turn.number, turn.client, phase, values)
                self._watcher.scores(turn.client, phase, values)
            self._running = None
            self._watcher.turn_done()
            self._dispatch()

    def abort(self, seat: Seat, why: Refusal) -> None:
        """A client gives its turn up, which is rolled back. Where clients come and go the others go on without it;
        else the run stops, for the error would come again.
        """
        with self._lock:
            self.members.heard(seat)
            if self._running is None or self._running.turn.client != seat.name:
                raise WireError(f"{seat.name}: abort: it holds no turn to give up; refused")
            error = ERRORS.get(str(why.error), StoppedError)(str(why.message)[:1000])
            if self.members.door is not None:
                self._lose(seat, str(error))
                return
            self._roll_back(str(error))
            self.stop(error)

    def stop(self, error: SutureError) -> None:
        """Ends the run early: every member is told why."""
        with self._lock:
            self._error = self._error or error
            self._dispatch()
            self._end_if_over()

    @contextmanager
    def _working(self, seat: Seat) -> Iterator[None]:
        """Holds the lock for a call that computes or writes; nobody is lost for the time it kept them waiting."""
        with self._lock:
            began = time.monotonic()
            try:
                yield
            finally:
                took = time.monotonic() - began
                for other in self.members:
                    other.last_seen += took
                    other.waiting_since += took
                if self._running is not None:
                    self._running.heard += took
                seat.last_seen = time.monotonic()

    def _held(self, seat: Seat, number: int, kind: TurnKind) -> _Running:
        self.members.heard(seat)
        running = self._running
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

    # The order of turns --------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Grants the next turn if its client waits for it, or tells everyone that the run is over."""
        ledger = self.journal.ledger
        if self._error is not None:
            name = type(self._error).__name__
            self._answer_all(Turn(TurnKind.END, reason=str(self._error), error=name))
        elif self._running is None and self._may_begin():
            turn = ledger.next_turn(self.members.lost)
            while turn is None:
                # Evaluation changes no weights, so a round's evaluations are checkpointed together, at its end.
                if self.journal.closes_round():
                    self._save()
                if ledger.finished or not self.members.present():
                    break
                try:
                    ledger.start_round(self.members.present())
                except ConfigError as error:
                    self.stop(error)
                    return
                turn = ledger.next_turn(self.members.lost)
            if turn is not None:
                self._grant(turn)
            elif ledger.finished:
                self._answer_all(Turn(TurnKind.END, round=ledger.round, handoff=ledger.handoff))

    def _may_begin(self) -> bool:
        """Whether the run has begun; it begins once, and then goes on with whoever is present."""
        if not self._begun and self.members.complete:
            self._begun = True
            for name in self.journal.ledger.planned():
                if self.members.get(name) is None:  # it was in when the run was interrupted
                    self._miss(name, "it did not come back")
            self._recorder.event("begun", clients=self.members.present())
        return self._begun

    def _grant(self, turn: Turn) -> None:
        seat = self.members.get(turn.client)
        if seat is None or seat.waiting is None:
            return
        now = time.monotonic()
        self._running = _Running(turn, started=now, heard=now)
        seat.uploaded, seat.num_stepped, seat.last_seen = (0, -1), 0, now
        num_batches = seat.hello.num_batches if seat.hello is not None else 0
        self._watcher.turn_started(turn.round, turn.number, turn.client, turn.kind, num_batches)
        seat.answer(turn)

    def _answer_all(self, turn: Turn) -> None:
        for seat in self.members:
            seat.answer(turn)

    def _watch(self, knock: Knock | None = None) -> None:
        """Loses members that are gone or silent beyond the lease, and lets waiting ones ask again."""
        now = time.monotonic()
        for seat in self.members:
            if seat.left:
                continue
            if knock is not None and not _answers(seat, knock, self.config.lease):
                self._lose(seat, "its process is gone or does not answer")
            elif self._is_abandoned(seat, now):
                self._lose(seat, f"it did not go on with its turn for {self.config.lease:g} s")
            elif seat.waiting is not None and now - seat.waiting_since > self.config.lease / 4:
                seat.answer(Turn(TurnKind.WAIT))
            elif seat.waiting is None and now - seat.last_seen > self.config.lease:
                self._lose(seat, f"no word from it for {self.config.lease:g} s")
        if self.members.door is not None:  # the grace may be over
            self._dispatch()
            self._end_if_over()

    def _lose(self, seat: Seat, reason: str) -> None:
        seat.left, seat.waiting = True, None
        if self._running is not None and self._running.turn.client == seat.name:
            self._roll_back(reason)
        self._miss(seat.name, reason)
        if self.members.all_left and self._error is None and not self._has_been_taken_home():
            if self.members.door is None:
                self._error = StoppedError(f"no client is left; the last was {seat.name}: {reason}")
            else:
                log.warning("no client is left: waiting for one to come back")
        self._dispatch()
        self._end_if_over()

    def _is_abandoned(self, seat: Seat, now: float) -> bool:
        """Whether a member holds the turn and does nothing for it: asking for another turn does not count."""
        running = self._running
        if running is None or running.turn.client != seat.name:
            return False
        return now - running.heard > self.config.lease

    def _miss(self, name: str, reason: str) -> None:
        """Goes on without a client, until it comes back."""
        self.members.lost.append(name)
        self._recorder.event("lost", client=name, reason=reason)
        log.warning("%s is lost: %s", name, reason)
        self._watcher.client_state(name, "lost")
        if self.journal.ledger.expects_evaluation(name):
            self._recorder.event("missing", client=name, round=self.journal.ledger.round)

    def _has_been_taken_home(self) -> bool:
        """Whether the run is finished and somebody has the model: whoever is lost now takes nothing with it."""
        return self.journal.ledger.finished and any(seat.farewell for seat in self.members)

    def _end_if_over(self) -> None:
        """Lets the server's process go once nobody is left who could call, or is to come back."""
        if self._error is not None:
            over = self.members.all_left or not len(self.members)
        elif self.members.door is None:
            over = self.members.all_left
        else:
            over = self.members.all_left and self._has_been_taken_home()
            if over and set(self.members.lost) & set(self.trained_clients()):
                # They trained it, too; one that is starting again gets it yet.
                self._finished_at = self._finished_at or time.monotonic()
                over = time.monotonic() - self._finished_at >= self.members.door.grace
        if over:
            self._ended.set()

    def _roll_back(self, reason: str) -> None:
        """Undoes the running turn whole."""
        if self._running is None:
            return
        turn, self._running = self._running.turn, None
        self.journal.roll_back()
        self._recorder.event("rolled_back", turn=turn.number, client=turn.client, reason=reason)
        log.warning("turn %d of %s was rolled back: %s", turn.number, turn.client, reason)
        self._watcher.client_state(turn.client, "rolled back")

    def _save(self) -> None:
        """Checkpoints what now holds; on failure the run stops and the last checkpoint stays whole."""
        try:
            self._recorder.flush()
            self.journal.save()
        except (CheckpointError, OSError) as failure:
            error = (
                failure
                if isinstance(failure, CheckpointError)
                else CheckpointError(f"cannot write: {failure}")
            )
            self.stop(error)
            raise error from failure


def _answers(seat: Seat, knock: Knock, patience: float) -> bool:
    """Knocks at a member's process unless a knock is under way; False if the last one was not answered."""
    try:
        if seat.knock is not None and seat.knock.done():
            seat.knock.wait()
            seat.knock = None
        if seat.knock is None:
            seat.knock = knock(seat.rpc_name, patience)
    except RuntimeError as error:
        log.debug("%s does not answer: %s", seat.name, error)
        return False
    return True
