"""What a site does for its consortium between its turns, when the server asks: make a key, release it, look at a
hand-off that is accused. Where sites do not sign (one machine, one cluster) all of this does nothing.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from suture.runtime.errors import (
    BadHandoffError,
    ConfigError,
    HandoffError,
    TurnUndoneError,
    UntrustedError,
    WireError,
)
from suture.runtime.exchange.exchange import Exchange
from suture.runtime.participant.participant import Participant
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.state.handoff import handoff_digest
from suture.runtime.wire.messages import Statement

log = logging.getLogger(__name__)

ERRANDS = (TurnKind.KEY, TurnKind.TAKE, TurnKind.ADMIT, TurnKind.WITNESS)


def ask_for_key(participant: Participant[Exchange]) -> None:
    """Tells the others that this site has come, and wants the hand-off keys that it will lack."""
    consortium = participant.client.consortium
    if consortium is None:
        return
    # What does not hold is reported with the next turn, if it still does not: an epoch may have to end first.
    with suppress(UntrustedError):
        consortium.take(participant.exchange.board())
    participant.exchange.post(consortium.request())


def catch_up(participant: Participant[Exchange], turn: Turn) -> None:
    """Takes up epochs that began since this site last looked.

    Raises:
        UntrustedError: they do not hold.
        TurnUndoneError: this site does not know the one that made the first key, and has said so.
        ConfigError: this site's --handoff-key is another than the others'.
    """
    consortium = participant.client.consortium
    if consortium is not None and consortium.takes_renewal():
        # Whether a site was revoked the server judges by the certificate of its last request.
        participant.exchange.post(consortium.request())
    if consortium is None or turn.epoch == consortium.epoch == consortium.epoch_of_key:
        return
    board = participant.exchange.board()
    try:
        consortium.take(board)
    except UntrustedError as error:
        refusal = consortium.distrust(board, str(error))
        if refusal is None:
            raise
        log.warning("%s; this site waits for another one to make the hand-off key", error)
        participant.exchange.post(refusal)
        raise TurnUndoneError(str(error)) from None


def run(participant: Participant[Exchange], turn: Turn) -> None:
    """Does the errand that the server asks for.

    Raises:
        UntrustedError, HandoffError: what the other sites have stated, or sealed, does not hold.
        WireError: nobody signs here.
    """
    if participant.client.consortium is None:
        raise WireError(f"server: it asks for a {turn.kind}, and no site signs in this run; refused")
    catch_up(participant, turn)
    if turn.kind is TurnKind.KEY:
        _make_key(participant)
    elif turn.kind is TurnKind.TAKE:
        ask_for_key(participant)  # says which it has
    elif turn.kind is TurnKind.ADMIT:
        _admit(participant)
    else:
        _witness(participant)


def _make_key(participant: Participant[Exchange]) -> None:
    client, exchange = participant.client, participant.exchange
    consortium = client.consortium
    assert consortium is not None
    handoff = exchange.fetch()
    board = exchange.board()
    try:
        epoch = consortium.new_epoch(board, handoff)
        sealed = client.begin_epoch(handoff)
        exchange.begin_epoch(epoch, sealed)
    finally:
        consortium.end_new_epoch()
    log.info("made the hand-off key of epoch %d", sealed.epoch)
    _admit(participant)
    client.began_epoch(sealed)


def _admit(participant: Participant[Exchange]) -> None:
    consortium = participant.client.consortium
    assert consortium is not None
    for statement in consortium.answer_requests(participant.exchange.board()):
        if statement.kind == "key refusal":
            log.warning("the hand-off key was asked for, and not released: %s", statement.content)
        try:
            participant.exchange.post(statement)
        except WireError as gone:  # who asked has left meanwhile, or asks anew
            log.info("%s", gone)


def _witness(participant: Participant[Exchange]) -> None:
    client, exchange = participant.client, participant.exchange
    consortium = client.consortium
    assert consortium is not None
    board = exchange.board()
    consortium.take(board)
    accusation = consortium.pending_accusation(board)
    if accusation is None:
        raise UntrustedError("the server asks for a verdict, and nobody is accused; refused")
    accused = exchange.exhibit()
    consortium.check_exhibit(accusation, accused)
    why = client.examine(accused)
    log.warning(
        "%s accuses %s: %s", accusation.author, accused.client, why or "not so: its hand-off opens here"
    )
    exchange.post(consortium.give_verdict(accusation, why))


def withdraw(participant: Participant[Exchange]) -> None:
    """Says that this site leaves for good, which ends its membership. Sites that lack the newest hand-off key get it
    first: this site may be the only one that has it.

    Raises:
        ConfigError: nobody signs here.
        SutureError: the server did not take it.
    """
    consortium = participant.client.consortium
    if consortium is None:
        raise ConfigError("to leave for good a site must sign it, and nobody signs in this run")
    with suppress(UntrustedError, WireError):  # a board that does not hold must not keep a site from leaving
        _admit(participant)
    participant.exchange.post(consortium.withdraw())


def accuse(participant: Participant[Exchange], bad: BadHandoffError) -> bool:
    """Accuses the author of the hand-off that ``bad`` was raised for; False where sites do not sign.

    Raises:
        SutureError: the server did not take it.
    """
    consortium, exhibit = participant.client.consortium, bad.exhibit
    if consortium is None or exhibit is None:
        return False
    log.warning("%s; its author is accused, and a second site will look at it", bad)
    try:
        participant.exchange.post(consortium.accuse(exhibit, str(bad)))
    except TurnUndoneError as undone:  # another site has accused it already
        log.info("%s", undone)
    return True


def head(participant: Participant[Exchange]) -> Statement | None:
    """Signs the hand-off with which the run ends for this site; None where sites do not sign."""
    client = participant.client
    if client.consortium is None or client.newest is None:
        return None
    return client.consortium.head(client.newest)


def compare_heads(participant: Participant[Exchange]) -> None:
    """Compares what every site ends with.

    Raises:
        HandoffError: the server has shown most others another history, or keeps this site's own word back.
    """
    client = participant.client
    if client.consortium is None or client.newest is None:
        return
    heads = participant.exchange.heads()
    same = client.consortium.compare(heads, client.newest)
    if client.name not in same:
        raise HandoffError(
            "the server does not pass on what this site signed at its farewell; ask its operator"
        )
    others = [name for name in same if name != client.name]
    if silent := client.consortium.silent(heads):
        # A server with two histories would show each site the words of its own only.
        log.warning(
            "%s took part, and nothing says what it ends with: it has gone, or the server keeps its word back, or has "
            "shown it another history; compare by telephone: this site ends with turn %d, %s",
            ", ".join(silent),
            client.newest.turn,
            handoff_digest(client.newest).hex()[:16],
        )
    log.info(
        "ends with the same hand-off as %s",
        ", ".join(others) or "no other site: nobody else has said goodbye",
    )
