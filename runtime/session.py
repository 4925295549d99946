"""THE loop: the protocol as one client lives it, and the same loop with all roles in one process.

client                                   server
join(hello)                 ->           agree on the options, or refuse
next_turn()                 ->           wait until it is this client's turn
  fetch()                   ->           the newest sealed hand-off
  train() ...              <->           smashed data up, gradient at the cut down, both sides step
  commit(seal())            ->           the turn counts: checkpoint, then the next client
  or: shares(), commit()                 clients have trained at once: one of them seals the mean of their parts
  or: predict() ..., report(scores)      evaluation: no graph, no step
finish(farewell)            ->           after the last round: the trained top
leave()                     ->           the membership has ended
"""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from suture.runtime.client.client import Client
from suture.runtime.client.wishes import NoWishes, Parting, Wish, Wishes
from suture.runtime.consortium import errands
from suture.runtime.data.client_data import Batch
from suture.runtime.errors import (
    ERRORS,
    AlarmError,
    BadHandoffError,
    CheckpointError,
    MemberLostError,
    NameTakenError,
    StoppedError,
    SutureError,
    TurnUndoneError,
    WireError,
)
from suture.runtime.exchange.exchange import Exchange
from suture.runtime.exchange.local import LocalExchange
from suture.runtime.exchange.turnstile import side_by_side
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.wire.messages import Farewell, Release, Welcome, printable, unwrap

log = logging.getLogger(__name__)


class ClientObserver(Protocol):
    """What a client shows and keeps for its own people: how its training goes, pictures, the model at the end."""

    def joined(self, client: Client, welcome: Welcome) -> None: ...
    def waits(self, turn: Turn) -> None: ...
    def began(self, turn: Turn) -> None: ...
    def trained(self, turn: Turn, batch: Batch, loss: float) -> None: ...
    def evaluated(self, turn: Turn, phase: str, batch: Batch, smashed: Tensor, logits: Tensor) -> None: ...
    def watched(self, turn: Turn, batch: Batch, score: float, alarm: str) -> None: ...
    def scored(self, turn: Turn, scores: Mapping[str, Mapping[str, float]]) -> None: ...
    def counted(self, turn: Turn) -> None: ...
    def undone(self, turn: Turn, why: str) -> None: ...
    def finished(self, client: Client, release: Release) -> None: ...


class NoClientObserver:
    """Shows and keeps nothing."""

    def joined(self, client: Client, welcome: Welcome) -> None: ...
    def waits(self, turn: Turn) -> None: ...
    def began(self, turn: Turn) -> None: ...
    def trained(self, turn: Turn, batch: Batch, loss: float) -> None: ...
    def evaluated(self, turn: Turn, phase: str, batch: Batch, smashed: Tensor, logits: Tensor) -> None: ...
    def watched(self, turn: Turn, batch: Batch, score: float, alarm: str) -> None: ...
    def scored(self, turn: Turn, scores: Mapping[str, Mapping[str, float]]) -> None: ...
    def counted(self, turn: Turn) -> None: ...
    def undone(self, turn: Turn, why: str) -> None: ...
    def finished(self, client: Client, release: Release) -> None: ...


E = TypeVar("E", bound=Exchange, covariant=True)


@dataclass(frozen=True)
class Participant(Generic[E]):
    """A client, its way to the server, what it keeps, and what its own people may want meanwhile."""

    client: Client
    exchange: E
    observer: ClientObserver
    wishes: Wishes = field(default_factory=NoWishes)


def take_part(
    participant: Participant[Exchange], agreement: Mapping[str, str], patience: float = 0.0
) -> None:
    """One client's whole run, in its own process.

    Args:
        participant: who takes part.
        agreement: the options that all must share.
        patience: seconds to wait to be let in while the server still believes this client's last process alive.

    Raises:
        SutureError: the run stopped, here or elsewhere; the turn was given up and rolled back.
    """
    join(participant, agreement, patience)
    try:
        take_turns(participant)
    finally:
        _quietly(participant.exchange.leave)


