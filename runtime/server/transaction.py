"""The turn that is being played: what its clients may do in it, what it has come to, and undoing it.

It is one client's, or that of several who train at once (see ``step_order``). Every method runs under the coordinator's
lock, most of them called by a client's `ServerApi` itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.futures import Future

from suture.runtime.errors import TurnUndoneError, WireError
from suture.runtime.records.observers import Watcher
from suture.runtime.scheduler import Together, Turn, TurnKind
from suture.runtime.server.client_turn import ClientTurn
from suture.runtime.server.membership import Member, natural
from suture.runtime.server.run_state import RunState
from suture.runtime.server.step import Steps
from suture.runtime.server.step_order import JoinedQueue, OrderedQueue, StepQueue, waves
from suture.runtime.state.handoff import HANDOFF, MAX_BYTES, SHARE, handoff_digest
from suture.runtime.training.randomness import BatchAddress
from suture.runtime.wire.checks import check_handoff, check_scores, check_weights
from suture.runtime.wire.compression import Payload
from suture.runtime.wire.messages import (
    LossReply,
    OutputGradient,
    Refusal,
    Report,
    SealedHandoff,
    Share,
    StepDone,
    Upload,
)

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
        self.steps = Steps(run_state, watcher)
        self.turns: dict[str, ClientTurn] = {}
        self._watcher = watcher
        self._queue = StepQueue(self.steps)
        self._seed, self._race = seed, race

    def grant(self, members: Sequence[Member], turns: Sequence[Turn]) -> None:
        """Gives each member, who waits for it, its part in the turn."""
        now, first = time.monotonic(), turns[0]
        self.turns = {
            member.name: ClientTurn(member, turn, started=now, heard=now, went_on_at=now)
            for member, turn in zip(members, turns, strict=True)
        }
        self.steps.num_done = 0
        num_batches = {m.name: m.hello.num_batches for m in members if m.hello is not None}
        self._queue = self._queue_of(first, num_batches)
        names, total = "+".join(self.turns), sum(num_batches.values())
        self._watcher.turn_started(first.round, first.number, names, first.kind, total)
        for turn in list(self.turns.values()):
            turn.member.last_seen = now
            turn.member.answer(turn.turn)

    def _queue_of(self, turn: Turn, num_batches: Mapping[str, int]) -> StepQueue:
        way = self.run_state.turn_log.together if turn.together else None
        names = tuple(sorted(num_batches, key=natural))
        if way is Together.SPLITFED:
            self.run_state.server.fork(names)
        if way is Together.CONCAT:
            return JoinedQueue(self.steps, {name: num_batches[name] for name in names})
        if way is not Together.PARALLEL:
            return StepQueue(self.steps)
        written = self.run_state.turn_log.steps(turn.round, names)
        if written is not None or not self._race:
            ended: set[str] = set()
            drawn = waves(self._seed, turn.round, {name: num_batches[name] for name in names}, ended)
            return OrderedQueue(self.steps, drawn if written is None else written, ended)
        return OrderedQueue(self.steps, None)

    def of(self, member: Member) -> ClientTurn | None:
        """The member's part in the turn, as long as something of it is left to do."""
        turn = self.turns.get(member.name)
        return turn if turn is not None and turn.share is None else None

    # What a client may ask for -------------------------------------------------------------------

    def newest_handoff(self, member: Member) -> SealedHandoff | None:
        """What the last counted training turn sealed, or the last mean.

        To ask once belongs to a turn and renews its lease; a client that asks again and again does not go on with it.
        """
        turn = self.of(member)
        if turn is not None and not turn.has_fetched:
            turn.has_fetched = True
            turn.went_on()
        return self.run_state.handoff

    def share(self, member: Member, index: int) -> Share | None:
        """What one client of the last turn sealed, for whoever is to average; None after the last.

        Raises:
            WireError: it is not this client's turn to average.
        """
        turn = self.of(member)
        if turn is None or turn.turn.kind is not TurnKind.AVERAGE or index < 0:
            raise WireError(
                f"{member.name}: share {index!r:.40}: no turn of its to average is running; refused"
            )
        if index >= turn.num_shares:
            turn.num_shares = index + 1
            turn.went_on()
        shares = sorted(self.run_state.shares.items(), key=lambda item: natural(item[0]))
        return Share(*shares[index]) if index < len(shares) else None

    def forward(self, member: Member, upload: Upload) -> LossReply | Tensor:
        """One training batch on the client's own graph; see `ServerModel.forward`."""
        server = self.run_state.server
        if not server.packer.differentiable:
            raise WireError(f"{member.name}: forward: no graph crosses in {server.packer.wire}; refused")
        turn = self._held(member, upload.turn, TurnKind.TRAIN)
        if turn.turn.together:
            raise WireError(f"{member.name}: forward: others train in this turn; no graph crosses; refused")
        answer = server.forward(self.steps.arrived(turn, upload), turn.class_weights)
        # The gradients cross in autograd's own messages, each in the form of what it is the gradient of.
        self.steps.crossed(turn, down=upload.smashed)
        if isinstance(answer, LossReply):
            return answer
        output = self.steps.output(turn, answer)
        assert isinstance(output, Tensor)
        self.steps.crossed(turn, up=output)
        return output

    def train(self, member: Member, upload: Upload, answer: Future[Any]) -> None:
        """One explicit step, or its forward half where labels stay at home; ``answer`` takes what comes of it.

        Raises:
            WireError: it is not what comes next in the client's turn.
        """
        turn = self._held(member, upload.turn, TurnKind.TRAIN)
        announced = 0 if member.hello is None else member.hello.num_batches
        if turn.turn.together and upload.batch >= announced:
            raise WireError(f"{member.name}: batch: it announced {announced}, got {upload.batch}; refused")
        self.steps.arrived(turn, upload)
        turn.answer = answer
        self._queue.train(turn)

    def backward(self, member: Member, message: OutputGradient, answer: Future[Any]) -> None:
        """The other half of an explicit step; ``answer`` takes the gradient at the cut.

        Raises:
            WireError: no forward waits for it, or it is not shaped like that one's answer.
            DivergedError: the loss is not finite.
        """
        turn = self._held(member, message.turn, TurnKind.TRAIN)
        self.steps.gradient_arrived(turn, message)
        turn.answer = answer
        self._queue.backward(turn)

    def predict(self, member: Member, upload: Upload) -> Payload:
        """One evaluation batch; see `ServerModel.predict`."""
        turn, server = self._held(member, upload.turn, TurnKind.EVALUATE), self.run_state.server
        output = server.predict(self.steps.checked(turn, upload))
        address = BatchAddress.evaluation(turn.turn.round, turn.turn.client, upload.batch)
        return server.packer.pack(output, f"output/{upload.phase}", *address)

    def stepped(self, member: Member, done: StepDone, gradients: Mapping[Tensor, Tensor]) -> None:
        """Steps the top after a backward of distributed autograd's.

        Raises:
            DivergedError: the loss is not finite.
        """
        self.steps.stepped(self._held(member, done.turn, TurnKind.TRAIN), done, gradients)

    def transfers(self, member: Member, seconds: float) -> None:
        """Bytes of a call of this member's are on their way: over a slow line a hand-off takes longer than a lease.

        For ``seconds`` since the turn last went on that renews its lease, and not for ever: bytes may be sent for
        nothing.
        """
        turn, now = self.of(member), time.monotonic()
        if turn is not None and now - turn.went_on_at < seconds:
            turn.heard = now

    # How it ends ---------------------------------------------------------------------------------

    def commit(self, member: Member, handoff: SealedHandoff) -> bool:
        """Takes what a client sealed at the end of its turn.

        Returns:
            Whether the turn counts now, which is then for the caller to bring to the disk; else others are at it.
        """
        check_handoff(handoff, member.name, MAX_BYTES)
        own = self.of(member)
        averages = own is not None and own.turn.kind is TurnKind.AVERAGE
        turn = self._held(member, handoff.turn, TurnKind.AVERAGE if averages else TurnKind.TRAIN)
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
        run_state.totals.train_seconds += time.monotonic() - first.started
        self._count(self._queue.order)

    def _count(self, order: str = "") -> None:
        turns = [turn.turn for turn in self.turns.values()]
        self.run_state.turn_log.count(turns, self.steps.num_done, order)
        self.turns = {}
        self._watcher.turn_done()

    def report(self, member: Member, report: Report) -> None:
        """Counts an evaluation turn."""
        held, run_state = self._held(member, report.turn, TurnKind.EVALUATE), self.run_state
        turn, scores = held.turn, check_scores(report.scores, member.name)
        run_state.scores[turn.client] = scores
        for phase, values in scores.items():
            self.steps.recorder.scores(turn.step, turn.round, turn.number, turn.client, phase, values)
            self._watcher.scores(turn.client, phase, values)
        run_state.totals.evaluate_seconds += time.monotonic() - held.started
        self._count()

    def roll_back(self, reason: str) -> None:
        """Undoes the running turn whole; members that were at it begin it again when they ask for a turn."""
        if not self.turns:
            return
        turns, self.turns = self.turns, {}
        first = next(iter(turns.values())).turn
        self.run_state.roll_back()
        names = "+".join(turns)
        self.steps.recorder.event("rolled_back", turn=first.number, client=names, reason=reason)
        log.warning("turn %d of %s was rolled back: %s", first.number, names, reason)
        undone = f"turn {first.number} was rolled back: {reason}"
        for name, turn in turns.items():
            self._watcher.client_state(name, "rolled back")
            turn.member.undone = undone
            if turn.answer is not None:
                turn.settle(Refusal.of(TurnUndoneError(undone)))

    # ---------------------------------------------------------------------------------------------

    def _held(self, member: Member, number: int, kind: TurnKind) -> ClientTurn:
        turn = self.of(member)
        if turn is None and member.undone:
            raise TurnUndoneError(member.undone)
        if turn is None or (turn.turn.number, turn.turn.kind) != (number, kind):
            raise WireError(
                f"{member.name}: {kind} in turn {number!r:.40}, but {self._what_runs()} is running; refused"
            )
        turn.went_on()
        return turn

    def _what_runs(self) -> str:
        if not self.turns:
            return "no turn"
        turn = next(iter(self.turns.values())).turn
        return f"turn {turn.number} ({turn.kind}) of {'+'.join(self.turns)}"
