"""The turn that is being played: what its clients may do in it, what it has come to, and undoing it.

It is one client's, or that of several who train at once (see ``step_order``); what each may do in it is its
`ClientTurn`. Every method runs under the run's lock, most of them called by a client's `ServerApi` itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from suture.runtime.errors import TurnUndoneError, WireError
from suture.runtime.records.observers import StepLog, Watcher
from suture.runtime.scheduler import Together, Turn, TurnKind
from suture.runtime.server.client_turn import ClientTurn, StepQueue
from suture.runtime.server.membership import Member, natural
from suture.runtime.server.run_state import RunState
from suture.runtime.server.step_order import JoinedQueue, OrderedQueue, waves
from suture.runtime.state.handoff import HANDOFF, MAX_BYTES, SHARE, handoff_digest
from suture.runtime.wire.checks import check_handoff, check_scores, check_weights
from suture.runtime.wire.messages import Refusal, Report, SealedHandoff, Share

log = logging.getLogger(__name__)


class Transaction:
    """Plays one turn at a time; it counts, or is rolled back whole.

    Args:
        run_state: what counted, and the server that computes.
        watcher: is told the progress.
        seed: the run's public seed.
        race: whether clients that train at once are taken in the order of arrival.
    """

    def __init__(self, run_state: RunState, watcher: Watcher, seed: int = 0, race: bool = False) -> None:
        self.run_state = run_state
        self.log = StepLog(watcher)
        self._members: Sequence[Member] = ()
        self._watcher = watcher
        self._queue = StepQueue()
        self._granted_at = 0.0
        self._seed, self._race = seed, race

    @property
    def turns(self) -> dict[str, ClientTurn]:
        """What each client of the turn that is being played was asked to do, by its name."""
        return {member.name: member.turn for member in self._members if member.turn is not None}

    def grant(self, members: Sequence[Member], turns: Sequence[Turn]) -> None:
        """Gives each member, who waits for it, its part in the turn."""
        hellos = {member.name: member.hello for member in members if member.hello is not None}
        first, group = turns[0], tuple(hellos)
        num_batches = {name: hello.num_batches for name, hello in hellos.items()}
        self.log.num_done = 0
        self.run_state.server.begin_turn(first.round)
        self._queue, self._granted_at = self._queue_of(first, num_batches), time.monotonic()
        self._members = members
        for member, turn in zip(members, turns, strict=True):
            member.turn = ClientTurn(
                hellos[member.name], turn, group, self.run_state, self.log, self._queue, self._granted_at
            )
        total = sum(num_batches.values())
        self._watcher.turn_started(first.round, first.number, group, first.kind, total)
        for member, turn in zip(members, turns, strict=True):
            member.last_seen = self._granted_at
            member.answer(turn)

    def _queue_of(self, turn: Turn, num_batches: Mapping[str, int]) -> StepQueue:
        way = self.run_state.turn_log.together if turn.together else None
        names = tuple(sorted(num_batches, key=natural))
        if way is Together.SPLITFED:
            self.run_state.server.fork(names)
        if way is Together.CONCAT:
            return JoinedQueue({name: num_batches[name] for name in names})
        if way is not Together.PARALLEL:
            return StepQueue()
        written = self.run_state.turn_log.steps(turn.round, names)
        if written is not None or not self._race:
            ended: set[str] = set()
            drawn = waves(self._seed, turn.round, {name: num_batches[name] for name in names}, ended)
            return OrderedQueue(drawn if written is None else written, ended)
        return OrderedQueue(None)

    # What a client may ask for -------------------------------------------------------------------

    def newest_handoff(self, member: Member) -> SealedHandoff | None:
        """What the last counted training turn sealed, or the last mean.

        To ask once belongs to a turn and renews its lease; a client that asks again and again does not go on with it.
        """
        turn = member.open_turn
        if turn is not None and not turn.has_fetched:
            turn.has_fetched = True
            turn.went_on()
        return self.run_state.handoff

    def share(self, member: Member, index: int) -> Share | None:
        """What one client of the last turn sealed, for whoever is to average; None after the last.

        Raises:
            WireError: it is not this client's turn to average.
        """
        turn = member.open_turn
        if turn is None or turn.turn.kind is not TurnKind.AVERAGE or index < 0:
            raise WireError(
                f"{member.name}: share {index!r:.40}: no turn of its to average is running; refused"
            )
        if index >= turn.num_shares:
            turn.num_shares = index + 1
            turn.went_on()
        shares = sorted(self.run_state.shares.items(), key=lambda item: natural(item[0]))
        return Share(*shares[index]) if index < len(shares) else None

    def transfers(self, member: Member, seconds: float) -> None:
        """Bytes of a call of this member's are on their way: over a slow line a hand-off takes longer than a lease.

        For ``seconds`` since the turn last went on that renews its lease, and not for ever: bytes may be sent for
        nothing.
        """
        turn, now = member.open_turn, time.monotonic()
        if turn is not None and now - turn.went_on_at < seconds:
            turn.heard = now

    # How it ends ---------------------------------------------------------------------------------

    def commit(self, member: Member, handoff: SealedHandoff) -> bool:
        """Takes what a client sealed at the end of its turn.

        Returns:
            Whether the turn counts now, which is then for the caller to bring to the disk; else others are at it.
        """
        check_handoff(handoff, member.name, MAX_BYTES)
        turn = self._held(member)
        averages = turn.turn.kind is TurnKind.AVERAGE
        turn.check(handoff.turn, TurnKind.AVERAGE if averages else TurnKind.TRAIN)
        run_state, together = self.run_state, turn.turn.together
        if run_state.board is not None:
            run_state.board.check_handoff(member.name, handoff, SHARE if together else HANDOFF)
        if handoff.previous != handoff_digest(run_state.handoff):
            raise WireError(
                f"{member.name}: handoff.previous: it does not follow the newest hand-off; refused"
            )
        if averages:
            run_state.handoff, run_state.shares = handoff, {}
            self._count()
            return True
        if not turn.losses or turn.answer is not None:
            raise WireError(f"{member.name}: a turn without a step cannot be committed; refused")
        if turn.batch is not None:
            raise WireError(f"{member.name}: a turn with a batch half done cannot be committed; refused")
        if all(other.share is not None for other in self.turns.values() if other is not turn):
            self._check_top(turn.turn.round)
            turn.share = handoff
            self._end_training()
            return True
        turn.share = handoff
        self._queue.ended(member.name)
        return False

    def _check_top(self, round: int) -> None:
        """Makes one top of what the turn left.

        Raises:
            DivergedError: a weight of it is not finite.
        """
        server = self.run_state.server
        if server.is_forked:
            server.merge({name: turn.num_images for name, turn in self.turns.items()})
        check_weights(server.top.state_dict().values(), "+".join(self.turns), f"round {round}, the top")

    def _end_training(self) -> None:
        run_state, turns = self.run_state, self.turns
        first = next(iter(turns.values()))
        shares = {name: turn.share for name, turn in turns.items() if turn.share is not None}
        if first.turn.together:
            run_state.shares = shares
        else:
            (run_state.handoff,) = shares.values()
        for name, turn in turns.items():
            run_state.train_loss[name] = sum(turn.losses) / len(turn.losses)
            run_state.totals.train_images += turn.num_images
        run_state.totals.train_seconds += time.monotonic() - self._granted_at
        self._count(self._queue.order)

    def _count(self, order: str = "") -> None:
        turns = [turn.turn for turn in self.turns.values()]
        self.run_state.turn_log.count(turns, self.log.num_done, order)
        self._end()
        self._watcher.turn_done()

    def report(self, member: Member, report: Report) -> None:
        """Counts an evaluation turn."""
        held, run_state = self._held(member), self.run_state
        held.check(report.turn, TurnKind.EVALUATE)
        turn, scores = held.turn, check_scores(report.scores, member.name)
        run_state.scores[turn.client] = scores
        for phase, values in scores.items():
            self.log.recorder.scores(turn.step, turn.round, turn.number, turn.client, phase, values)
            self._watcher.scores(turn.client, phase, values)
        run_state.totals.evaluate_seconds += time.monotonic() - self._granted_at
        self._count()

    def roll_back(self, reason: str) -> None:
        """Undoes the running turn whole; members that were at it begin it again when they ask for a turn."""
        if not self.turns:
            return
        turns, members = self.turns, self._members
        first = next(iter(turns.values())).turn
        self._end()
        self.run_state.roll_back()
        names = "+".join(turns)
        self.log.recorder.event("rolled_back", turn=first.number, client=names, reason=reason)
        log.warning("turn %d of %s was rolled back: %s", first.number, names, reason)
        undone = f"turn {first.number} was rolled back: {reason}"
        for member in members:
            self._watcher.client_state(member.name, "rolled back")
            member.undone = undone
            turn = turns[member.name]
            if turn.answer is not None:
                member.last_seen = time.monotonic()
                turn.settle(Refusal.of(TurnUndoneError(undone)))

    # ---------------------------------------------------------------------------------------------

    def _held(self, member: Member) -> ClientTurn:
        if member.turn is None:
            raise member.without_turn()
        return member.turn

    def _end(self) -> None:
        for member in self._members:
            member.turn = None
        self._members = ()
