"""THE page: a run as one client lives it, and within it the turn, and within the turn the step.

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
from collections.abc import Mapping
from contextlib import closing
from functools import partial

from torch import Tensor

from suture.runtime.client.evaluation import evaluate as score
from suture.runtime.data.client_data import Batch
from suture.runtime.errors import ERRORS, AlarmError, NameTakenError, StoppedError, WireError
from suture.runtime.exchange.exchange import Exchange
from suture.runtime.hooks import watches
from suture.runtime.participant import errands
from suture.runtime.participant.leaving import leave_quietly
from suture.runtime.participant.participant import Participant
from suture.runtime.participant.turn_errors import turn_errors
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.wire.messages import Farewell, Welcome, printable

log = logging.getLogger(__name__)


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
        leave_quietly(participant)


def join(participant: Participant[Exchange], agreement: Mapping[str, str], patience: float = 0.0) -> None:
    """Joins the run; the server names the run and its folder."""
    welcome = _say_hello(participant, agreement, patience)
    participant.client.join(welcome.run)
    errands.ask_for_key(participant)
    participant.observer.joined(participant.client, welcome)


def take_turns(participant: Participant[Exchange]) -> None:
    """All turns of a client that has joined, until the run is over and the client has the model.

    Raises:
        SutureError: as `take_part`.
        Parting: the client's own people want it to go; see `leaving.part`.
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


def take_turn(participant: Participant[Exchange], turn: Turn) -> None:
    """One turn, whole or not at all; raises as `turn_errors`."""
    if turn.kind is TurnKind.WAIT:
        participant.observer.waits(turn)
        return
    with turn_errors(participant, turn):
        participant.observer.began(turn)
        if turn.kind in errands.ERRANDS:
            errands.run(participant, turn)
            return
        _take_up(participant, turn)
        if turn.kind is TurnKind.TRAIN:
            train(participant, turn)
        elif turn.kind is TurnKind.AVERAGE:
            average(participant, turn)
        else:
            evaluate(participant, turn)
        participant.observer.counted(turn)


def train(participant: Participant[Exchange], turn: Turn) -> None:
    """Trains on all batches of this client, and seals what came of it for the next one.

    One step, as `FusedStep` takes it where labels are shared:

    1. bottom    the images go through the client's part; the defence has the last word on what leaves:
                 `ClientStep.down`
    2. wire      smashed data and labels go up: `Packer.pack`, `FusedStep.train`
    3. top       the server checks them, shows them to its attack, and computes the loss: `ServerModel.forward`
    4. gradient  back to the cut: `ServerModel.backward`; it comes home in the answer: `ClientStep.learn_shared`
    5. both step `ServerModel.step`, before it answers; at the client `ClientStep.back` takes the gradient on through
                 defence and bottom, and ends with `ClientStep.learn`

    Where labels stay at home the head and the loss follow the top, at the client: `ClientStep.head`.
    """
    client, model, exchange = participant.client, participant.client.model, participant.exchange
    client.begin(turn)
    with closing(exchange.train(model, turn, model.batches(turn))) as trained:
        for step in model.step_timer.steps(turn, trained):
            participant.observer.trained(turn, step.batch, step.loss)
            _watch(participant, turn, step.batch)
            participant.wishes.in_turn()
    handoff = client.seal(turn)
    exchange.commit(handoff)
    client.committed(handoff, turn.together)


def average(participant: Participant[Exchange], turn: Turn) -> None:
    """Seals the mean of what all clients of the last turn have trained."""
    client, exchange = participant.client, participant.exchange
    handoff = client.average(turn, exchange.shares())
    exchange.commit(handoff)
    client.committed(handoff)


def evaluate(participant: Participant[Exchange], turn: Turn) -> None:
    """Scores the model on this client's own images."""
    client, exchange = participant.client, participant.exchange

    def seen(phase: str, batch: Batch, smashed: Tensor, logits: Tensor) -> None:
        participant.observer.evaluated(turn, phase, batch, smashed, logits)
        participant.wishes.in_turn()

    client.begin_evaluation(turn)
    scores = score(client.model, exchange.predict(client.model, turn), turn.round, seen)
    participant.observer.scored(turn, scores)
    exchange.report(turn, scores)


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


def _say_hello(participant: Participant[Exchange], agreement: Mapping[str, str], patience: float) -> Welcome:
    """Says hello, again and again while this client's last process is still a member."""
    deadline, said = time.monotonic() + patience, False
    while True:
        try:
            return participant.exchange.join(participant.client.hello(agreement))
        except NameTakenError as taken:
            if time.monotonic() >= deadline:
                raise
            if not said:
                log.info("%s; waiting for the server to notice that it is gone", taken)
            said = True
            time.sleep(0.25)


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


def _watch(participant: Participant[Exchange], turn: Turn, batch: Batch) -> None:
    """Writes down what the client's detector makes of the step.

    Raises:
        AlarmError: it gives alarm and this client does not go on then.
    """
    model = participant.client.model
    if not watches(model.detector):
        return
    alarm = model.detector.alarm()
    participant.observer.watched(turn, batch, model.detector.score(), alarm)
    if alarm and model.config.on_alarm == "stop":
        raise AlarmError(alarm)
