"""Whose turn it is: grants the next turn, or tells everyone that the run is over.

Every method runs under the coordinator's lock.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from suture.runtime.errors import ConfigError
from suture.runtime.scheduler import Turn, TurnKind

if TYPE_CHECKING:
    from suture.runtime.server.coordinator import Coordinator

log = logging.getLogger(__name__)


class Dispatcher:
    """Grants turns in the order of the turn log, to those who are present.

    Args:
        run: whose turns.
    """

    def __init__(self, run: Coordinator) -> None:
        self._run = run
        self.run_state, self.membership = run.run_state, run.membership
        self._turn_log = run.run_state.turn_log
        self._begun = False
        self._said_nobody_trains = False

    def go_on(self) -> None:
        """Grants the next turn if its client waits for it, or tells everyone that the run is over.

        Raises:
            CheckpointError: the end of a round cannot be written; the run has stopped.
        """
        run = self._run
        if run.error is not None:
            name = type(run.error).__name__
            self._answer_all(Turn(TurnKind.END, reason=str(run.error), error=name))
        elif not run.transaction.turns and self._may_begin() and self.membership.present():
            # Where nobody is present the round waits as it is: else its turns would all fall out of it.
            if run.consortium.has_errand() or self._waits_for_one_that_trains():
                return
            if (turns := self._next_turns()) is not None:
                self._grant(turns)

    def waiting(self) -> Turn:
        """What one who waits is told: whose turn it is."""
        running = [turn.turn for turn in self._run.transaction.turns.values()]
        if not running:
            return Turn(TurnKind.WAIT)
        first, names = running[0], ", ".join(turn.client for turn in running)
        return Turn(TurnKind.WAIT, names, first.round, first.number, meanwhile=first.kind.value)

    def _next_turns(self) -> list[Turn] | None:
        """The turn that comes next, for each of its clients; empty where nothing is left, None where the run waits or
        has stopped.
        """
        turn_log, membership = self._turn_log, self.membership
        turns = turn_log.next_turns(membership.present(), membership.training())
        while not turns:
            # Evaluation changes no weights, so a round's evaluations are checkpointed together, at its end.
            self._close_round()
            if turn_log.finished or not membership.present():
                break
            if self._waits_for_one_that_trains():
                return None
            try:
                turn_log.start_round(membership.training(), membership.present())
            except ConfigError as error:
                self._run.stop(error)
                return None
            turns = turn_log.next_turns(membership.present(), membership.training())
        return turns

    def _grant(self, turns: list[Turn]) -> None:
        run, turn_log = self._run, self._turn_log
        epoch = 0 if run.board is None else run.board.epoch
        members = [member for turn in turns if (member := self.membership.get(turn.client)) is not None]
        if turns and len(members) == len(turns) and all(member.waiting is not None for member in members):
            run.transaction.grant(members, [replace(turn, epoch=epoch) for turn in turns])
            if self.membership.door is not None:
                # Sites that wait are told whose turn has begun; ranks of one start have the server's own display.
                for member in self.membership:
                    member.answer(self.waiting())
        elif not turns and turn_log.finished:
            last = Turn(TurnKind.END, round=turn_log.round, handoff=turn_log.handoff, epoch=epoch)
            self._answer_all(last)

    def _may_begin(self) -> bool:
        """Whether the run has begun; it begins once, and then goes on with whoever is present."""
        if not self._begun and self.membership.complete:
            self._begun = True
            for name in self._turn_log.planned():
                if self.membership.get(name) is None:  # it was in when the run was interrupted
                    self._run.miss(name, "it did not come back")
            self._run.recorder.event("begun", clients=self.membership.present())
        return self._begun

    def _waits_for_one_that_trains(self) -> bool:
        """Whether those who are present only evaluate, and a training turn comes next: the round waits as it is."""
        waits = self._turn_log.needs_training() and not self.membership.training()
        if waits and not self._said_nobody_trains:
            here = ", ".join(self.membership.present())
            log.warning(
                "nobody who trains is here (%s: evaluation only): the run waits for one who does", here
            )
            self._run.recorder.event("waits", clients=self.membership.present())
        self._said_nobody_trains = waits
        return waits

    def _close_round(self) -> None:
        """Keeps the round that has just ended, where one has, and its evaluations."""
        run, run_state = self._run, self.run_state
        with run.stopping():
            if run_state.closes_round():
                run.save()
                round, best = self._turn_log.round, run_state.best_round
                run.recorder.event("round_done", round=round, best_round=best)
                run.watcher.round_done(round, best)

    def _answer_all(self, turn: Turn) -> None:
        for member in self.membership:
            member.answer(turn)
