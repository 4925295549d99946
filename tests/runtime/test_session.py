"""A client's side of a turn that fails: what it makes of it when the server has given it up meanwhile.

Oracle: the rule. Whoever was given up joins again; any other failure is what it is.
"""

import re
from types import SimpleNamespace

import pytest

from suture.runtime import session
from suture.runtime.client.step import ClientStep
from suture.runtime.errors import DivergedError, MemberLostError, PeerLostError, StoppedError
from suture.runtime.exchange.fused import FusedStep
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.records.step_timer import NoStepTimer
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.model import ServerModel
from suture.runtime.session import take_turn
from suture.runtime.wire.compression import Packer

TURN = Turn(TurnKind.TRAIN, client="ward_a", round=1, number=1)


class Line:
    """A line to a server that answers to giving up with ``answer``."""

    def __init__(self, answer: Exception | None) -> None:
        self.answer = answer
        self.aborted: list[Exception] = []

    def train(self, client, turn, batches):
        yield from batches

    def abort(self, error: Exception) -> None:
        self.aborted.append(error)
        if self.answer is not None:
            raise self.answer


def _take(failure: Exception, answer: Exception | None) -> tuple[Line, Exception]:
    def batches(turn):
        raise failure
        yield

    client = SimpleNamespace(
        name="ward_a",
        consortium=None,
        holds=lambda turn: True,
        knows=lambda turn: True,
        begin=lambda turn: None,
        model=SimpleNamespace(batches=batches, step_timer=NoStepTimer()),
    )
    line = Line(answer)
    with pytest.raises(
        type(failure) if not isinstance(answer, MemberLostError) else MemberLostError
    ) as raised:
        take_turn(Participant(client, line, NoClientObserver()), TURN)
    return line, raised.value


@pytest.mark.parametrize("failure", [RuntimeError("modified by an inplace operation"), DivergedError("nan")])
def test_whoever_was_given_up_learns_that_and_nothing_else(failure):
    """A frozen client that wakes up meets a top that others have stepped: any error may come of it."""
    lost = MemberLostError("ward_a was lost")
    assert _take(failure, lost)[1] is lost


def test_a_defect_of_its_own_stays_one():
    line, raised = _take(ValueError("no"), None)
    assert str(raised) == "no" and isinstance(line.aborted[0], StoppedError)


def test_the_server_is_not_told_what_a_defect_says():
    """Oracle: an error of the system's names the file it met, and with it a patient."""
    line, raised = _take(PermissionError(13, "Permission denied", "/data/ward/meier_anna_left.png"), None)
    assert "meier" in str(raised), "the client's own error says all"
    assert str(line.aborted[0]) == "ward_a: round 1, turn 1: PermissionError; see the client's own log"


def test_a_server_that_is_gone_does_not_hide_the_failure():
    _, raised = _take(DivergedError("nan"), PeerLostError("gone"))
    assert str(raised) == "ward_a: round 1, turn 1: nan"


def test_the_functions_that_the_page_names_in_a_step_exist():
    """Oracle: the classes themselves; who renames one of them reads here that session.py tells the story with it."""
    owners = {owner.__name__: owner for owner in (ClientStep, FusedStep, Packer, ServerModel)}
    named = re.findall(r"`(\w+)\.(\w+)`", str(session.train.__doc__))
    assert {owner for owner, _ in named} == owners.keys()
    assert [name for owner, name in named if not hasattr(owners[owner], name)] == []
