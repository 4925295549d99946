"""The run at the server: whose turn it is and what counts. A turn is a transaction under a lease.

Every method is called through a client's `ServerApi` and runs under one lock. Between a turn's first
forward and its commit only the client that holds the turn is answered, so forward to step is one unit although
the lock is free in between.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.futures import Future

from suture.runtime.consortium.board import KEY_REFUSAL, ServerBoard
from suture.runtime.consortium.evidence import ACCUSATION, VERDICT, WITHDRAWAL
from suture.runtime.errors import (
    ERRORS,
    StoppedError,
    SutureError,
    TurnUndoneError,
    WireError,
)
from suture.runtime.records.observers import NoWatcher, Recorder, StoppingRecorder, Watcher
from suture.runtime.scheduler import Turn
from suture.runtime.server.dispatcher import Course
from suture.runtime.server.liveness import SECONDS_BETWEEN_KNOCKS, Knock
from suture.runtime.server.membership import Members, Seat, natural
from suture.runtime.server.run_state import Journal
from suture.runtime.state.handoff import MAX_BYTES, weights_digest
from suture.runtime.wire.checks import check_farewell, check_handoff, check_hello
from suture.runtime.wire.compression import Payload
from suture.runtime.wire.messages import (
    Board,
    Farewell,
    Heads,
    Hello,
    LossReply,
    OutputGradient,
    Refusal,
    Release,
    Report,
    SealedHandoff,
    Share,
    Statement,
    StepDone,
    Upload,
    Welcome,
)

log = logging.getLogger(__name__)

GAP_SECONDS = 10.0  # in which a call that came is taken up and computed, or those behind it are refused


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the coordinator needs to know of a run.

    Attributes:
        run: the run's id, bound to every hand-off.
        run_dir: RUN, chosen by the server.
        lease: seconds after which a silent member is lost.
        release_top: whether clients that finish are handed the trained top.
        seed: the run's public seed.
        race: whether batches of clients that train at once are taken in the order of arrival.
        in_flight: training calls that a client may have under way at once.
    """

    run: str
    run_dir: Path
    lease: float
    release_top: bool = True
    seed: int = 0
    race: bool = False
    in_flight: int = 1


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
        self._board = journal.board
        self._watcher: Watcher = NoWatcher() if watcher is None else watcher
        self._course = Course(journal, members, config.lease, self._watcher, config.seed, config.race)
        self._turns = self._course.turns
        self._lock = threading.RLock()
        self._computed = threading.Condition(self._lock)
        self._refused: set[tuple[str, type[SutureError]]] = set()

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
        if self._board is not None:
            for name, why in self._board.removed.items():
                self.members.shut_out(name, why)
        recorder = StoppingRecorder(
            open_recorder(None if turn is None else self.journal.ledger.step), self._course.stop
        )
        self._course.recorder = self._turns.recorder = recorder
        if turn is not None:
            recorder.event("resumed", after_turn=turn, step=self.journal.ledger.step)

    def wait(
        self,
        knock: Knock | None = None,
        rest: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        """Blocks until every member has left, or the run has stopped, watching the members meanwhile.

        Args:
            knock: asks a member's process for a sign of life, by its name and with so many seconds' patience; its
                future fails where there is none. None where members live in this process, or the carrier says itself
                when a connection ends (`disconnected`).
            rest: what this thread does meanwhile, for so many seconds or until the event is set, which it returns.

        Raises:
            SutureError: the run stopped early; the message says why.
        """
        while not rest(self._course.ended, min(SECONDS_BETWEEN_KNOCKS, self.config.lease / 10)):
            # What fails in here has stopped the run already, and its members are still to be told.
            with self._lock, suppress(SutureError):
                self._course.watch(knock)
                self._course.answer_heads()
        self.raise_if_stopped()

    def raise_if_stopped(self) -> None:
        """Raises what the run stopped with, if it stopped early."""
        if self._course.error is not None:
            raise self._course.error

    def weights_sha256(self) -> str:
        """Digest of the whole final model; the clients' parts as they reported them.

        Raises:
            WireError: two clients opened the same hand-off and report different weights.
        """
        reported = {tuple(sorted(farewell.digests.items())) for farewell in self.farewells().values()}
        if len(reported) != 1:
            raise WireError(f"the clients report {len(reported)} different digests of the same parts")
        return weights_digest(dict(reported.pop()) | {"top": self.journal.server.digest()})

    def farewells(self) -> dict[str, Farewell]:
        """What each client said after the last turn, before a restart too."""
        said = {seat.name: seat.farewell for seat in self.members if seat.farewell is not None}
        return self.journal.farewells | said

    def trained_clients(self) -> list[str]:
        """The clients that have a counted turn, in the order in which people count."""
        return sorted(self.journal.ledger.trained(), key=natural)

    # Members -------------------------------------------------------------------------------------

    def admit(self, seat: Seat, hello: Hello) -> Welcome:
        """Takes a member in; see `Members.admit`."""
        with self._lock:
            labels = self.journal.server.labels
            try:
                check_hello(hello, None if labels is None else labels.below)
                self.members.admit(seat, hello)
            except SutureError as error:
                # The ranks of a run that was started as a whole are not replaced: it cannot begin any more.
                if self.members.door is None and not self.members.complete:
                    self._course.stop(error)
                elif (hello.client, type(error)) not in self._refused:
                    self._refused.add((hello.client, type(error)))
                    log.warning("refused: %s (said once until it is in)", error)
                raise
            if self._board is not None:
                self._board.joined(seat.name)
            self._refused = {(name, kind) for name, kind in self._refused if name != seat.name}
            if hello.num_images:
                log.info("%s joined with %d training images", seat.name, hello.num_images)
            else:
                log.info("%s joined for evaluation only", seat.name)
            self._course.recorder.event("joined", client=seat.name, images=hello.num_images)
            self._watcher.client_state(seat.name, "waits")
            return Welcome(self.config.run, str(self.config.run_dir), self.config.lease)

    def ready(self, seat: Seat, answer: Future[Turn | Refusal]) -> None:
        """``answer`` takes the client's next turn; kind wait after a while, so that a silent client is noticed."""
        with self._lock:
            self.members.heard(seat)
            seat.undone = ""
            if self._board is not None:
                self._board.ended(seat.name)
            seat.waiting, seat.waiting_since = answer, time.monotonic()
            self._course.go_on()

    def finish(self, seat: Seat, farewell: Farewell) -> Release:
        """Takes a member's farewell and hands it the trained top."""
        with self._lock:
            self.members.heard(seat)
            if not self.journal.ledger.finished:
                raise WireError(f"{seat.name}: finish: the run is not over; refused")
            seat.farewell = check_farewell(farewell, seat.name)
            self._course.answer_heads()
            return self.journal.release() if self.config.release_top else Release({}, self.journal.best_round)

    def leave(self, seat: Seat) -> None:
        """Frees a seat; when the last has been given back the run has ended."""
        with self._lock:
            self.members.heard(seat)
            if self._course.error is None and seat.farewell is None:
                self._course.lose(seat, "it left")
            if seat.farewell is not None and self.members.door is not None:
                self.journal.has_gone_home(seat.name, seat.farewell)
            seat.left = True
            self._course.end_if_over()

    def heard(self, seat: Seat) -> None:
        """A sign of life that asks for nothing: it renews a member's lease, and not that of the turn that it holds."""
        with self._lock, suppress(SutureError):  # it may have been given up in the meantime
            self.members.heard(seat)

    def transfers(self, seat: Seat, seconds: float) -> None:
        """Bytes of a call of this member's are on their way; see `Turns.transfers`."""
        with self._lock, suppress(SutureError):
            self.members.heard(seat)
            self._turns.transfers(seat, seconds)
            if time.monotonic() - seat.told_end < seconds:
                seat.end_heard = time.monotonic()
            if self._board is not None:
                self._board.goes_on(seat.name, seconds)

    def disconnected(self, seat: Seat, reason: str) -> None:
        """A member's connection has ended, for ``reason``: its turn is rolled back and the others go on."""
        with self._lock:
            if self.members.get(seat.name) is seat and not seat.left:
                self._course.lose(seat, reason)

    # Turns ---------------------------------------------------------------------------------------

    def newest_handoff(self, seat: Seat) -> SealedHandoff | None:
        """What the last counted training turn sealed."""
        with self._lock:
            self.members.heard(seat)
            return self._turns.newest_handoff(seat)

    def share(self, seat: Seat, index: int) -> Share | None:
        """What one of the clients that trained at once sealed; see `Turns.share`."""
        with self._lock:
            self.members.heard(seat)
            return self._turns.share(seat, index)

    def forward(self, seat: Seat, upload: Upload) -> LossReply | Tensor:
        """One training batch; see `Turns.forward`."""
        with self._working(seat):
            return self._turns.forward(seat, upload)

    def train(self, seat: Seat, upload: Upload, answer: Future[Any]) -> None:
        """One explicit step; see `Turns.train`."""
        with self._working(seat):
            self._turns.train(seat, upload, answer)

    def backward(self, seat: Seat, message: OutputGradient, answer: Future[Any]) -> None:
        """The other half of an explicit step; see `Turns.backward`."""
        with self._working(seat):
            self._turns.backward(seat, message, answer)

    def await_order(self, seat: Seat, message: Upload | OutputGradient) -> None:
        """Waits until what a client sent before ``message`` has been computed: RPC's threads may take up two calls in
        another order than that in which they came. Whoever sends too much ahead, or leaves a gap, does not wait for
        long and is refused by the turn's own checks.
        """
        with self._computed:
            if seat.num_early >= self.config.in_flight - 1:
                return
            seat.num_early += 1
            self._computed.wait_for(lambda: not self._turns.is_early(seat, message), GAP_SECONDS)
            seat.num_early -= 1

    def predict(self, seat: Seat, upload: Upload) -> Payload:
        """One evaluation batch; see `Turns.predict`."""
        with self._working(seat):
            return self._turns.predict(seat, upload)

    def stepped(self, seat: Seat, done: StepDone, gradients: Mapping[Tensor, Tensor]) -> None:
        """Steps the top after a backward; see `Turns.stepped`."""
        with self._working(seat):
            self._turns.stepped(seat, done, gradients)

    def commit(self, seat: Seat, handoff: SealedHandoff) -> None:
        """Ends a client's turn: when this returns and no other trains in the same turn, it is on the disk."""
        with self._working(seat):
            if self._turns.commit(seat, handoff):
                self._course.save()
                self._course.go_on()

    def report(self, seat: Seat, report: Report) -> None:
        """Makes an evaluation turn count."""
        with self._lock:
            self.members.heard(seat)
            self._turns.report(seat, report)
            self._course.go_on()

    def abort(self, seat: Seat, why: Refusal) -> None:
        """A client gives its turn up, which is rolled back. Where clients come and go the others go on without it;
        else the run stops, for the error would come again.
        """
        with self._lock:
            self.members.heard(seat)
            if self._board is not None and self._board.is_asked(seat.name):
                self._course.lose(seat, str(why.message)[:1000])
                return
            if self._turns.of(seat) is None:
                raise WireError(f"{seat.name}: abort: it holds no turn to give up; refused")
            error = ERRORS.get(str(why.error), StoppedError)(str(why.message)[:1000])
            if self.members.door is not None:
                self._course.lose(seat, str(error))
                return
            self._turns.roll_back(str(error))
            self._course.stop(error)

    # Between sites that sign -----------------------------------------------------------------------

    def board(self, seat: Seat) -> Board:
        """What the sites have stated to each other."""
        with self._lock:
            self.members.heard(seat)
            return self._signed(seat).shown()

    def post(self, seat: Seat, statement: Statement) -> None:
        """Takes what a site states. Who accuses gives up the turn that it holds; who leaves for good is put out."""
        with self._lock:
            self.members.heard(seat)
            board, journal = self._signed(seat), self.journal
            busy = self._turns.of(seat) is not None or board.is_asked(seat.name)
            if statement.kind == ACCUSATION and not busy:
                if seat.undone:  # another site has opened the same one, and was faster
                    raise TurnUndoneError(seat.undone)
                raise WireError(
                    f"{seat.name}: post: it holds no turn in which it could have opened one; refused"
                )
            newest = [] if journal.handoff is None else [journal.handoff]
            board.post(seat.name, statement, [*newest, *journal.shares.values()])
            if not journal.ledger.handoff and board.is_founder_distrusted(self.members.present()):
                self._turns.roll_back(f"most sites do not know {board.founder}")
                others = [name for name in self.members.present() if name != board.founder]
                self._course.begin_anew(f"most of {', '.join(others)} take no key from it; see their rosters")
            elif statement.kind == KEY_REFUSAL and self._turns.of(seat) is not None:
                # It would be given the same turn again and again.
                self._course.lose(seat, f"it does not take the hand-off key that {board.founder} made")
            if statement.kind == ACCUSATION:
                self._turns.roll_back(f"{seat.name} accuses the author of the hand-off that it began with")
            elif statement.kind == VERDICT and (conviction := board.convict()) is not None:
                self._course.convict(conviction)
            elif statement.kind == WITHDRAWAL:
                self._course.put_out(seat.name, "it left for good")
            self._course.go_on()

    def begin_epoch(self, seat: Seat, epoch: Statement, handoff: SealedHandoff) -> None:
        """Begins an epoch of the hand-off key: when this returns it is on the disk."""
        check_handoff(handoff, seat.name, MAX_BYTES)
        with self._working(seat):
            board = self._signed(seat)
            board.begin_epoch(seat.name, epoch, handoff, self.journal.handoff)
            self.journal.handoff = handoff
            self._course.recorder.event(
                "epoch", number=board.epoch, client=seat.name, without=sorted(board.removed)
            )
            self._course.save()

    def exhibit(self, seat: Seat) -> Share:
        """The hand-off, or share, that waits for a verdict."""
        with self._lock:
            self.members.heard(seat)
            accused = self._signed(seat).accused
            if accused is None:
                raise WireError(f"{seat.name}: exhibit: nobody is accused; refused")
            return accused

    def heads(self, seat: Seat, answer: Future[Heads | Refusal]) -> None:
        """``answer`` takes what every site signed at its farewell, once all that are there have said it."""
        with self._lock:
            self.members.heard(seat)
            self._signed(seat)
            if seat.farewell is None:
                raise WireError(f"{seat.name}: heads: it has not said goodbye; refused")
            seat.heads = answer
            self._course.answer_heads()

    def _signed(self, seat: Seat) -> ServerBoard:
        if self._board is None:
            raise WireError(f"{seat.name}: no site signs in this run; refused")
        return self._board

    def stop(self, error: SutureError) -> None:
        """Ends the run early: every member is told why."""
        with self._lock:
            self._course.stop(error)

    @contextmanager
    def _working(self, seat: Seat) -> Iterator[None]:
        """Holds the lock for a call that computes or writes; nobody is lost for the time it kept them waiting."""
        with self._lock:
            self.members.heard(seat)
            began = time.monotonic()
            try:
                yield
            finally:
                self._computed.notify_all()
                took = time.monotonic() - began
                for other in self.members:
                    other.last_seen += took
                    other.waiting_since += took
                for running in self._turns.running.values():
                    running.heard += took
                seat.last_seen = time.monotonic()
