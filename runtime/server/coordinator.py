"""The run at the server: who is in, who is lost, what counts, and how it ends. A turn is a transaction.

What a client asks for comes through its `ServerApi`, which holds the lock meanwhile. Between a
turn's first forward and its commit only the client that holds the turn is answered, so forward to step is one unit
although the lock is free in between.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torch.futures import Future

from suture.runtime.errors import (
    ERRORS,
    CheckpointError,
    MemberLostError,
    StoppedError,
    SutureError,
    WireError,
)
from suture.runtime.records.observers import NoRecorder, NoWatcher, Recorder, StoppingRecorder, Watcher
from suture.runtime.scheduler import Turn
from suture.runtime.server.consortium_turns import ConsortiumTurns
from suture.runtime.server.dispatcher import Dispatcher
from suture.runtime.server.liveness import SECONDS_BETWEEN_PINGS, Ping, why_lost
from suture.runtime.server.membership import Member, Membership, natural
from suture.runtime.server.run_state import RunState
from suture.runtime.server.transaction import Transaction
from suture.runtime.state.handoff import weights_digest
from suture.runtime.wire.checks import check_farewell, check_hello
from suture.runtime.wire.messages import (
    Farewell,
    Hello,
    Refusal,
    Release,
    Report,
    SealedHandoff,
    Welcome,
)

log = logging.getLogger(__name__)


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
    """Says who is in, what counts, and when the run is over.

    What clients do in a turn is the `Transaction`'s business, which turn comes next the `Dispatcher`'s, and what sites
    that sign agree on that of `ConsortiumTurns`.

    Args:
        run_state: what counted and the weights it led to.
        membership: who is in.
        config: the run.
        watcher: is told the progress.

    Attributes:
        lock: is held for whatever a client asks; see `ServerApi`.
        computed: by it calls wait for others to be computed.
        busy_seconds: what clients asked for has kept the server busy so long since it last looked after its members.
    """

    def __init__(
        self, run_state: RunState, membership: Membership, config: RunConfig, watcher: Watcher | None = None
    ) -> None:
        self.run_state = run_state
        self.membership = membership
        self.config = config
        self.board = run_state.board
        self.recorder: Recorder = NoRecorder()
        self.error: SutureError | None = None
        self.ended = threading.Event()
        self.watcher: Watcher = NoWatcher() if watcher is None else watcher
        self.transaction = Transaction(run_state, self.watcher, config.seed, config.race)
        self.consortium = ConsortiumTurns(self)
        self.dispatcher = Dispatcher(self, self.consortium)
        self.lock = threading.RLock()
        self.computed = threading.Condition(self.lock)
        self.busy_seconds = 0.0
        self._refused: set[tuple[str, type[SutureError]]] = set()
        self._finished_at: float | None = None

    # Start ---------------------------------------------------------------------------------------

    def begin(self, resume: bool, open_recorder: Callable[[int | None], Recorder]) -> None:
        """Makes turn 0 the first state to go back to, or with ``resume`` goes on from the newest checkpoint.

        Args:
            resume: whether the folder holds this run's checkpoints.
            open_recorder: makes the recorder; is given the last step that counts, None for a new run.

        Raises:
            CheckpointError: nothing can be read (resume) or written.
        """
        turn = self.run_state.begin(resume)
        if self.board is not None:
            for name, why in self.board.removed.items():
                self.membership.shut_out(name, why)
        opened = open_recorder(None if turn is None else self.run_state.turn_log.step)
        self.recorder = self.transaction.log.recorder = StoppingRecorder(opened, self.stop)
        if turn is not None:
            self.recorder.event("resumed", after_turn=turn, step=self.run_state.turn_log.step)

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
        while not rest(self.ended, min(SECONDS_BETWEEN_PINGS, self.config.lease / 10)):
            # What fails in here has stopped the run already, and its members are still to be told.
            with suppress(SutureError):
                self.watch(ping)
        self.raise_if_stopped()

    # What a client's carrier and its `ServerApi` say ----------------------------------------------

    def heard(self, member: Member) -> None:
        """A sign of life that asks for nothing: it renews a member's lease, and not that of the turn that it holds."""
        with self.lock:
            if member.refused is None:  # it may have been given up in the meantime
                member.last_seen = time.monotonic()

    def transfers(self, member: Member, seconds: float) -> None:
        """Bytes of a call of this member's are on their way; see `Transaction.transfers`."""
        with self.lock:
            if member.refused is not None:
                return
            member.last_seen = time.monotonic()
            self.transaction.transfers(member, seconds)
            if time.monotonic() - member.told_end < seconds:
                member.end_heard = time.monotonic()
            if self.board is not None:
                self.board.goes_on(member.name, seconds)

    def disconnected(self, member: Member, reason: str) -> None:
        """A member's connection has ended, for ``reason``: its turn is rolled back and the others go on."""
        with self.lock:
            if self.membership.get(member.name) is member and not member.left:
                self.lose(member, reason)

    # What a client asks ---------------------------------------------------------------------------

    def admit(self, member: Member, hello: Hello) -> Welcome:
        """Takes a member in; see `Membership.admit`."""
        with self.lock:
            labels = self.run_state.server.labels
            try:
                check_hello(hello, None if labels is None else labels.num_classes)
                self.membership.admit(member, hello)
            except SutureError as error:
                # The ranks of a run that was started as a whole are not replaced: it cannot begin any more.
                if self.membership.door is None and not self.membership.complete:
                    self.stop(error)
                elif (hello.client, type(error)) not in self._refused:
                    self._refused.add((hello.client, type(error)))
                    log.warning("refused: %s (said once until it is in)", error)
                raise
            if self.board is not None:
                self.board.joined(member.name)
            self._refused = {(name, kind) for name, kind in self._refused if name != member.name}
            if hello.num_images:
                log.info("%s joined with %d training images", member.name, hello.num_images)
            else:
                log.info("%s joined for evaluation only", member.name)
            self.recorder.event("joined", client=member.name, images=hello.num_images)
            self.watcher.client_state(member.name, "waits")
            return Welcome(self.config.run, str(self.config.run_dir), self.config.lease)

    def ready(self, member: Member, answer: Future[Turn | Refusal]) -> None:
        """``answer`` takes the client's next turn; kind wait after a while, so that a silent client is noticed."""
        member.undone = ""
        if self.board is not None:
            self.board.ended(member.name)
        member.waiting, member.waiting_since = answer, time.monotonic()
        self.go_on()

    def commit(self, member: Member, handoff: SealedHandoff) -> None:
        """Ends a client's turn: when this returns and no other trains in the same turn, it is on the disk."""
        if self.transaction.commit(member, handoff):
            self.save()
            self.go_on()

    def report(self, member: Member, report: Report) -> None:
        """Makes an evaluation turn count."""
        self.transaction.report(member, report)
        self.go_on()

    def abort(self, member: Member, why: Refusal) -> None:
        """A client gives its turn up, which is rolled back. Where clients come and go the others go on without it;
        else the run stops, for the error would come again.
        """
        if self.board is not None and self.board.is_asked(member.name):
            self.lose(member, str(why.message)[:1000])
            return
        if member.open_turn is None:
            raise WireError(f"{member.name}: abort: it holds no turn to give up; refused")
        error = ERRORS.get(str(why.error), StoppedError)(str(why.message)[:1000])
        if self.membership.door is not None:
            self.lose(member, str(error))
            return
        self.transaction.roll_back(str(error))
        self.stop(error)

    def finish(self, member: Member, farewell: Farewell) -> Release:
        """Takes a member's farewell and hands it the trained top."""
        if not self.run_state.turn_log.finished:
            raise WireError(f"{member.name}: finish: the run is not over; refused")
        member.farewell = check_farewell(farewell, member.name)
        self.consortium.answer_heads()
        return self.run_state.release() if self.config.release_top else Release({}, self.run_state.best_round)

    def leave(self, member: Member) -> None:
        """Ends a membership; when the last member has left the run has ended."""
        if self.error is None and member.farewell is None:
            self.lose(member, "it left")
        if member.farewell is not None and self.membership.door is not None:
            self.run_state.has_gone_home(member.name, member.farewell)
        member.left = True
        self._end_if_over()

    # Who is lost ----------------------------------------------------------------------------------

    def watch(self, ping: Ping | None = None) -> None:
        """Loses members that are gone or silent beyond the lease, and lets waiting ones ask again.

        Raises:
            CheckpointError: as `Dispatcher.go_on`.
        """
        with self.lock:
            self._make_up_for_busy_seconds()
            now, lease = time.monotonic(), self.config.lease
            for member in self.membership:
                if member.left:
                    continue
                if reason := why_lost(member, member.open_turn, lease, ping, self.board):
                    self.lose(member, reason)
                elif member.waiting is not None and now - member.waiting_since > lease / 4:
                    member.answer(self.dispatcher.waiting())
            self.consortium.watch()
            if self.membership.door is not None:  # the grace may be over
                self.go_on()
                self._end_if_over()
            self.consortium.answer_heads()

    def _make_up_for_busy_seconds(self) -> None:
        """Nobody is lost for the time that others' requests kept it waiting."""
        now, busy, self.busy_seconds = time.monotonic(), self.busy_seconds, 0.0
        for member in self.membership:
            member.last_seen = min(now, member.last_seen + busy)
            member.waiting_since = min(now, member.waiting_since + busy)
        for turn in self.transaction.turns.values():
            turn.heard = min(now, turn.heard + busy)

    def lose(self, member: Member, reason: str, error: SutureError | None = None) -> None:
        """Rolls a member's turn back and goes on without it; it is told ``error``, or to join again."""
        self.membership.lose(
            member, error or MemberLostError(f"{member.name} was lost: {reason}; join again")
        )
        if self.board is not None:
            self.board.ended(member.name)
        if member.open_turn is not None:
            self.transaction.roll_back(reason)
        self.miss(member.name, reason)
        if self.membership.all_left and self.error is None and not self._has_been_taken_home():
            if self.membership.door is None:
                self.error = StoppedError(f"no client is left; the last was {member.name}: {reason}")
            else:
                log.warning("no client is left: waiting for one to come back")
        self.go_on()
        self._end_if_over()

    def miss(self, name: str, reason: str) -> None:
        """Goes on without a client, until it comes back."""
        self.membership.lost.append(name)
        self.recorder.event("lost", client=name, reason=reason)
        log.warning("%s is lost: %s", name, reason)
        self.watcher.client_state(name, "lost")
        if self.run_state.turn_log.expects_evaluation(name):
            self.recorder.event("missing", client=name, round=self.run_state.turn_log.round)

    def go_on(self) -> None:
        """Grants the next turn where one may be; see `Dispatcher.go_on`."""
        self.dispatcher.go_on()

    # What counts, and how it ends -----------------------------------------------------------------

    def save(self) -> None:
        """Checkpoints what now holds.

        Raises:
            CheckpointError: it cannot be written; the run has stopped and the last checkpoint stays whole.
        """
        with self.stopping():
            self.recorder.flush()
            self.run_state.save()

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Ends the run where something cannot be written: every member is told."""
        try:
            yield
        except CheckpointError as error:
            self.stop(error)
            raise

    def stop(self, error: SutureError) -> None:
        """Ends the run early: every member is told why."""
        with self.lock:
            self.error = self.error or error
            self.go_on()
            self._end_if_over()

    def raise_if_stopped(self) -> None:
        """Raises what the run stopped with, if it stopped early."""
        if self.error is not None:
            raise self.error

    def _end_if_over(self) -> None:
        """Lets the server's process go once nobody is left who could call, or is to come back."""
        if self.error is not None:
            over = self.membership.all_left or not len(self.membership)
        elif self.membership.door is None:
            over = self.membership.all_left
        else:
            over = all(member.left for member in self.membership) and self._has_been_taken_home()
            trained = self.run_state.turn_log.trained() - self.membership.gone_for_good
            if over and (trained - self.run_state.farewells.keys() or trained & set(self.membership.lost)):
                # They trained it, too; one that is starting again gets it yet.
                self._finished_at = self._finished_at or time.monotonic()
                over = time.monotonic() - self._finished_at >= self.membership.door.grace
        if over:
            self.ended.set()

    def _has_been_taken_home(self) -> bool:
        """Whether the run is finished and somebody has the model: whoever is lost now takes nothing with it."""
        return self.run_state.turn_log.finished and bool(self.farewells())

    def farewells(self) -> dict[str, Farewell]:
        """What each client said after the last turn, before a restart too."""
        said = {member.name: member.farewell for member in self.membership if member.farewell is not None}
        return self.run_state.farewells | said

    def weights_sha256(self) -> str:
        """Digest of the whole final model; the clients' parts as they reported them.

        Raises:
            WireError: two clients opened the same hand-off and report different weights.
        """
        reported = {tuple(sorted(farewell.digests.items())) for farewell in self.farewells().values()}
        if len(reported) != 1:
            raise WireError(f"the clients report {len(reported)} different digests of the same parts")
        return weights_digest(dict(reported.pop()) | {"top": self.run_state.server.digest()})

    def trained_clients(self) -> list[str]:
        """The clients that have a counted turn, in the order in which people count."""
        return sorted(self.run_state.turn_log.trained(), key=natural)