def take_turns(participant: Participant[Exchange]) -> None:
    """All turns of a client that has joined, until the run is over and the client has the model.

    Raises:
        SutureError: as `take_part`.
        Parting: the client's own people want it to go; see `part`.
    """
    awaits_mean = False
    while True:
        look = partial(participant.wishes.between_turns, awaits_mean)
        look()
        turn = participant.exchange.next_turn(look)()
        if turn.kind is TurnKind.END:
            break
        take_turn(participant, turn)
        awaits_mean = turn.together or (awaits_mean and turn.kind is TurnKind.WAIT)
    end(participant, turn)


def part(participant: Participant[Exchange], parting: Parting) -> None:
    """Goes, for good or until it joins again; the turn that the client is in, if it is in one, is rolled back.

    Raises:
        SutureError: the server did not hear it. A client that leaves for good must tell it, and try again.
    """
    participant.client.undo()
    if parting.wish is Wish.LEAVE:
        errands.withdraw(participant)
    else:
        _quietly(participant.exchange.leave)


def run_local(members: list[Participant[LocalExchange]], agreement: Mapping[str, str]) -> None:
    """All clients' whole runs in one process: whoever's turn it is takes it.

    Raises:
        SutureError: as `take_part`.
    """
    waiting = {}
    for participant in members:
        join(participant, agreement)
    for participant in members:
        waiting[participant.client.name] = (participant, participant.exchange.ask_turn())
    try:
        while waiting:
            granted = [
                (waiting.pop(name)[0], unwrap(future.value()))
                for name, (_, future) in list(waiting.items())
                if future.done()
            ]
            for participant, turn in granted:
                if turn.kind is TurnKind.END:
                    end(participant, turn)
            playing = [(participant, turn) for participant, turn in granted if turn.kind is not TurnKind.END]
            side_by_side([partial(take_turn, participant, turn) for participant, turn in playing])
            for participant, _ in playing:
                waiting[participant.client.name] = (participant, participant.exchange.ask_turn())
    finally:
        for participant in members:
            _quietly(participant.exchange.leave)


def join(participant: Participant[Exchange], agreement: Mapping[str, str], patience: float = 0.0) -> None:
    """Joins the run; the server names the run and its folder."""
    deadline, said = time.monotonic() + patience, False
    while True:
        try:
            welcome = participant.exchange.join(participant.client.hello(agreement))
            break
        except NameTakenError as taken:
            if time.monotonic() >= deadline:
                raise
            if not said:
                log.info("%s; waiting for the server to notice that it is gone", taken)
            said = True
            time.sleep(0.25)
    participant.client.join(welcome.run)
    errands.ask_for_key(participant)
    participant.observer.joined(participant.client, welcome)


def take_turn(participant: Participant[Exchange], turn: Turn) -> None:
    """One turn, whole or not at all.

    Raises:
        SutureError: the turn failed and was given up.
        Parting: the client's own people want it to go at once; the turn is not over.
    """
    client, exchange, observer = participant.client, participant.exchange, participant.observer
    if turn.kind is TurnKind.WAIT:
        observer.waits(turn)
        return
    try:
        observer.began(turn)
        if errands.run(participant, turn):
            return
        _take_up(participant, turn)
        if turn.kind is TurnKind.TRAIN:
            client.begin(turn)
            with closing(exchange.train(client, turn, client.batches(turn))) as trained:
                for step in client.step_timer.steps(turn, trained):
                    observer.trained(turn, step.batch, step.loss)
                    _watch(participant, turn, step.batch)
                    participant.wishes.in_turn()
            handoff = client.seal(turn)
            exchange.commit(handoff)
            client.committed(handoff, turn.together)
        elif turn.kind is TurnKind.AVERAGE:
            handoff = client.average(turn, exchange.shares())
            exchange.commit(handoff)
            client.committed(handoff)
        else:
            client.begin_evaluation(turn)
            seen = partial(_evaluated, participant, turn)
            scores = client.evaluate(exchange.predict(client, turn), turn.round, seen)
            observer.scored(turn, scores)
            exchange.report(turn, scores)
        observer.counted(turn)
    except Parting as parting:
        observer.undone(turn, parting.wish)
        raise
    except TurnUndoneError as undone:
        log.info("%s", undone)
        observer.undone(turn, str(undone))
        client.undo()
    except BadHandoffError as bad:
        observer.undone(turn, str(bad))
        if not errands.accuse(participant, bad):
            raise
        client.undo()
    except CheckpointError:  # the server's disk: it has stopped the run, and tells everyone in the same words
        raise
    except SutureError as error:
        reason = str(error)
        observer.undone(turn, reason)
        if client.name not in reason:
            reason = f"{client.name}: round {turn.round}, turn {turn.number}: {reason}"
        named = type(error)(reason)
        _give_up(exchange, named)
        raise named from None
    except Exception as error:  # a defect, or a disk of the client's: the others must not wait for it
        # Its text stays here, where it is raised: it may name a file, and so a patient.
        kind = type(error).__name__
        what = StoppedError(
            f"{client.name}: round {turn.round}, turn {turn.number}: {kind}; see the client's own log"
        )
        _give_up(exchange, what)
        raise


