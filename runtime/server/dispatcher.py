"""Which turn comes next, who is lost on the way, and when it is over.

Every method runs under the coordinator's lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from suture.runtime.consortium.evidence import Conviction
from suture.runtime.errors import CheckpointError, ConfigError, MemberLostError, StoppedError, SutureError
from suture.runtime.records.observers import NoRecorder, Recorder, Watcher
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.liveness import Ping, why_lost
from suture.runtime.server.membership import Member, Membership
from suture.runtime.server.run_state import RunState
from suture.runtime.server.transaction import Turns
from suture.runtime.state.handoff import handoff_digest
from suture.runtime.wire.messages import Heads

log = logging.getLogger(__name__)

_TRIES = 3
"""How often a site may be asked for the same and not do it."""


class Dispatcher:
    """Gives out turns, loses members and ends the run; what happens inside a turn it leaves to its transaction.

    Args:
        run_state: what counted and the weights it led to.
        membership: who is in.
        lease: seconds after which a silent member is lost.
        watcher: is told the progress.
        seed: the run's public seed.
        race: see `Turns`.
    """

    def __init__(
        self,
        run_state: RunState,
        membership: Membership,
        lease: float,
        watcher: Watcher,
        seed: int = 0,
        race: bool = False,
    ) -> None:
        self.run_state = run_state
        self.membership = membership
        self.board = run_state.board
        self.turns = Turns(run_state, watcher, seed, race)
        self.recorder: Recorder = NoRecorder()
        self.error: SutureError | None = None
        self.ended = threading.Event()
        self._lease = lease
        self._watcher = watcher
        self._begun = False
        self._finished_at: float | None = None
        self._keyless_since: float | None = None
        self._said_nobody_trains = False

    def go_on(self) -> None:
        """Grants the next turn if its client waits for it, or tells everyone that the run is over.

        Raises:
            CheckpointError: the end of a round cannot be written; the run has stopped.
        """
        turn_log = self.run_state.turn_log
        if self.error is not None:
            name = type(self.error).__name__
            self._answer_all(Turn(TurnKind.END, reason=str(self.error), error=name))
        elif not self.turns.running and self._may_begin() and self.membership.present():
            # Where nobody is present the round waits as it is: else its turns would all fall out of it.
            if self._has_errand() or self._waits_for_one_that_trains():
                return
            turns = turn_log.next_turns(self.membership.present(), self.membership.training())
            while not turns:
                # Evaluation changes no weights, so a round's evaluations are checkpointed together, at its end.
                self._close_round()
                if turn_log.finished or not self.membership.present():
                    break
                if self._waits_for_one_that_trains():
                    return
                try:
                    turn_log.start_round(self.membership.training(), self.membership.present())
                except ConfigError as error:
                    self.stop(error)
                    return
                turns = turn_log.next_turns(self.membership.present(), self.membership.training())
            members = [member for turn in turns if (member := self.membership.get(turn.client)) is not None]
            if turns and len(members) == len(turns) and all(member.waiting is not None for member in members):
                self.turns.grant(members, [replace(turn, epoch=self._epoch) for turn in turns])
                self._tell_the_others()
            elif not turns and turn_log.finished:
                last = Turn(TurnKind.END, round=turn_log.round, handoff=turn_log.handoff, epoch=self._epoch)
                self._answer_all(last)

    @property
    def _epoch(self) -> int:
        return 0 if self.board is None else self.board.epoch

    def _waits_for_one_that_trains(self) -> bool:
        """Whether those who are present only evaluate, and a training turn comes next: the round waits as it is."""
        waits = self.run_state.turn_log.needs_training() and not self.membership.training()
        if waits and not self._said_nobody_trains:
            here = ", ".join(self.membership.present())
            log.warning(
                "nobody who trains is here (%s: evaluation only): the run waits for one who does", here
            )
            self.recorder.event("waits", clients=self.membership.present())
        self._said_nobody_trains = waits
        return waits

    def _has_errand(self) -> bool:
        """Asks a site for what must be done before the next turn; False where nothing must."""
        board = self.board
        if board is None:
            return False
        self._put_out_revoked()
        present = self.membership.present()
        if board.errand is not None:
            return True
        for name, by in board.unknown_to_all(present).items():
            why = f"it is not in the roster of {', '.join(sorted(by))}; if it belongs to you: suture roster add there"
            self.shut_out(name, why)
            return True
        if board.no_witness(present):
            accuser, author = board.pair
            self.stop(
                StoppedError(
                    f"{accuser} accuses {author} of a bad hand-off, and no third site is here to look: one of the "
                    f"two is at fault, and this run cannot tell which; look at both logs, and begin anew without it"
                )
            )
            return True
        waiting = [
            member.name for member in self.membership if member.waiting is not None and not member.left
        ]
        found = board.next_errand(waiting, present)
        if found is None:
            return False
        kind, willing = found
        member = self.membership.get(willing[0]) if willing else None
        if member is None:
            return True
        if board.tries(kind, member.name) >= _TRIES:
            self.lose(member, f"it was asked {_TRIES} times ({kind}) and did not do it")
            return True
        if kind is TurnKind.KEY and self.run_state.shares:
            self._drop_shares()
        board.sent(kind, member.name)
        member.last_seen = time.monotonic()
        turn_log = self.run_state.turn_log
        member.answer(Turn(kind, member.name, turn_log.round, handoff=turn_log.handoff, epoch=board.epoch))
        return True

    def _drop_shares(self) -> None:
        """Undoes a turn in which clients trained at once and whose mean was not made: their shares follow from the
        hand-off that a new epoch replaces. It begins again without whoever was put out.

        Raises:
            CheckpointError: there is nothing to go back to; the run has stopped.
        """
        with self._stopping():
            turn = self.run_state.go_back(handoff_digest(next(iter(self.run_state.shares.values()))).hex())
        self.recorder.event("went_back", after_turn=turn, step=self.run_state.turn_log.step)
        log.warning("went back to what held after turn %d: one was put out before the mean was made", turn)

    def _is_keyless_for_too_long(self) -> bool:
        """Whether nobody has trained yet, and whoever has the first key has been away for the grace."""
        board, door, now = self.board, self.membership.door, time.monotonic()
        present = self.membership.present()
        if (
            board is None
            or door is None
            or not board.epochs
            or self.run_state.turn_log.handoff
            or not present
            or self.turns.running
            or any(name in board.holders for name in present)
        ):
            self._keyless_since = None
        else:
            self._keyless_since = self._keyless_since or now
            return now - self._keyless_since >= door.grace
        return False

    def _may_begin(self) -> bool:
        """Whether the run has begun; it begins once, and then goes on with whoever is present."""
        if not self._begun and self.membership.complete:
            self._begun = True
            for name in self.run_state.turn_log.planned():
                if self.membership.get(name) is None:  # it was in when the run was interrupted
                    self._miss(name, "it did not come back")
            self.recorder.event("begun", clients=self.membership.present())
        return self._begun

    def _wait(self) -> Turn:
        """What one who waits is told: whose turn it is."""
        running = [part.turn for part in self.turns.running.values()]
        if not running:
            return Turn(TurnKind.WAIT)
        names = ", ".join(turn.client for turn in running)
        return Turn(
            TurnKind.WAIT, names, running[0].round, running[0].number, meanwhile=running[0].kind.value
        )

    def _tell_the_others(self) -> None:
        """Tells sites that wait whose turn has begun; ranks of one start have the server's own display beside them."""
        if self.membership.door is not None:
            for member in self.membership:
                member.answer(self._wait())

    def _answer_all(self, turn: Turn) -> None:
        for member in self.membership:
            member.answer(turn)

    def watch(self, ping: Ping | None = None) -> None:
        """Loses members that are gone or silent beyond the lease, and lets waiting ones ask again.

        Raises:
            CheckpointError: as `go_on`.
        """
        now = time.monotonic()
        for member in self.membership:
            if member.left:
                continue
            if reason := why_lost(member, self.turns.of(member), self._lease, ping):
                self.lose(member, reason)
            elif member.told_end and member.farewell is None and now - member.end_heard > self._lease:
                # The others wait for its word on what it ends with.
                self.lose(member, f"the run is over, and it has not said goodbye for {self._lease:g} s")
            elif self.board is not None and self.board.is_late(member.name, self._lease):
                self.lose(member, f"it was asked for something and did not do it for {self._lease:g} s")
            elif member.waiting is not None and now - member.waiting_since > self._lease / 4:
                member.answer(self._wait())
        self._put_out_revoked()
        if self._is_keyless_for_too_long():
            self.begin_anew()
        if self.membership.door is not None:  # the grace may be over
            self.go_on()
            self.end_if_over()

    def lose(self, member: Member, reason: str, error: SutureError | None = None) -> None:
        """Rolls a member's turn back and goes on without it; it is told ``error``, or to join again."""
        member.left = True
        member.refuse(error or MemberLostError(f"{member.name} was lost: {reason}; join again"))
        if self.board is not None:
            self.board.ended(member.name)
        if self.turns.of(member) is not None:
            self.turns.roll_back(reason)
        self._miss(member.name, reason)
        if self.membership.all_left and self.error is None and not self._has_been_taken_home():
            if self.membership.door is None:
                self.error = StoppedError(f"no client is left; the last was {member.name}: {reason}")
            else:
                log.warning("no client is left: waiting for one to come back")
        self.go_on()
        self.end_if_over()

    def _put_out_revoked(self) -> None:
        """Must come before another turn is granted: nothing more is sealed with a key that one who was revoked knows.

        Raises:
            CheckpointError: as `put_out`.
        """
        for name in [] if self.board is None else self.board.newly_revoked():
            self.put_out(name, "its certificate was revoked")

    def put_out(self, name: str, why: str) -> None:
        """A site has no part in the run any more: the others make a new hand-off key.

        Raises:
            CheckpointError: that cannot be written; the run has stopped.
        """
        if self.board is not None and name not in self.board.removed:
            self.board.put_out(name, why)
            if (
                name in self.turns.running
            ):  # also where it has done its part of a turn in which others still train
                self.turns.roll_back(why)
            with self._stopping():
                self.run_state.keep_board()
            self.shut_out(name, why)

    def shut_out(self, name: str, why: str) -> None:
        """Ends a site's membership, and never admits it again."""
        error = self.membership.shut_out(name, why)
        self.recorder.event("put_out", client=name, reason=why)
        log.warning("%s", error)
        member = self.membership.get(name)
        if member is not None and not member.left:
            self.lose(member, why, error)

    def begin_anew(self, why: str = "") -> None:
        """Nobody has trained yet, and the first key is of no use: another site makes one. With ``why`` whoever made it
        is shut out.
        """
        assert self.board is not None
        founder = self.board.founder
        self.board.start_over()
        self.run_state.handoff = None
        with self._stopping():
            self.run_state.save()
        if why:
            self.shut_out(founder, why)
        else:
            log.warning(
                "%s, which made the hand-off key, is gone before anybody else had it: another one makes one",
                founder,
            )
            self.go_on()

    def convict(self, conviction: Conviction) -> None:
        """Two sites have put a third one out: what it sealed never happened.

        Raises:
            CheckpointError: there is nothing to go back to; the run has stopped.
        """
        assert self.board is not None
        self.turns.roll_back("what it began with is accused")
        self.board.put_out(conviction.guilty, conviction.why)
        with self._stopping():
            if conviction.handoff:
                turn = self.run_state.go_back(conviction.handoff)
                self.recorder.event("went_back", after_turn=turn, step=self.run_state.turn_log.step)
                log.warning("went back to what held after turn %d", turn)
            else:
                self.run_state.keep_board()
        self.shut_out(conviction.guilty, conviction.why)

    def answer_heads(self) -> None:
        """Tells those that have said goodbye what the others signed, once all that are there have said it."""
        here = [member for member in self.membership if not member.left]
        if any(member.farewell is None for member in here):
            return
        said = {name: farewell.head for name, farewell in self.run_state.farewells.items()}
        said |= {
            member.name: member.farewell.head for member in self.membership if member.farewell is not None
        }
        for member in here:
            if member.heads is not None:
                heads, member.heads = member.heads, None
                heads.set_result(Heads([head for head in said.values() if head is not None]))

    def _miss(self, name: str, reason: str) -> None:
        """Goes on without a client, until it comes back."""
        self.membership.lost.append(name)
        self.recorder.event("lost", client=name, reason=reason)
        log.warning("%s is lost: %s", name, reason)
        self._watcher.client_state(name, "lost")
        if self.run_state.turn_log.expects_evaluation(name):
            self.recorder.event("missing", client=name, round=self.run_state.turn_log.round)

    def stop(self, error: SutureError) -> None:
        """Ends the run early: every member is told why."""
        self.error = self.error or error
        self.go_on()
        self.end_if_over()

    def end_if_over(self) -> None:
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
        said = any(member.farewell for member in self.membership) or bool(self.run_state.farewells)
        return self.run_state.turn_log.finished and said

    def save(self) -> None:
        """Checkpoints what now holds.

        Raises:
            CheckpointError: it cannot be written; the run has stopped and the last checkpoint stays whole.
        """
        with self._stopping():
            self.recorder.flush()
            self.run_state.save()

    def _close_round(self) -> None:
        """Keeps the round that has just ended, where one has, and its evaluations."""
        with self._stopping():
            if self.run_state.closes_round():
                self.save()
                run_state = self.run_state
                self.recorder.event(
                    "round_done", round=run_state.turn_log.round, best_round=run_state.best_round
                )
                self._watcher.round_done(run_state.turn_log.round, run_state.best_round)

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Ends the run where something cannot be written: every member is told."""
        try:
            yield
        except CheckpointError as error:
            self.stop(error)
            raise
