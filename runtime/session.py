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
leave()                     ->           the seat is free
"""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from runtime.calls import unwrap, wait
from runtime.client import Client
from runtime.data.client_data import Batch
from runtime.errors import (
    ERRORS,
    AlarmError,
    NameTakenError,
    SeatLostError,
    StoppedError,
    SutureError,
    TurnUndoneError,
    WireError,
)
from runtime.exchange.baton import side_by_side
from runtime.exchange.seam import Exchange
from runtime.scheduler import Turn, TurnKind
from runtime.wire import Farewell, Release, Welcome

log = logging.getLogger(__name__)


class Keepsakes(Protocol):
    """What a client keeps on its own disk: pictures while it evaluates, the model at the end."""

    def joined(self, client: Client, welcome: Welcome) -> None: ...
    def evaluated(self, turn: Turn, phase: str, batch: Batch, smashed: Tensor, logits: Tensor) -> None: ...
    def watched(self, turn: Turn, batch: Batch, score: float, alarm: str) -> None: ...
    def finished(self, client: Client, release: Release) -> None: ...


class NoKeepsakes:
    """Keeps nothing."""

    def joined(self, client: Client, welcome: Welcome) -> None: ...
    def evaluated(self, turn: Turn, phase: str, batch: Batch, smashed: Tensor, logits: Tensor) -> None: ...
    def watched(self, turn: Turn, batch: Batch, score: float, alarm: str) -> None: ...
    def finished(self, client: Client, release: Release) -> None: ...


@dataclass
class Member:
    """A client, its line to the server and what it keeps."""

    client: Client
    exchange: Exchange
    keepsakes: Keepsakes


def take_part(member: Member, agreement: Mapping[str, str], rpc_name: str, patience: float = 0.0) -> None:
    """One client's whole run, in its own process.

    Args:
        member: who takes part.
        agreement: the options that all must share.
        rpc_name: the process's name among the members.
        patience: seconds to wait for the seat while the server still believes this client's last process alive.

    Raises:
        SutureError: the run stopped, here or elsewhere; the turn was given up and rolled back.
    """
    join(member, agreement, rpc_name, patience)
    try:
        while (turn := wait(member.exchange.next_turn())).kind is not TurnKind.END:
            take_turn(member, turn)
        end(member, turn)
    finally:
        _quietly(member.exchange.leave)


def run_local(members: list[Member], agreement: Mapping[str, str]) -> None:
    """All clients' whole runs in one process: whoever's turn it is takes it.

    Raises:
        SutureError: as `take_part`.
    """
    waiting = {}
    for member in members:
        join(member, agreement, member.client.name)
    for member in members:
        waiting[member.client.name] = (member, member.exchange.next_turn())
    try:
        while waiting:
            granted = [
                (waiting.pop(name)[0], unwrap(future.value()))
                for name, (_, future) in list(waiting.items())
                if future.done()
            ]
            for member, turn in granted:
                if turn.kind is TurnKind.END:
                    end(member, turn)
            playing = [(member, turn) for member, turn in granted if turn.kind is not TurnKind.END]
            side_by_side([partial(take_turn, member, turn) for member, turn in playing])
            for member, _ in playing:
                waiting[member.client.name] = (member, member.exchange.next_turn())
    finally:
        for member in members:
            _quietly(member.exchange.leave)


def join(member: Member, agreement: Mapping[str, str], rpc_name: str, patience: float = 0.0) -> None:
    """Joins the run; the server names the run and its folder."""
    deadline, said = time.monotonic() + patience, False
    while True:
        try:
            welcome = member.exchange.join(member.client.hello(agreement), rpc_name)
            break
        except NameTakenError as taken:
            if time.monotonic() >= deadline:
                raise
            if not said:
                log.info("%s; waiting for the server to notice that it is gone", taken)
            said = True
            time.sleep(0.25)
    member.client.join(welcome.run)
    member.keepsakes.joined(member.client, welcome)


def take_turn(member: Member, turn: Turn) -> None:
    """One turn, whole or not at all.

    Raises:
        SutureError: the turn failed and was given up.
    """
    client, exchange = member.client, member.exchange
    if turn.kind is TurnKind.WAIT:
        return
    try:
        _take_up(member, turn)
        if turn.kind is TurnKind.TRAIN:
            client.begin(turn)
            with closing(exchange.train(client, turn, client.batches(turn))) as trained:
                for batch in client.stopwatch.steps(turn, trained):
                    _watch(member, turn, batch)
            handoff = client.seal(turn)
            exchange.commit(handoff)
            client.committed(handoff, turn.together)
        elif turn.kind is TurnKind.AVERAGE:
            handoff = client.average(turn, exchange.shares())
            exchange.commit(handoff)
            client.committed(handoff)
        else:
            keep = member.keepsakes.evaluated
            scores = client.evaluate(
                exchange.predict(client, turn),
                turn.round,
                lambda phase, batch, smashed, logits: keep(turn, phase, batch, smashed, logits),
            )
            exchange.report(turn, scores)
    except TurnUndoneError as undone:
        log.info("%s", undone)
        client.undo()
    except SutureError as error:
        reason = str(error)
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
        SeatLostError: the server had given this client up before, frozen or cut off for too long. Then whatever
            else failed only followed from that, and joining again mends it.
    """
    try:
        exchange.abort(error)
    except SeatLostError as lost:
        raise lost from None
    except SutureError as deaf:
        log.debug("the server did not hear that the turn was given up: %s", deaf)


def _watch(member: Member, turn: Turn, batch: Batch) -> None:
    """Writes down what the client's detector makes of the step.

    Raises:
        AlarmError: it gives alarm and this client does not go on then.
    """
    client = member.client
    if not client.is_watching:
        return
    alarm = client.detector.alarm()
    member.keepsakes.watched(turn, batch, client.detector.score(), alarm)
    if alarm and client.config.on_alarm == "stop":
        raise AlarmError(alarm)


def _take_up(member: Member, turn: Turn) -> None:
    """Opens the hand-off that the turn starts from, where this client's parts are others.

    Raises:
        HandoffError: it does not open.
        WireError: the server offers another one than it promised.
    """
    client = member.client
    if turn.kind is TurnKind.AVERAGE and client.knows(turn.handoff):
        return  # it takes up others' parts, and needs but to know what they started from
    if client.knows(turn.handoff) and not client.holds(turn.handoff):
        client.undo()  # it had done its part of a turn in which another one failed
    if not client.holds(turn.handoff):
        client.open(member.exchange.fetch())
    if not client.holds(turn.handoff):
        raise WireError(
            f"{client.name}: the server offered another hand-off than that of turn {turn.handoff}"
        )


def end(member: Member, turn: Turn) -> None:
    """The run is over: say goodbye and keep the model.

    Raises:
        SutureError: it is over because something failed elsewhere; the error is that rank's.
        WireError: the final model's hand-off cannot be had.
    """
    if turn.reason:
        raise ERRORS.get(turn.error, StoppedError)(turn.reason)
    client, exchange = member.client, member.exchange
    _take_up(member, turn)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    release = exchange.finish(Farewell(client.digests(), peak))
    member.keepsakes.finished(client, release)


def _quietly(say: Callable[[], None]) -> None:
    """Says goodbye to a server that may be gone already."""
    try:
        say()
    except SutureError as error:
        log.debug("the server did not hear the goodbye: %s", error)