def _give_up(exchange: Exchange, error: SutureError) -> None:
    """Tells the server why the turn cannot be finished.

    Raises:
        MemberLostError: the server had given this client up before, frozen or cut off for too long. Then whatever
            else failed only followed from that, and joining again mends it.
    """
    try:
        exchange.abort(error)
    except MemberLostError as lost:
        raise lost from None
    except SutureError as deaf:
        log.debug("the server did not hear that the turn was given up: %s", deaf)


def _evaluated(
    participant: Participant[Exchange], turn: Turn, phase: str, batch: Batch, smashed: Tensor, logits: Tensor
) -> None:
    participant.observer.evaluated(turn, phase, batch, smashed, logits)
    participant.wishes.in_turn()


def _watch(participant: Participant[Exchange], turn: Turn, batch: Batch) -> None:
    """Writes down what the client's detector makes of the step.

    Raises:
        AlarmError: it gives alarm and this client does not go on then.
    """
    client = participant.client
    if not client.is_watching:
        return
    alarm = client.detector.alarm()
    participant.observer.watched(turn, batch, client.detector.score(), alarm)
    if alarm and client.config.on_alarm == "stop":
        raise AlarmError(alarm)


def _take_up(participant: Participant[Exchange], turn: Turn) -> None:
    """Opens the hand-off that the turn starts from, where this client's parts are others.

    Raises:
        HandoffError: it does not open.
        WireError: the server offers another one than it promised.
    """
    client = participant.client
    errands.catch_up(participant, turn)
    if turn.kind is TurnKind.AVERAGE and client.knows(turn.handoff):
        return  # it takes up others' parts, and needs but to know what they started from
    if client.knows(turn.handoff) and not client.holds(turn.handoff):
        client.undo()  # it had done its part of a turn in which another one failed
    if not client.holds(turn.handoff):
        client.open(participant.exchange.fetch())
    if not client.holds(turn.handoff):
        raise WireError(
            f"{client.name}: the server offered another hand-off than that of turn {turn.handoff}"
        )


def end(participant: Participant[Exchange], turn: Turn) -> None:
    """The run is over: say goodbye and keep the model.

    Raises:
        SutureError: it is over because something failed elsewhere; the error is that rank's.
        WireError: the final model's hand-off cannot be had.
    """
    if turn.reason:
        raise ERRORS.get(turn.error, StoppedError)(printable(turn.reason))
    client, exchange = participant.client, participant.exchange
    _take_up(participant, turn)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    head = errands.head(participant)
    release = client.check_release(exchange.finish(Farewell(client.digests(), peak, head)))
    errands.compare_heads(participant)
    participant.observer.finished(client, release)


def _quietly(say: Callable[[], None]) -> None:
    """Says goodbye to a server that may be gone already."""
    try:
        say()
    except SutureError as error:
        log.debug("the server did not hear the goodbye: %s", error)
