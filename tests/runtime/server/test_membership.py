"""Members: who may join under which name with which options, who was heard of, and who is lost.

Oracle: the protocol's rules, one member at a time.
"""

import pytest
import torch

from suture.runtime.errors import ConfigError, MemberLostError, NameTakenError, WireError
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.membership import Member, Membership, natural
from suture.runtime.wire.messages import Hello

AGREED = {"lr": "0.1", "cut": "3"}


def _admit(membership, name, **options) -> Member:
    member = Member()
    membership.admit(member, Hello(name, AGREED | options, 8, 2))
    return member


def test_members_are_counted_and_ordered_as_people_count():
    """Oracle: client2 before client10, whoever joined first."""
    membership = Membership(3, AGREED)
    for name in ("client10", "client2", "client1"):
        assert not membership.complete
        _admit(membership, name)
    assert membership.complete and len(membership) == 3
    assert membership.present() == ["client1", "client2", "client10"]
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
    membership = Membership(1, AGREED)
    with pytest.raises(ConfigError, match=words):
        _admit(membership, "client0", **theirs)
    assert len(membership) == 0


def test_an_option_that_the_client_does_not_know_is_refused():
    """Oracle: the message names the server's value."""
    with pytest.raises(ConfigError, match="client0 has cut = None, the server has 3"):
        Membership(1, AGREED).admit(Member(), Hello("client0", {"lr": "0.1"}, 8, 2))


def test_a_long_value_does_not_fill_the_log():
    """Oracle: at most 80 letters of it are repeated."""
    with pytest.raises(ConfigError) as error:
        _admit(Membership(1, AGREED), "client0", lr="9" * 10_000)
    assert len(str(error.value)) < 200


def test_a_rank_of_another_run_is_told_so():
    """Oracle: the message; where members are told the run before they join, nothing else of theirs is compared first."""
    membership = Membership(1, AGREED | {"run": "ours"})
    for run in ({"run": "theirs"}, {}):
        with pytest.raises(
            ConfigError, match="client0 was started for another run than this server's; .* --master_port"
        ):
            membership.admit(Member(), Hello("client0", {"lr": "0.5"} | run, 8, 2))
    _admit(membership, "client0", run="ours")
    with pytest.raises(ConfigError, match="client0 has run = ours, the server has None"):
        _admit(Membership(1, AGREED), "client0", run="ours")


def test_a_name_is_given_once():
    """Oracle: the second is refused and the first stays a member."""
    membership = Membership(2, AGREED)
    first = _admit(membership, "client0")
    with pytest.raises(
        NameTakenError, match="client0 is in the run already; give every client a name of its own"
    ):
        _admit(membership, "client0")
    assert membership.get("client0") is first and first.refused is None


def test_who_has_not_joined_is_refused():
    """Oracle: the error, before it has joined and after a greeting that was refused."""
    stranger = Member()
    assert _told(stranger) == (WireError, "a stranger is no member of this run; it must join first")
    with pytest.raises(ConfigError):
        Membership(1, AGREED).admit(stranger, Hello("client0", {}, 8, 2))
    assert _told(stranger)[0] is WireError


def test_one_who_was_lost_is_told_so_and_may_come_back():
    """Oracle: MemberLostError for the old member; the new one counts and the old one no more."""
    membership = Membership(1, AGREED)
    old = _admit(membership, "client0")
    membership.lose(old, MemberLostError("client0 was lost: no word from it; join again"))
    membership.lost.append("client0")
    assert membership.present() == [] and membership.all_left
    assert _told(old) == (MemberLostError, "client0 was lost: no word from it; join again")
    new = _admit(membership, "client0")
    assert membership.present() == ["client0"] and not membership.all_left and membership.lost == []
    assert new.refused is None
    assert _told(old) == (WireError, "client0 is no member of this run any more: it has joined anew")


def _told(member):
    return type(member.refused), str(member.refused)


def test_nobody_has_left_where_nobody_was():
    """Oracle: an empty run has not ended."""
    assert not Membership(2, AGREED).all_left


def test_a_waiting_call_is_answered_once():
    """Oracle: the future's value; without a waiting call there is nothing to answer."""
    member, turn = Member(), Turn(TurnKind.WAIT)
    member.answer(turn)
    member.waiting = waiting = torch.futures.Future()
    member.answer(turn)
    member.answer(Turn(TurnKind.END))
    assert waiting.value() is turn and member.waiting is None
