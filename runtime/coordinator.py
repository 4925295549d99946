"""The run at the server: who is in, whose turn it is, what counted; turns as transactions, leases, checkpoints.

Every method is called through an endpoint, by any RPC thread, and runs under one lock: between the first
forward and the last step of a turn only the client that holds the turn is answered, so forward to step is one
unit although the lock is free in between.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.futures import Future

from runtime.checkpoint import Checkpoints, read_checkpoint, write_atomically
from runtime.errors import CheckpointError, ConfigError, DivergedError, StoppedError, SutureError, WireError
from runtime.handoff import MAX_BYTES, handoff_digest, weights_digest
from runtime.hooks import SmashedBatch
from runtime.ledger import Ledger
from runtime.scheduler import Turn, TurnKind
from runtime.server import Server
from runtime.wire import (
    Farewell,
    Hello,
    LossReply,
    Refusal,
    Release,
    Report,
    SealedHandoff,
    StepDone,
    Upload,
    Welcome,
    check_handoff,
    check_scores,
)

log = logging.getLogger(__name__)
FORMAT = 1


class Recorder(Protocol):
    """What is told of a run's numbers; see `tracking.Tracker`."""

    def train_step(self, step: int, round: int, turn: int, client: str, loss: float) -> None: ...
    def scores(
        self, step: int, round: int, turn: int, client: str, phase: str, scores: Mapping[str, float]
    ) -> None: ...
    def event(self, name: str, **fields: object) -> None: ...
    def flush(self) -> None: ...


class Unrecorded:
    """A recorder that keeps nothing."""

    def train_step(self, step: int, round: int, turn: int, client: str, loss: float) -> None: ...
    def scores(
        self, step: int, round: int, turn: int, client: str, phase: str, scores: Mapping[str, float]
    ) -> None: ...
    def event(self, name: str, **fields: object) -> None: ...
    def flush(self) -> None: ...


class Watcher(Protocol):
    """What is told of a run's progress, for a person; see ``launch.progress``."""

    def turn_started(self, round: int, turn: int, client: str, kind: str, num_batches: int) -> None: ...
    def batch_done(self, loss: float, num_images: int) -> None: ...
    def turn_done(self) -> None: ...
    def client_state(self, client: str, state: str) -> None: ...
    def scores(self, client: str, phase: str, scores: Mapping[str, float]) -> None: ...


