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
from suture.runtime.server.dispatcher import Dispatcher
from suture.runtime.server.liveness import SECONDS_BETWEEN_PINGS, Ping
from suture.runtime.server.membership import Member, Membership, natural
from suture.runtime.server.run_state import RunState
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
    """Answers what clients ask, one call at a time: who may ask, whose turn it is, what counts.

    Args:
        run_state: what counted and the weights it led to.
        membership: who is in.
        config: the run.
        watcher: is told the progress.
    """

    def __init__(
        self, run_state: RunState, membership: Membership, config: RunConfig, watcher: Watcher | None = None
    ) -> None:
        self.run_state = run_state
        self.membership = membership
        self.config = config
        self._board = run_state.board
        self._watcher: Watcher = NoWatcher() if watcher is None else watcher
        self._dispatcher = Dispatcher(
            run_state, membership, config.lease, self._watcher, config.seed, config.race
        )
        self._turns = self._dispatcher.turns
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
        turn = self.run_state.begin(resume)
        if self._board is not None:
            for name, why in self._board.removed.items():
                self.membership.shut_out(name, why)
        recorder = StoppingRecorder(
            open_recorder(None if turn is None else self.run_state.turn_log.step), self._dispatcher.stop
        )
        self._dispatcher.recorder = self._turns.recorder = recorder
        if turn is not None:
            recorder.event("resumed", after_turn=turn, step=self.run_state.turn_log.step)

    def wait(
        self,
        ping: Ping | None = None,
        rest: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        """Blocks until every member has left, or the run has stopped, watching the members meanwhile.

        Args:
            ping: asks a member's process for a sign of life, by its name and with so many seconds' patience; its
                future fails where there is none. None where members live in this process, or the carrier says itself
                when a connection ends (`disconnected`).
            rest: what this thread does meanwhile, for so many seconds or until the event is set, which it returns.

        Raises:
            SutureError: the run stopped early; the message says why.
        """
        while not rest(self._dispatcher.ended, min(SECONDS_BETWEEN_PINGS, self.config.lease / 10)):
            # What fails in here has stopped the run already, and its members are still to be told.
            with self._lock, suppress(SutureError):
                self._dispatcher.watch(ping)
                self._dispatcher.answer_heads()
        self.raise_if_stopped()

    def raise_if_stopped(self) -> None:
        """Raises what the run stopped with, if it stopped early."""
        if self._dispatcher.error is not None:
            raise self._dispatcher.error

    def weights_sha256(self) -> str:
        """Digest of the whole final model; the clients' parts as they reported them.

        Raises:
            WireError: two clients opened the same hand-off and report different weights.
        """
        reported = {tuple(sorted(farewell.digests.items())) for farewell in self.farewells().values()}
        if len(reported) != 1:
            raise WireError(f"the clients report {len(reported)} different digests of the same parts")
        return weights_digest(dict(reported.pop()) | {"top": self.run_state.server.digest()})

    def farewells(self) -> dict[str, Farewell]:
        """What each client said after the last turn, before a restart too."""
        said = {member.name: member.farewell for member in self.membership if member.farewell is not None}
        return self.run_state.farewells | said

    def trained_clients(self) -> list[str]:
        """The clients that have a counted turn, in the order in which people count."""
        return sorted(self.run_state.turn_log.trained(), key=natural)

    # Members -------------------------------------------------------------------------------------

    def admit(self, member: Member, hello: Hello) -> Welcome:
        """Takes a member in; see `Membership.admit`."""
        with self._lock:
            labels = self.run_state.server.labels
            try:
                check_hello(hello, None if labels is None else labels.below)
                self.membership.admit(member, hello)
            except SutureError as error:
                # The ranks of a run that was started as a whole are not replaced: it cannot begin any more.
                if self.membership.door is None and not self.membership.complete:
                    self._dispatcher.stop(error)
                elif (hello.client, type(error)) not in self._refused:
                    self._refused.add((hello.client, type(error)))
                    log.warning("refused: %s (said once until it is in)", error)
                raise
            if self._board is not None:
                self._board.joined(member.name)
            self._refused = {(name, kind) for name, kind in self._refused if name != member.name}
            if hello.num_images:
                log.info("%s joined with %d training images", member.name, hello.num_images)
            else:
                log.info("%s joined for evaluation only", member.name)
            self._dispatcher.recorder.event("joined", client=member.name, images=hello.num_images)
            self._watcher.client_state(member.name, "waits")
            return Welcome(self.config.run, str(self.config.run_dir), self.config.lease)

    def ready(self, member: Member, answer: Future[Turn | Refusal]) -> None:
        """``answer`` takes the client's next turn; kind wait after a while, so that a silent client is noticed."""
        with self._lock:
            self.membership.heard(member)
            member.undone = ""
            if self._board is not None:
                self._board.ended(member.name)
            member.waiting, member.waiting_since = answer, time.monotonic()
            self._dispatcher.go_on()

    def finish(self, member: Member, farewell: Farewell) -> Release:
        """Takes a member's farewell and hands it the trained top."""
        with self._lock:
            self.membership.heard(member)
            if not self.run_state.turn_log.finished:
                raise WireError(f"{member.name}: finish: the run is not over; refused")
            member.farewell = check_farewell(farewell, member.name)
            self._dispatcher.answer_heads()
            return (
                self.run_state.release()
                if self.config.release_top
                else Release({}, self.run_state.best_round)
            )

    def leave(self, member: Member) -> None:
        """Ends a membership; with the last one the run has ended."""
        with self._lock:
            self.membership.heard(member)
            if self._dispatcher.error is None and member.farewell is None:
                self._dispatcher.lose(member, "it left")
            if member.farewell is not None and self.membership.door is not None:
                self.run_state.has_gone_home(member.name, member.farewell)
            member.left = True
            self._dispatcher.end_if_over()

    def heard(self, member: Member) -> None:
        """A sign of life that asks for nothing: it renews a member's lease, and not that of the turn that it holds."""
        with self._lock, suppress(SutureError):  # it may have been given up in the meantime
            self.membership.heard(member)

    def transfers(self, member: Member, seconds: float) -> None:
        """Bytes of a call of this member's are on their way; see `Turns.transfers`."""
        with self._lock, suppress(SutureError):
            self.membership.heard(member)
            self._turns.transfers(member, seconds)
            if time.monotonic() - member.told_end < seconds:
                member.end_heard = time.monotonic()
            if self._board is not None:
                self._board.goes_on(member.name, seconds)

    def disconnected(self, member: Member, reason: str) -> None:
        """A member's connection has ended, for ``reason``: its turn is rolled back and the others go on."""
        with self._lock:
            if self.membership.get(member.name) is member and not member.left:
                self._dispatcher.lose(member, reason)

    # Turns ---------------------------------------------------------------------------------------

    def newest_handoff(self, member: Member) -> SealedHandoff | None:
        """What the last counted training turn sealed."""
        with self._lock:
            self.membership.heard(member)
            return self._turns.newest_handoff(member)

    def share(self, member: Member, index: int) -> Share | None:
        """What one of the clients that trained at once sealed; see `Turns.share`."""
        with self._lock:
            self.membership.heard(member)
            return self._turns.share(member, index)

    def forward(self, member: Member, upload: Upload) -> LossReply | Tensor:
        """One training batch; see `Turns.forward`."""
        with self._working(member):
            return self._turns.forward(member, upload)

    def train(self, member: Member, upload: Upload, answer: Future[Any]) -> None:
        """One explicit step; see `Turns.train`."""
        with self._working(member):
            self._turns.train(member, upload, answer)

    def backward(self, member: Member, message: OutputGradient, answer: Future[Any]) -> None:
        """The other half of an explicit step; see `Turns.backward`."""
        with self._working(member):
            self._turns.backward(member, message, answer)

    def await_order(self, member: Member, message: Upload | OutputGradient) -> None:
        """Waits until what a client sent before ``message`` has been computed: RPC's threads may take up two calls in
        another order than that in which they came. Whoever sends too much ahead, or leaves a gap, does not wait for
        long and is refused by the turn's own checks.
        """
        with self._computed:
            if member.num_early >= self.config.in_flight - 1:
                return
            member.num_early += 1
            self._computed.wait_for(lambda: not self._turns.is_early(member, message), GAP_SECONDS)
            member.num_early -= 1

    def predict(self, member: Member, upload: Upload) -> Payload:
        """One evaluation batch; see `Turns.predict`."""
        with self._working(member):
            return self._turns.predict(member, upload)

    def stepped(self, member: Member, done: StepDone, gradients: Mapping[Tensor, Tensor]) -> None:
        """Steps the top after a backward; see `Turns.stepped`."""
        with self._working(member):
            self._turns.stepped(member, done, gradients)

    def commit(self, member: Member, handoff: SealedHandoff) -> None:
        """Ends a client's turn: when this returns and no other trains in the same turn, it is on the disk."""
        with self._working(member):
            if self._turns.commit(member, handoff):
                self._dispatcher.save()
                self._dispatcher.go_on()

    def report(self, member: Member, report: Report) -> None:
        """Makes an evaluation turn count."""
        with self._lock:
            self.membership.heard(member)
            self._turns.report(member, report)
            self._dispatcher.go_on()

    def abort(self, member: Member, why: Refusal) -> None:
        """A client gives its turn up, which is rolled back. Where clients come and go the others go on without it;
        else the run stops, for the error would come again.
        """
        with self._lock:
            self.membership.heard(member)
            if self._board is not None and self._board.is_asked(member.name):
                self._dispatcher.lose(member, str(why.message)[:1000])
                return
            if self._turns.of(member) is None:
                raise WireError(f"{member.name}: abort: it holds no turn to give up; refused")
            error = ERRORS.get(str(why.error), StoppedError)(str(why.message)[:1000])
            if self.membership.door is not None:
                self._dispatcher.lose(member, str(error))
                return
            self._turns.roll_back(str(error))
            self._dispatcher.stop(error)

    # Between sites that sign -----------------------------------------------------------------------

    def board(self, member: Member) -> Board:
        """What the sites have stated to each other."""
        with self._lock:
            self.membership.heard(member)
            return self._signed(member).shown()

    def post(self, member: Member, statement: Statement) -> None:
        """Takes what a site states. Who accuses gives up the turn that it holds; who leaves for good is put out."""
        with self._lock:
            self.membership.heard(member)
            board, run_state = self._signed(member), self.run_state
            busy = self._turns.of(member) is not None or board.is_asked(member.name)
            if statement.kind == ACCUSATION and not busy:
                if member.undone:  # another site has opened the same one, and was faster
                    raise TurnUndoneError(member.undone)
                raise WireError(
                    f"{member.name}: post: it holds no turn in which it could have opened one; refused"
                )
            newest = [] if run_state.handoff is None else [run_state.handoff]
            board.post(member.name, statement, [*newest, *run_state.shares.values()])
            if not run_state.turn_log.handoff and board.is_founder_distrusted(self.membership.present()):
                self._turns.roll_back(f"most sites do not know {board.founder}")
                others = [name for name in self.membership.present() if name != board.founder]
                self._dispatcher.begin_anew(
                    f"most of {', '.join(others)} take no key from it; see their rosters"
                )
            elif statement.kind == KEY_REFUSAL and self._turns.of(member) is not None:
                # It would be given the same turn again and again.
                self._dispatcher.lose(member, f"it does not take the hand-off key that {board.founder} made")
            if statement.kind == ACCUSATION:
                self._turns.roll_back(f"{member.name} accuses the author of the hand-off that it began with")
            elif statement.kind == VERDICT and (conviction := board.convict()) is not None:
                self._dispatcher.convict(conviction)
            elif statement.kind == WITHDRAWAL:
                self._dispatcher.put_out(member.name, "it left for good")
            self._dispatcher.go_on()

    def begin_epoch(self, member: Member, epoch: Statement, handoff: SealedHandoff) -> None:
        """Begins an epoch of the hand-off key: when this returns it is on the disk."""
        check_handoff(handoff, member.name, MAX_BYTES)
        with self._working(member):
            board = self._signed(member)
            board.begin_epoch(member.name, epoch, handoff, self.run_state.handoff)
            self.run_state.handoff = handoff
            self._dispatcher.recorder.event(
                "epoch", number=board.epoch, client=member.name, without=sorted(board.removed)
            )
            self._dispatcher.save()

    def exhibit(self, member: Member) -> Share:
        """The hand-off, or share, that waits for a verdict."""
        with self._lock:
            self.membership.heard(member)
            accused = self._signed(member).accused
            if accused is None:
                raise WireError(f"{member.name}: exhibit: nobody is accused; refused")
            return accused

    def heads(self, member: Member, answer: Future[Heads | Refusal]) -> None:
        """``answer`` takes what every site signed at its farewell, once all that are there have said it."""
        with self._lock:
            self.membership.heard(member)
            self._signed(member)
            if member.farewell is None:
                raise WireError(f"{member.name}: heads: it has not said goodbye; refused")
            member.heads = answer
            self._dispatcher.answer_heads()

    def _signed(self, member: Member) -> ServerBoard:
        if self._board is None:
            raise WireError(f"{member.name}: no site signs in this run; refused")
        return self._board

    def stop(self, error: SutureError) -> None:
        """Ends the run early: every member is told why."""
        with self._lock:
            self._dispatcher.stop(error)

    @contextmanager
    def _working(self, member: Member) -> Iterator[None]:
        """Holds the lock for a call that computes or writes; nobody is lost for the time it kept them waiting."""
        with self._lock:
            self.membership.heard(member)
            began = time.monotonic()
            try:
                yield
            finally:
                self._computed.notify_all()
                took = time.monotonic() - began
                for other in self.membership:
                    other.last_seen += took
                    other.waiting_since += took
                for running in self._turns.running.values():
                    running.heard += took
                member.last_seen = time.monotonic()
