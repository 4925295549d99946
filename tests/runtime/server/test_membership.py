"""Seats: who may join under which name with which options, who was heard of, and who is lost.

Oracle: the protocol's rules, one member at a time.
"""

import pytest
import torch

from suture.runtime.errors import ConfigError, NameTakenError, SeatLostError, WireError
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.membership import Members, Seat, natural
from suture.runtime.wire.messages import Hello

AGREED = {"lr": "0.1", "cut": "3"}


def _admit(members, name, **options) -> Seat:
    seat = Seat()
    members.admit(seat, Hello(name, AGREED | options, 8, 2))
    return seat


def test_members_are_counted_and_ordered_as_people_count():
    """Oracle: client2 before client10, whoever joined first."""
    members = Members(3, AGREED)
    for name in ("client10", "client2", "client1"):
        assert not members.complete
        _admit(members, name)
    assert members.complete and len(members) == 3
    assert members.present() == ["client1", "client2", "client10"]
    assert sorted(["b", "a10", "a9", "a"], key=natural) == ["a", "a9", "a10", "b"]


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ({"lr": "0.5"}, "client0 has lr = 0.5, the server has 0.1; start both with the same"),
        ({"cut": "4"}, "client0 has cut = 4, the server has 3"),
        ({"width": "8"}, "client0 has width = 8, the server has None"),
    ],
)
def test_options_that_differ_are_refused_with_both_values_named(theirs, words):
    """Oracle: the message; an option that only one side knows differs, too."""
    members = Members(1, AGREED)
    with pytest.raises(ConfigError, match=words):
        _admit(members, "client0", **theirs)
    assert len(members) == 0


def test_an_option_that_the_client_does_not_know_is_refused():
    """Oracle: the message names the server's value."""
    with pytest.raises(ConfigError, match="client0 has cut = None, the server has 3"):
        Members(1, AGREED).admit(Seat(), Hello("client0", {"lr": "0.1"}, 8, 2))


def test_a_long_value_does_not_fill_the_log():
    """Oracle: at most 80 letters of it are repeated."""
    with pytest.raises(ConfigError) as error:
        _admit(Members(1, AGREED), "client0", lr="9" * 10_000)
    assert len(str(error.value)) < 200


def test_a_rank_of_another_run_is_told_so():
    """Oracle: the message; where members are told the run before they join, nothing else of theirs is compared first."""
    members = Members(1, AGREED | {"run": "ours"})
    for run in ({"run": "theirs"}, {}):
        with pytest.raises(
            ConfigError, match="client0 was started for another run than this server's; .* --master_port"
        ):
            members.admit(Seat(), Hello("client0", {"lr": "0.5"} | run, 8, 2))
    _admit(members, "client0", run="ours")
    with pytest.raises(ConfigError, match="client0 has run = ours, the server has None"):
        _admit(Members(1, AGREED), "client0", run="ours")


def test_a_name_is_given_once():
    """Oracle: the second is refused and the first keeps its seat."""
    members = Members(2, AGREED)
    first = _admit(members, "client0")
    with pytest.raises(
        NameTakenError, match="client0 is in the run already; give every client a name of its own"
    ):
        _admit(members, "client0")
    assert members.get("client0") is first
    members.heard(first)


def test_a_stranger_is_not_heard():
    """Oracle: a seat that nobody sat down on, and one of another run."""
    members = Members(1, AGREED)
    with pytest.raises(WireError, match="a stranger has no seat in this run; it must join first"):
        members.heard(Seat())
    elsewhere = _admit(Members(1, AGREED), "client0")
    with pytest.raises(WireError, match="client0 has no seat in this run"):
        members.heard(elsewhere)


def test_one_who_was_lost_is_told_so_and_may_come_back():
    """Oracle: SeatLostError on the old seat; the new one counts and the old one no more."""
    members = Members(1, AGREED)
    old = _admit(members, "client0")
    old.left = True
    members.lost.append("client0")
    assert members.present() == [] and members.all_left
    with pytest.raises(SeatLostError, match="client0 was lost: the server did not hear from it; join again"):
        members.heard(old)
    new = _admit(members, "client0")
    assert members.present() == ["client0"] and not members.all_left and members.lost == []
    members.heard(new)
    with pytest.raises(WireError, match="client0 has no seat"):
        members.heard(old)


def test_nobody_has_left_where_nobody_was():
    """Oracle: an empty run has not ended."""
    assert not Members(2, AGREED).all_left


def test_a_waiting_call_is_answered_once():
    """Oracle: the future's value; without a waiting call there is nothing to answer."""
    seat, turn = Seat(), Turn(TurnKind.WAIT)
    seat.answer(turn)
    seat.waiting = waiting = torch.futures.Future()
    seat.answer(turn)
    seat.answer(Turn(TurnKind.END))
    assert waiting.value() is turn and seat.waiting is None