class Silent:
    """A watcher that shows nothing."""

    def turn_started(self, round: int, turn: int, client: str, kind: str, num_batches: int) -> None: ...
    def batch_done(self, loss: float, num_images: int) -> None: ...
    def turn_done(self) -> None: ...
    def client_state(self, client: str, state: str) -> None: ...
    def scores(self, client: str, phase: str, scores: Mapping[str, float]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the coordinator needs to know of a run.

    Attributes:
        run: the run's id, bound to every hand-off.
        run_dir: RUN, chosen by the server.
        clients: how many members the run waits for before it begins.
        lease: seconds after which a silent member is lost.
        agreement: options that every client must share, as strings.
        best_by: names of the metrics that select the best round, in order of preference.
        release_top: whether clients that finish are handed the trained top.
    """

    run: str
    run_dir: Path
    clients: int
    lease: float
    agreement: Mapping[str, str]
    best_by: tuple[str, ...]
    release_top: bool = True


@dataclass(eq=False)
class Seat:
    """One member's place at the server. Clients hold references to it and never see inside."""

    name: str = ""
    rpc_name: str = ""
    hello: Hello | None = None
    waiting: Future[Turn | Refusal] | None = None
    waiting_since: float = 0.0
    last_seen: float = 0.0
    uploaded: tuple[int, int] = (0, -1)
    num_stepped: int = 0
    farewell: Farewell | None = None
    left: bool = False


@dataclass
class Totals:
    """Sums over the whole run, kept across resume."""

    train_images: int = 0
    train_seconds: float = 0.0
    wall_seconds: float = 0.0
    rolled_back: int = 0
    lost: list[str] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0


class Coordinator:
    """See the module.

    Args:
        server: computes.
        ledger: the plan.
        config: the run.
        checkpoints: where the state goes after every turn.
        watcher: is told the progress.
    """

    def __init__(
        self,
        server: Server,
        ledger: Ledger,
        config: RunConfig,
        checkpoints: Checkpoints,
        watcher: Watcher | None = None,
    ) -> None:
        self.server = server
        self.ledger = ledger
        self.config = config
        self.totals = Totals()
        self.train_loss: dict[str, float] = {}
        self.scores: dict[str, dict[str, dict[str, float]]] = {}
        self.best_round = 0
        self.best_value = float("-inf")
        self._checkpoints = checkpoints
        self._recorder: Recorder = Unrecorded()
        self._watcher: Watcher = Silent() if watcher is None else watcher
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._seats: dict[str, Seat] = {}
        self._active: Turn | None = None
        self._turn_losses: list[float] = []
        self._turn_images = self._batch_images = 0
        self._turn_started = 0.0
        self._handoff: SealedHandoff | None = None
        self._reason = ""
        self._error: SutureError | None = None
        self._begun = time.monotonic()
        self._snapshot = self._state()

    # Start and end -------------------------------------------------------------------------------

    def begin(self, resume: bool, open_recorder: Callable[[int | None], Recorder]) -> None:
        """Makes turn 0 the first state to go back to, or with ``resume`` goes on from the newest checkpoint.

        Args:
            resume: whether the folder holds this run's checkpoints.
            open_recorder: makes the recorder; is given the last step that counts, None for a new run.

        Raises:
            CheckpointError: nothing can be read (resume) or written.
        """
        found = self._checkpoints.load_newest() if resume else None
        if found is None:
            self._checkpoints.save(0, self._snapshot)
            self._recorder = open_recorder(0 if resume else None)
            return
        turn, state = found
        self._restore(state)
        self._write_turns()
        self._recorder = open_recorder(self.ledger.step)
        self._recorder.event("resumed", after_turn=turn, step=self.ledger.step)
        log.info("resumed after turn %d: round %d, step %d", turn, self.ledger.round, self.ledger.step)

    def wait(self) -> None:
        """Blocks until every member has left, or the run has stopped, watching the leases meanwhile.

        Raises:
            SutureError: the run stopped early; the message says why.
        """
        while not self._ended.wait(min(1.0, self.config.lease / 10)):
            with self._lock:
                self._watch()
        if self._error is not None:
            raise self._error

    def weights_sha256(self) -> str:
        """Digest of the whole final model; the clients' parts as they reported them.

        Raises:
            WireError: two clients opened the same hand-off and report different weights.
        """
        reported = {tuple(sorted(s.farewell.digests.items())) for s in self._seats.values() if s.farewell}
        if len(reported) != 1:
            raise WireError(f"the clients report {len(reported)} different digests of the same parts")
        return weights_digest(dict(reported.pop()) | {"top": self.server.digest()})

    def trained_clients(self) -> list[str]:
        """The clients that have a counted turn, in the order in which people count."""
        return sorted({entry.client for entry in self.ledger.entries}, key=_natural)

    def peak_memory(self) -> dict[str, int]:
        """Peak resident memory in bytes that each client reported."""
        return {name: seat.farewell.peak_memory for name, seat in self._seats.items() if seat.farewell}

    def wall_seconds(self) -> float:
        """Seconds of this run, those before a resume included."""
        return self.totals.wall_seconds + time.monotonic() - self._begun

    # Members -------------------------------------------------------------------------------------

    def admit(self, seat: Seat, hello: Hello, rpc_name: str) -> Welcome:
        """Takes a member in.

        Raises:
            ConfigError: an option that must agree differs; both values are named.
            WireError: the name is taken or the message is malformed.
        """
        with self._lock:
            name = hello.client
            if not isinstance(name, str) or not name.replace("_", "a").isalnum() or len(name) > 64:
                raise WireError(f"a client's name must be letters, digits and underscores, got {name!r:.70}")
            for option in sorted(self.config.agreement.keys() | hello.agreement.keys()):
                ours, theirs = self.config.agreement.get(option), hello.agreement.get(option)
                if ours != theirs:
                    raise ConfigError(
                        f"{name} has {option} = {theirs}, the server has {ours}; start both with the same"
                    )
            present = self._seats.get(name)
            if present is not None and not present.left:
                raise WireError(f"{name} is in the run already; give every client a name of its own")
            if not isinstance(hello.num_batches, int) or hello.num_batches < 1:
                raise WireError(f"{name}: num_batches: expected a positive number, got {hello.num_batches!r:.40}")
            seat.name, seat.hello, seat.rpc_name, seat.last_seen = name, hello, rpc_name, time.monotonic()
            self._seats[name] = seat
            if name in self.totals.lost:
                self.totals.lost.remove(name)
            log.info("%s joined with %d training images", name, hello.num_images)
            self._recorder.event("joined", client=name)
            self._watcher.client_state(name, "waits")
            return Welcome(self.config.run, str(self.config.run_dir), self.config.lease)

    def ready(self, seat: Seat) -> Future[Turn | Refusal]:
        """A future of the client's next turn; kind wait after a while, so that a silent client is noticed."""
        with self._lock:
            self._known(seat)
            seat.waiting, seat.waiting_since = Future(), time.monotonic()
            answer = seat.waiting
            self._dispatch()
            return answer

    def finish(self, seat: Seat, farewell: Farewell) -> Release:
        """Takes a member's farewell and hands it the trained top."""
        with self._lock:
            self._known(seat)
            if not self.ledger.finished:
                raise WireError(f"{seat.name}: finish: the run is not over; refused")
            seat.farewell = farewell
            if not self.config.release_top:
                return Release({}, self.best_round)
            top = dict(self.server.top.state_dict())
            top = {name: tensor.detach().cpu() for name, tensor in top.items()}
            if self.best_round in (0, self.ledger.round):
                return Release(top, self.best_round)
            best = read_checkpoint(self._checkpoints.best)
            return Release(top, self.best_round, best["top"], SealedHandoff(**best["handoff"]))

    def leave(self, seat: Seat) -> None:
        """Frees a seat; when the last has been given back the run has ended."""
        with self._lock:
            self._known(seat)
            seat.left = True
            # A client whose turn failed has given it up already; this catches one that leaves within its turn.
            if self._active is not None and self._active.client == seat.name:
                self._roll_back("it left")
            if not self._reason and seat.farewell is None:
                self._lose(seat, "it left")
            self._end_if_empty()

    def _known(self, seat: Seat) -> None:
        if self._seats.get(seat.name) is not seat:
            raise WireError(f"{seat.name or 'a stranger'} has no seat in this run; it must join first")
        if seat.left and seat.name in self.totals.lost:
            raise StoppedError(f"{seat.name} was lost: the server did not hear from it; join again")
        seat.last_seen = time.monotonic()

    # Turns ---------------------------------------------------------------------------------------

    def newest_handoff(self, seat: Seat) -> SealedHandoff | None:
        """What the last counted training turn sealed."""
        with self._lock:
            self._known(seat)
            return self._handoff

    def forward(self, seat: Seat, upload: Upload) -> LossReply | Tensor:
        """One training batch; see `Server.forward`."""
        with self._lock:
            turn = self._holding(seat, upload.turn, TurnKind.TRAIN)
            batch = self._checked(seat, turn, upload)
            if upload.batch != seat.num_stepped:
                raise WireError(f"{seat.name}: batch: expected {seat.num_stepped}, got {upload.batch!r:.40}; refused")
            seat.uploaded = (turn.number, upload.batch)
            weights = None if seat.hello is None else seat.hello.class_weights
            answer = self.server.forward(batch, weights)
            self._batch_images = len(batch.smashed)
            self._measure(batch, answer)
            return answer

    def predict(self, seat: Seat, upload: Upload) -> Tensor:
        """One evaluation batch; see `Server.predict`."""
        with self._lock:
            turn = self._holding(seat, upload.turn, TurnKind.EVALUATE)
            return self.server.predict(self._checked(seat, turn, upload))

    def stepped(self, seat: Seat, done: StepDone, gradients: Mapping[Tensor, Tensor]) -> None:
        """Steps the top after a backward.

        Raises:
            DivergedError: the loss is not finite.
        """
        with self._lock:
            turn = self._holding(seat, done.turn, TurnKind.TRAIN)
            if seat.uploaded != (done.turn, done.batch):
                raise WireError(f"{seat.name}: step: batch {done.batch!r:.40} was not uploaded; refused")
            if not isinstance(done.loss, float) or done.loss != done.loss or abs(done.loss) == float("inf"):
                raise DivergedError(f"{seat.name}: round {turn.round}, batch {done.batch}: the loss is {done.loss}")
            self.server.step(gradients)
            seat.uploaded, seat.num_stepped = (0, -1), seat.num_stepped + 1
            self._turn_losses.append(done.loss)
            step = turn.step + len(self._turn_losses)
            self._recorder.train_step(step, turn.round, turn.number, turn.client, done.loss)
            self._turn_images += self._batch_images
            self._watcher.batch_done(done.loss, self._batch_images)
            seat.last_seen = time.monotonic()

    def commit(self, seat: Seat, handoff: SealedHandoff) -> None:
        """Makes a training turn count: the hand-off is kept and everything is on the disk."""
        with self._lock:
            check_handoff(handoff, seat.name, MAX_BYTES)
            turn = self._holding(seat, handoff.turn, TurnKind.TRAIN)
            if handoff.previous != handoff_digest(self._handoff):
                raise WireError(f"{seat.name}: handoff.previous: it does not follow the newest hand-off; refused")
            if not self._turn_losses:
                raise WireError(f"{seat.name}: a turn without a step cannot be committed; refused")
            self._handoff = handoff
            self.train_loss[turn.client] = sum(self._turn_losses) / len(self._turn_losses)
            self.totals.train_images += self._turn_images
            self.totals.train_seconds += time.monotonic() - self._turn_started
            self.ledger.count(turn, len(self._turn_losses))
            self._end_turn()
            self._save()
            self._dispatch()

    def report(self, seat: Seat, report: Report) -> None:
        """Makes an evaluation turn count."""
        with self._lock:
            turn = self._holding(seat, report.turn, TurnKind.EVALUATE)
            scores = check_scores(report.scores, seat.name)
            self.scores[turn.client] = scores
            self.ledger.count(turn, 0)
            for phase, values in scores.items():
                self._recorder.scores(turn.step, turn.round, turn.number, turn.client, phase, values)
                self._watcher.scores(turn.client, phase, values)
            self._end_turn()
            if self.ledger.round_done:
                # Evaluation changes no weights, so the round's evaluations are checkpointed together.
                self._keep_best()
                self._save()
            self._dispatch()

    def abort(self, seat: Seat, turn: int, reason: str) -> None:
        """A client gives its turn up. The error would come again, so the run stops, rolled back."""
        with self._lock:
            self._known(seat)
            if self._active is not None and (self._active.number, self._active.client) == (turn, seat.name):
                self._roll_back(str(reason)[:500])
            self.stop(str(reason)[:500])

    def stop(self, reason: str) -> None:
        """Ends the run early: every member is told why."""
        with self._lock:
            if not self._reason:
                self._reason = reason
                self._error = StoppedError(reason)
                log.error("the run stops: %s", reason)
            self._dispatch()
            self._end_if_empty()

    def _holding(self, seat: Seat, number: int, kind: TurnKind) -> Turn:
        self._known(seat)
        turn = self._active
        if turn is None or turn.client != seat.name or turn.number != number or turn.kind is not kind:
            running = "no turn" if turn is None else f"turn {turn.number} ({turn.kind}) of {turn.client}"
            raise WireError(f"{seat.name}: {kind} in turn {number!r:.40}, but {running} is running; refused")
        return turn

    def _checked(self, seat: Seat, turn: Turn, upload: Upload) -> SmashedBatch:
        training = turn.kind is TurnKind.TRAIN
        if (upload.phase == "train") is not training or upload.phase not in ("train", "validation", "test"):
            raise WireError(f"{seat.name}: phase: {upload.phase!r:.40} in a turn of kind {turn.kind}; refused")
        if not isinstance(upload.batch, int) or upload.batch < 0:
            raise WireError(f"{seat.name}: batch: expected a number from 0, got {upload.batch!r:.40}; refused")
        smashed = self.server.smashed.check(upload.smashed, seat.name, "smashed")
        spec = self.server.labels if training else None
        if (upload.labels is None) is not (spec is None):
            expected = "no labels" if spec is None else "labels"
            raise WireError(f"{seat.name}: labels: expected {expected} with a batch of {upload.phase}; refused")
        if spec is not None:
            spec.check(upload.labels, seat.name, "labels")
            if upload.labels is not None and len(upload.labels) != len(smashed):
                raise WireError(
                    f"{seat.name}: labels: expected {len(smashed)} for as many smashed images, "
                    f"got {len(upload.labels)}; refused"
                )
        return SmashedBatch(smashed, upload.labels, turn.client, turn.round, upload.batch, upload.phase)

    def _measure(self, batch: SmashedBatch, answer: LossReply | Tensor) -> None:
        smashed = batch.smashed.nbytes
        if isinstance(answer, LossReply):
            up, down = smashed + (0 if batch.labels is None else batch.labels.nbytes), smashed
        else:
            up, down = smashed + answer.nbytes, smashed + answer.nbytes
        self.totals.bytes_up = max(self.totals.bytes_up, up)
        self.totals.bytes_down = max(self.totals.bytes_down, down)

    # The order of turns --------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Grants the next turn if its client waits for it, or tells everyone that the run is over."""
        if self._reason:
            self._answer_all(Turn(TurnKind.END, reason=self._reason))
            return
        if self._active is not None:
            return
        lost = self.totals.lost
        turn = self.ledger.next_turn(lost)
        while turn is None:
            if self.ledger.finished:
                self._answer_all(Turn(TurnKind.END, round=self.ledger.round, handoff=self.ledger.handoff))
                return
            present = [name for name in self._seats if name not in lost]
            if len(self._seats) < self.config.clients or not present:
                return
            # Joining is a race between processes; the order of turns must not be.
            self.ledger.start_round(sorted(present, key=_natural))
            turn = self.ledger.next_turn(lost)
            if turn is None:
                self.stop(f"round {self.ledger.round} has no turns; check --schedule")
                return
        seat = self._seats.get(turn.client)
        if len(self._seats) < self.config.clients or seat is None or seat.waiting is None:
            return
        self._active = turn
        self._turn_losses, self._turn_images, self._turn_started = [], 0, time.monotonic()
        seat.uploaded, seat.num_stepped, seat.last_seen = (0, -1), 0, time.monotonic()
        num_batches = seat.hello.num_batches if seat.hello is not None else 0
        self._watcher.turn_started(turn.round, turn.number, turn.client, turn.kind, num_batches)
        self._answer(seat, turn)

    def _answer(self, seat: Seat, turn: Turn) -> None:
        waiting, seat.waiting = seat.waiting, None
        if waiting is not None:
            waiting.set_result(turn)

    def _answer_all(self, turn: Turn) -> None:
        for seat in self._seats.values():
            self._answer(seat, turn)

    def _watch(self) -> None:
        """Loses members that are silent beyond the lease, and lets waiting ones ask again."""
        now = time.monotonic()
        for seat in list(self._seats.values()):
            if seat.left:
                continue
            if seat.waiting is not None and now - seat.waiting_since > self.config.lease / 4:
                self._answer(seat, Turn(TurnKind.WAIT))
            elif seat.waiting is None and now - seat.last_seen > self.config.lease:
                self._lose(seat, f"no word from it for {self.config.lease:g} s")

    def _lose(self, seat: Seat, reason: str) -> None:
        seat.left, seat.waiting = True, None
        self.totals.lost.append(seat.name)
        self._recorder.event("lost", client=seat.name, reason=reason)
        log.warning("%s is lost: %s", seat.name, reason)
        self._watcher.client_state(seat.name, "lost")
        if self._active is not None and self._active.client == seat.name:
            self._roll_back(reason)
        if all(other.left for other in self._seats.values()):
            self.stop(f"no client is left; the last was {seat.name}: {reason}")
        self._dispatch()

    def _roll_back(self, reason: str) -> None:
        """Undoes the active turn whole."""
        turn = self._active
        if turn is None:
            return
        if turn.kind is TurnKind.TRAIN:
            self.server.load_state_dict(self._snapshot["server"])
        self.totals.rolled_back += 1
        self._recorder.event("rolled_back", turn=turn.number, client=turn.client, reason=reason)
        log.warning("turn %d of %s was rolled back: %s", turn.number, turn.client, reason)
        self._watcher.client_state(turn.client, "rolled back")
        self._active = None

    def _end_turn(self) -> None:
        self._active = None
        self._watcher.turn_done()

    def _end_if_empty(self) -> None:
        if self._seats and all(seat.left for seat in self._seats.values()):
            self._ended.set()

    # State ---------------------------------------------------------------------------------------

    def _keep_best(self) -> None:
        """Keeps the round whose mean validation metric over the clients is the highest so far."""
        values = []
        for scores in self.scores.values():
            found = [scores["validation"][name] for name in self.config.best_by if name in scores.get("validation", {})]
            values += found[:1]
        if not values or sum(values) / len(values) <= self.best_value:
            return
        self.best_round, self.best_value = self.ledger.round, sum(values) / len(values)
        state = {"top": self.server.state_dict()["top"], "handoff": _plain(self._handoff)}
        self._checkpoints.save_best(state)

    def _state(self) -> dict[str, Any]:
        """Everything that resuming needs; a copy, so that training does not change it."""
        return {
            "format": FORMAT,
            "run": self.config.run,
            "ledger": self.ledger.state_dict(),
            "server": self.server.state_dict(),
            "handoff": _plain(self._handoff),
            "scores": self.scores | {},
            "train_loss": self.train_loss | {},
            "best": [self.best_round, self.best_value],
            "totals": {
                "train_images": self.totals.train_images,
                "train_seconds": self.totals.train_seconds,
                "wall_seconds": self.wall_seconds(),
                "rolled_back": self.totals.rolled_back,
                "bytes_up": self.totals.bytes_up,
                "bytes_down": self.totals.bytes_down,
            },
        }

    def _restore(self, state: dict[str, Any]) -> None:
        if state.get("format") != FORMAT or state["run"] != self.config.run:
            raise CheckpointError(
                f"the checkpoint is of run {state.get('run')}, format {state.get('format')}; "
                f"expected run {self.config.run}, format {FORMAT}"
            )
        self._snapshot = state
        self.ledger.load_state_dict(state["ledger"])
        self.server.load_state_dict(state["server"])
        self._handoff = None if state["handoff"] is None else SealedHandoff(**state["handoff"])
        self.scores, self.train_loss = dict(state["scores"]), dict(state["train_loss"])
        self.best_round, self.best_value = state["best"]
        self.totals = Totals(**state["totals"])

    def _save(self) -> None:
        """Checkpoints what now holds; on failure the run stops and the last checkpoint stays whole."""
        self._snapshot = self._state()
        self._recorder.flush()
        try:
            self._checkpoints.save(len(self.ledger.entries), self._snapshot)
            self._write_turns()
        except CheckpointError as error:
            self.stop(str(error))
            self._error = error
            raise

    def _write_turns(self) -> None:
        try:
            write_atomically(self.config.run_dir / "turns.jsonl", self.ledger.lines())
        except OSError as error:
            raise CheckpointError(f"cannot write {self.config.run_dir}/turns.jsonl: {error.strerror}") from error


def _plain(handoff: SealedHandoff | None) -> dict[str, Any] | None:
    if handoff is None:
        return None
    return {
        "turn": handoff.turn,
        "previous": handoff.previous,
        "nonce": handoff.nonce,
        "ciphertext": handoff.ciphertext,
    }


def _natural(name: str) -> tuple[str, int, str]:
    """client2 before client10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or -1), name
