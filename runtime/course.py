"""The course of a run: which turn comes next, who is lost on the way, and when it is over.

Every method runs under the coordinator's lock.
"""

from __future__ import annotations

import logging
import threading
import time

from runtime.errors import CheckpointError, ConfigError, SeatLostError, StoppedError, SutureError
from runtime.journal import Journal
from runtime.leases import Knock, why_lost
from runtime.members import Members, Seat
from runtime.observers import NoRecorder, Recorder, Watcher
from runtime.scheduler import Turn, TurnKind
from runtime.turns import Turns
from runtime.wire import Refusal

log = logging.getLogger(__name__)


class Course:
    """See the module.

    Args:
        journal: what counted and the weights it led to.
        members: who is in.
        lease: seconds after which a silent member is lost.
        watcher: is told the progress.
        seed: the run's public seed.
        race: see `Turns`.
    """

    def __init__(
        self,
        journal: Journal,
        members: Members,
        lease: float,
        watcher: Watcher,
        seed: int = 0,
        race: bool = False,
    ) -> None:
        self.journal = journal
        self.members = members
        self.turns = Turns(journal, watcher, seed, race)
        self.recorder: Recorder = NoRecorder()
        self.error: SutureError | None = None
        self.ended = threading.Event()
        self._lease = lease
        self._watcher = watcher
        self._begun = False
        self._finished_at: float | None = None

    def go_on(self) -> None:
        """Grants the next turn if its client waits for it, or tells everyone that the run is over.

        Raises:
            CheckpointError: the end of a round cannot be written; the run has stopped.
        """
        ledger = self.journal.ledger
        if self.error is not None:
            name = type(self.error).__name__
            self._answer_all(Turn(TurnKind.END, reason=str(self.error), error=name))
        elif not self.turns.running and self._may_begin():
            turns = ledger.next_turns(self.members.present())
            while not turns:
                # Evaluation changes no weights, so a round's evaluations are checkpointed together, at its end.
                if self.journal.closes_round():
                    self.save()
                if ledger.finished or not self.members.present():
                    break
                try:
                    ledger.start_round(self.members.present())
                except ConfigError as error:
                    self.stop(error)
                    return
                turns = ledger.next_turns(self.members.present())
            seats = [seat for turn in turns if (seat := self.members.get(turn.client)) is not None]
            if turns and len(seats) == len(turns) and all(seat.waiting is not None for seat in seats):
                self.turns.grant(seats, turns)
            elif not turns and ledger.finished:
                self._answer_all(Turn(TurnKind.END, round=ledger.round, handoff=ledger.handoff))

    def _may_begin(self) -> bool:
        """Whether the run has begun; it begins once, and then goes on with whoever is present."""
        if not self._begun and self.members.complete:
            self._begun = True
            for name in self.journal.ledger.planned():
                if self.members.get(name) is None:  # it was in when the run was interrupted
                    self._miss(name, "it did not come back")
            self.recorder.event("begun", clients=self.members.present())
        return self._begun

    def _answer_all(self, turn: Turn) -> None:
        for seat in self.members:
            seat.answer(turn)

    def watch(self, knock: Knock | None = None) -> None:
        """Loses members that are gone or silent beyond the lease, and lets waiting ones ask again.

        Raises:
            CheckpointError: as `go_on`.
        """
        now = time.monotonic()
        for seat in self.members:
            if seat.left:
                continue
            if reason := why_lost(seat, self.turns.of(seat), self._lease, knock):
                self.lose(seat, reason)
            elif seat.waiting is not None and now - seat.waiting_since > self._lease / 4:
                seat.answer(Turn(TurnKind.WAIT))
        if self.members.door is not None:  # the grace may be over
            self.go_on()
            self.end_if_over()

    def lose(self, seat: Seat, reason: str) -> None:
        """Rolls a member's turn back and goes on without it."""
        seat.left = True
        seat.answer(Refusal.of(SeatLostError(f"{seat.name} was lost: {reason}; join again")))
        if self.turns.of(seat) is not None:
            self.turns.roll_back(reason)
        self._miss(seat.name, reason)
        if self.members.all_left and self.error is None and not self._has_been_taken_home():
            if self.members.door is None:
                self.error = StoppedError(f"no client is left; the last was {seat.name}: {reason}")
            else:
                log.warning("no client is left: waiting for one to come back")
        self.go_on()
        self.end_if_over()

    def _miss(self, name: str, reason: str) -> None:
        """Goes on without a client, until it comes back."""
        self.members.lost.append(name)
        self.recorder.event("lost", client=name, reason=reason)
        log.warning("%s is lost: %s", name, reason)
        self._watcher.client_state(name, "lost")
        if self.journal.ledger.expects_evaluation(name):
            self.recorder.event("missing", client=name, round=self.journal.ledger.round)

    def stop(self, error: SutureError) -> None:
        """Ends the run early: every member is told why."""
        self.error = self.error or error
        self.go_on()
        self.end_if_over()

    def end_if_over(self) -> None:
        """Lets the server's process go once nobody is left who could call, or is to come back."""
        if self.error is not None:
            over = self.members.all_left or not len(self.members)
        elif self.members.door is None:
            over = self.members.all_left
        else:
            over = self.members.all_left and self._has_been_taken_home()
            if over and set(self.members.lost) & self.journal.ledger.trained():
                # They trained it, too; one that is starting again gets it yet.
                self._finished_at = self._finished_at or time.monotonic()
                over = time.monotonic() - self._finished_at >= self.members.door.grace
        if over:
            self.ended.set()

    def _has_been_taken_home(self) -> bool:
        """Whether the run is finished and somebody has the model: whoever is lost now takes nothing with it."""
        return self.journal.ledger.finished and any(seat.farewell for seat in self.members)

    def save(self) -> None:
        """Checkpoints what now holds.

        Raises:
            CheckpointError: it cannot be written; the run has stopped and the last checkpoint stays whole.
        """
        try:
            self.recorder.flush()
            self.journal.save()
        except OSError as failure:
            error = CheckpointError(f"cannot write: {failure}")
            self.stop(error)
            raise error from failure
        except CheckpointError as error:
            self.stop(error)
            raise
