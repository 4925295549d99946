"""The turn that is being played: what its clients may do in it, what it has come to, and undoing it.

It is one client's, or that of several who train at once (see ``together``). Every method runs under the coordinator's
lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.futures import Future

from suture.runtime.errors import TurnUndoneError, WireError
from suture.runtime.records.observers import Recorder, Watcher
from suture.runtime.scheduler import Together, Turn, TurnKind
from suture.runtime.server.membership import Member, natural
from suture.runtime.server.run_state import RunState
from suture.runtime.server.step import Running, Steps, class_weights
from suture.runtime.server.step_order import Joined, Lane, OneByOne, waves
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


class Turns:
    """Plays one turn at a time.

    Args:
        run_state: what counted, and the server that computes.
        watcher: is told the progress.
        seed: the run's public seed.
        race: whether clients that train at once are taken in the order of arrival.
    """

    def __init__(self, run_state: RunState, watcher: Watcher, seed: int = 0, race: bool = False) -> None:
        self.run_state = run_state
        self.running: dict[str, Running] = {}
        self._members: dict[str, Member] = {}
        self._watcher = watcher
        self._steps = Steps(run_state, watcher)
        self._lane = Lane(self._steps)
        self._seed, self._race = seed, race

    @property
    def recorder(self) -> Recorder:
        """Takes the numbers."""
        return self._steps.recorder

    @recorder.setter
    def recorder(self, recorder: Recorder) -> None:
        self._steps.recorder = recorder

    def grant(self, members: Sequence[Member], turns: Sequence[Turn]) -> None:
        """Gives each member, who waits for it, its part in the turn."""
        now, first = time.monotonic(), turns[0]
        self._members = {member.name: member for member in members}
        self.running = {turn.client: Running(turn, started=now, heard=now, went_on_at=now) for turn in turns}
        self._steps.num_done = 0
        num_batches = {
            member.name: member.hello.num_batches for member in members if member.hello is not None
        }
        self._lane = self._lane_of(first, num_batches)
        names, total = "+".join(self.running), sum(num_batches.values())
        self._watcher.turn_started(first.round, first.number, names, first.kind, total)
        for member, turn in zip(members, turns, strict=True):
            member.uploaded, member.num_stepped, member.last_seen = (0, -1), 0, now
            member.answer(turn)

    def _lane_of(self, turn: Turn, num_batches: Mapping[str, int]) -> Lane:
        way = self.run_state.turn_log.together if turn.together else None
        names = tuple(sorted(num_batches, key=natural))
        if way is Together.SPLITFED:
            self.run_state.server.fork(names)
        if way is Together.CONCAT:
            return Joined(self._steps, {name: num_batches[name] for name in names})
        if way is not Together.PARALLEL:
            return Lane(self._steps)
        written = self.run_state.turn_log.steps(turn.round, names)
        if written is not None or not self._race:
            ended: set[str] = set()
            drawn = waves(self._seed, turn.round, {name: num_batches[name] for name in names}, ended)
            return OneByOne(self._steps, drawn if written is None else written, ended)
        return OneByOne(self._steps, None)

    def of(self, member: Member) -> Running | None:
        """The member's part in the running turn, as long as something of it is left to do."""
        running = self.running.get(member.name)
        return running if running is not None and running.share is None else None

    # What a client may ask for -------------------------------------------------------------------

    def newest_handoff(self, member: Member) -> SealedHandoff | None:
        """What the last counted training turn sealed, or the last mean.

        To ask once belongs to a turn and renews its lease; a client that asks again and again does not go on with it.
        """
        running = self.of(member)
        if running is not None and not running.has_fetched:
            running.has_fetched = True
            running.went_on()
        return self.run_state.handoff

    def share(self, member: Member, index: int) -> Share | None:
        """What one client of the last turn sealed, for whoever is to average; None after the last.

        Raises:
            WireError: it is not this client's turn to average.
        """
        running = self.of(member)
        if running is None or running.turn.kind is not TurnKind.AVERAGE or index < 0:
            raise WireError(
                f"{member.name}: share {index!r:.40}: no turn of its to average is running; refused"
            )
        if index >= running.num_shares:
            running.num_shares = index + 1
            running.went_on()
        shares = sorted(self.run_state.shares.items(), key=lambda item: natural(item[0]))
        return Share(*shares[index]) if index < len(shares) else None

    def forward(self, member: Member, upload: Upload) -> LossReply | Tensor:
        """One training batch on the client's own graph; see `Server.forward`."""
        server = self.run_state.server
        if not server.packer.differentiable:
            raise WireError(f"{member.name}: forward: no graph crosses in {server.packer.wire}; refused")
        if upload.parts != 1:
            raise WireError(f"{member.name}: forward: a graph crosses whole, not in parts; refused")
        running = self._held(member, upload.turn, TurnKind.TRAIN)
        if running.turn.together:
            raise WireError(f"{member.name}: forward: others train in this turn; no graph crosses; refused")
        work = self._steps.arrived(member, running, upload, Future())
        assert work.batch is not None
        answer = server.forward(work.batch, class_weights(member))
        # The gradients cross in autograd's own messages, each in the form of what it is the gradient of.
        self._steps.crossed(running, down=upload.smashed)
        if isinstance(answer, LossReply):
            return answer
        output = self._steps.output(work, answer)
        assert isinstance(output, Tensor)
        self._steps.crossed(running, up=output)
        return output

    def train(self, member: Member, upload: Upload, answer: Future[Any]) -> None:
        """One explicit step, or its forward half where labels stay at home; ``answer`` takes what comes of it.

        Raises:
            WireError: it is not what comes next in the client's turn.
        """
        running = self._held(member, upload.turn, TurnKind.TRAIN)
        announced = 0 if member.hello is None else member.hello.num_batches
        if running.turn.together and upload.batch >= announced:
            raise WireError(f"{member.name}: batch: it announced {announced}, got {upload.batch}; refused")
        if running.turn.together and upload.parts != 1:
            raise WireError(f"{member.name}: part: others train in this turn; batches come whole; refused")
        work = self._steps.arrived(member, running, upload, answer)
        running.owed = work
        self._lane.train(work)

    def backward(self, member: Member, message: OutputGradient, answer: Future[Any]) -> None:
        """The other half of an explicit step; ``answer`` takes the gradient at the cut.

        Raises:
            WireError: no forward waits for it, or it is not shaped like that one's answer.
            DivergedError: the loss is not finite.
        """
        running = self._held(member, message.turn, TurnKind.TRAIN)
        work = self._steps.gradient_arrived(member, running, message, answer)
        running.owed = work
        self._lane.backward(work)

    def is_early(self, member: Member, message: Upload | OutputGradient) -> bool:
        """Whether ``message`` belongs behind one that this member's turn still waits for."""
        running = self.of(member)
        its = running is not None and running.turn.number == message.turn
        return running is not None and its and running.parts.is_early(message, member.num_stepped)

    def predict(self, member: Member, upload: Upload) -> Payload:
        """One evaluation batch; see `Server.predict`."""
        running, server = self._held(member, upload.turn, TurnKind.EVALUATE), self.run_state.server
        if upload.parts != 1:
            raise WireError(f"{member.name}: predict: images are evaluated whole, not in parts; refused")
        output = server.predict(self._steps.checked(member, running.turn, upload))
        address = BatchAddress.evaluation(running.turn.round, running.turn.client, upload.batch)
        return server.packer.pack(output, f"output/{upload.phase}", *address)

    def stepped(self, member: Member, done: StepDone, gradients: Mapping[Tensor, Tensor]) -> None:
        """Steps the top after a backward.

        Raises:
            DivergedError: the loss is not finite.
        """
        self._steps.stepped(member, self._held(member, done.turn, TurnKind.TRAIN), done, gradients)

    def transfers(self, member: Member, seconds: float) -> None:
        """Bytes of a call of this member's are on their way: over a slow line a hand-off takes longer than a lease.

        For ``seconds`` since the turn last went on that renews its lease, and not for ever: bytes may be sent for
        nothing.
        """
        running, now = self.of(member), time.monotonic()
        if running is not None and now - running.went_on_at < seconds:
            running.heard = now

    # How it ends ---------------------------------------------------------------------------------

    def commit(self, member: Member, handoff: SealedHandoff) -> bool:
        """Takes what a client sealed at the end of its turn.

        Returns:
            Whether the turn counts now, which is then for the caller to bring to the disk; else others are at it.
        """
        check_handoff(handoff, member.name, MAX_BYTES)
        own = self.of(member)
        averages = own is not None and own.turn.kind is TurnKind.AVERAGE
        running = self._held(member, handoff.turn, TurnKind.AVERAGE if averages else TurnKind.TRAIN)
        run_state, turn = self.run_state, running.turn
        if run_state.board is not None:
            run_state.board.check_handoff(member.name, handoff, SHARE if turn.together else HANDOFF)
        if handoff.previous != handoff_digest(run_state.handoff):
            raise WireError(
                f"{member.name}: handoff.previous: it does not follow the newest hand-off; refused"
            )
        if averages:
            run_state.handoff, run_state.shares = handoff, {}
            self._count()
            return True
        if not running.losses or running.owed is not None:
            raise WireError(f"{member.name}: a turn without a step cannot be committed; refused")
        if running.parts.came:
            raise WireError(f"{member.name}: a turn with a batch half done cannot be committed; refused")
        others = [part for part in self.running.values() if part is not running]
        if all(part.share is not None for part in others):
            self._check_top(turn.round)
            running.share = handoff
            self._end_training()
            return True
        running.share = handoff
        self._lane.ended(member.name)
        return False

    def _check_top(self, round: int) -> None:
        """Makes one top of what the turn left.

        Raises:
            DivergedError: a weight of it is not finite.
        """
        server = self.run_state.server
        if server.is_forked:
            server.merge({name: part.num_images for name, part in self.running.items()})
        check_weights(server.top.state_dict().values(), "+".join(self.running), f"round {round}, the top")

    def _end_training(self) -> None:
        run_state, parts = self.run_state, self.running
        first = next(iter(parts.values()))
        shares = {name: part.share for name, part in parts.items() if part.share is not None}
        if first.turn.together:
            run_state.shares = shares
        else:
            (run_state.handoff,) = shares.values()
        for name, part in parts.items():
            run_state.train_loss[name] = sum(part.losses) / len(part.losses)
            run_state.totals.train_images += part.num_images
        run_state.totals.train_seconds += time.monotonic() - first.started
        self._count(self._lane.order)

    def _count(self, order: str = "") -> None:
        turns = [part.turn for part in self.running.values()]
        self.run_state.turn_log.count(turns, self._steps.num_done, order)
        self.running = {}
        self._watcher.turn_done()

    def report(self, member: Member, report: Report) -> None:
        """Counts an evaluation turn."""
        running, run_state = self._held(member, report.turn, TurnKind.EVALUATE), self.run_state
        turn = running.turn
        scores = check_scores(report.scores, member.name)
        run_state.scores[turn.client] = scores
        for phase, values in scores.items():
            self.recorder.scores(turn.step, turn.round, turn.number, turn.client, phase, values)
            self._watcher.scores(turn.client, phase, values)
        run_state.totals.evaluate_seconds += time.monotonic() - running.started
        self._count()

    def roll_back(self, reason: str) -> None:
        """Undoes the running turn whole; members that were at it begin it again when they ask for a turn."""
        if not self.running:
            return
        parts, self.running = self.running, {}
        first = next(iter(parts.values())).turn
        self.run_state.roll_back()
        names = "+".join(parts)
        self.recorder.event("rolled_back", turn=first.number, client=names, reason=reason)
        log.warning("turn %d of %s was rolled back: %s", first.number, names, reason)
        undone = f"turn {first.number} was rolled back: {reason}"
        for name, part in parts.items():
            self._watcher.client_state(name, "rolled back")
            self._members[name].undone = undone
            if part.owed is not None:
                part.owed.settle(Refusal.of(TurnUndoneError(undone)))

    # ---------------------------------------------------------------------------------------------

    def _held(self, member: Member, number: int, kind: TurnKind) -> Running:
        running = self.of(member)
        if running is None and member.undone:
            raise TurnUndoneError(member.undone)
        if running is None or (running.turn.number, running.turn.kind) != (number, kind):
            raise WireError(
                f"{member.name}: {kind} in turn {number!r:.40}, but {self._what_runs()} is running; refused"
            )
        running.went_on()
        return running

    def _what_runs(self) -> str:
        if not self.running:
            return "no turn"
        turn = next(iter(self.running.values())).turn
        return f"turn {turn.number} ({turn.kind}) of {'+'.join(self.running)}"
