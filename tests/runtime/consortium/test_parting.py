"""A site that leaves for good, pauses or only evaluates, in a run of sites that sign.

Oracle: the protocol's rules; what the others come to.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from signing_sites import NAMES, Play, Wards, trains
from tiny import build_client

from suture.runtime import session
from suture.runtime.client.wishes import NoWishes, Parting, Wish
from suture.runtime.errors import ConfigError, EvictedError, WireError
from suture.runtime.exchange import LocalExchange
from suture.runtime.participant.leaving import part
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.scheduler import AtOnce, Together, Turn, TurnKind
from suture.runtime.session import join, take_turn, take_turns


@pytest.fixture
def wards(tmp_path: Path) -> Wards:
    return Wards(tmp_path, NAMES)


class AtOnceWanted(NoWishes):
    """Somebody wants it now: it is noticed after the first batch."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish

    def in_turn(self) -> None:
        raise Parting(self.wish)


def play_of(wards: Wards, folder: Path, **more: Any) -> Play:
    coordinator = wards.coordinator(folder / "run", len(NAMES), **more)
    return Play(coordinator, [wards.client(name) for name in NAMES])


def trained(play: Play) -> list[tuple[int, str]]:
    return [(e.round, e.client) for e in play.coordinator.run_state.turn_log.entries if e.kind == "train"]


@pytest.mark.parametrize("when", ["before its turn", "in its turn"])
def test_a_site_that_leaves_is_gone_for_good_and_its_turn_never_happened(wards, tmp_path, when):
    """Oracle: the turns that counted, the second epoch, the error when it comes again."""
    play = play_of(wards, tmp_path)
    turn = play.until(trains("ward_b"))
    leaving = play.membership.pop(1)
    if when == "in its turn":
        with pytest.raises(Parting) as parting:
            take_turn(replace(leaving, wishes=AtOnceWanted(Wish.LEAVE)), turn)
        part(leaving, parting.value)
    else:
        part(leaving, Parting(Wish.LEAVE))
    again = Participant(wards.client("ward_b"), LocalExchange(play.coordinator), NoClientObserver())
    with pytest.raises(EvictedError, match="ward_b was put out of this run: it left for good"):
        join(again, {})
    play.until()
    assert sorted(play.ended) == ["ward_a", "ward_c"] and not play.errors
    assert {name for _, name in trained(play)} == {"ward_a", "ward_c"}
    assert play.coordinator.run_state.board.epoch == 2 and play.coordinator.run_state.totals.rolled_back == 1
    assert play.coordinator.weights_sha256()


@pytest.mark.parametrize("kind", [TurnKind.TRAIN, TurnKind.EVALUATE])
def test_a_site_that_pauses_in_its_turn_comes_back_and_trains_in_the_next_round(wards, tmp_path, kind):
    """Oracle: the turns that counted; one was rolled back; nobody has a new key."""
    play = play_of(wards, tmp_path)
    turn = play.until(lambda turn: turn.kind is kind and turn.client == "ward_b")
    pausing = play.membership.pop(1)
    with pytest.raises(Parting) as parting:
        take_turn(replace(pausing, wishes=AtOnceWanted(Wish.PAUSE)), turn)
    part(pausing, parting.value)
    assert play.coordinator.membership.lost == ["ward_b"]
    play.until(lambda turn: turn.round == 2)
    take_turn(play.membership[0], play.turns[-1])
    back = Participant(pausing.client, LocalExchange(play.coordinator), NoClientObserver())
    join(back, {})
    play.membership.insert(1, back)
    play.until()
    assert sorted(play.ended) == [*NAMES] and not play.errors
    first = {"ward_a", "ward_c"} | ({"ward_b"} if kind is TurnKind.EVALUATE else set())
    assert {name for round, name in trained(play) if round == 1} == first
    assert play.coordinator.run_state.board.epoch == 1 and play.coordinator.run_state.totals.rolled_back == 1


class Told:
    """Looks at what a client is asked before each turn, and wants nothing."""

    def __init__(self) -> None:
        self.awaits: list[bool] = []

    def between_turns(self, awaits_mean: bool) -> None:
        self.awaits.append(awaits_mean)

    def in_turn(self) -> None: ...


def test_a_client_waits_for_the_mean_of_what_it_trained_at_once_with_others(monkeypatch):
    """Oracle: by hand, turn by turn: a wait is no turn, and the mean is made when another turn comes."""
    turns: Iterator[Turn] = iter(
        [
            Turn(TurnKind.TRAIN, together=True),
            Turn(TurnKind.WAIT),
            Turn(TurnKind.EVALUATE),
            Turn(TurnKind.TRAIN),
            Turn(TurnKind.END),
        ]
    )
    monkeypatch.setattr(session, "take_turn", lambda member, turn: None)
    monkeypatch.setattr(session, "end", lambda member, turn: None)
    exchange, told = SimpleNamespace(next_turn=lambda look: lambda: next(turns)), Told()
    take_turns(Participant(None, exchange, NoClientObserver(), told))
    assert told.awaits == [False, True, True, False, False]


def test_who_signs_nothing_cannot_leave_for_good():
    """Oracle: the message."""
    client = build_client(0)
    with pytest.raises(ConfigError, match="to leave for good a site must sign it"):
        part(Participant(client, None, NoClientObserver()), Parting(Wish.LEAVE))


# A site that only evaluates ------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [None, AtOnce(Together.PARALLEL)], ids=["in turns", "at once"])
def test_a_site_that_only_evaluates_makes_keys_and_gets_the_model_and_trains_nothing(
    wards, tmp_path, scheduler
):
    """Oracle: its turns, though it is the first in order; everybody ends with the same weights."""
    coordinator = wards.coordinator(tmp_path / "run", 3, scheduler=scheduler)
    clients = [wards.client("ward_a", num_train=0), wards.client("ward_b"), wards.client("ward_c")]
    play = Play(coordinator, clients)
    play.until()
    assert sorted(play.ended) == [*NAMES] and not play.errors
    assert play.kinds(TurnKind.KEY) == ["ward_a"]
    its = {turn.kind for turn in play.turns if turn.client == "ward_a" and turn.kind is not TurnKind.WAIT}
    its -= {TurnKind.KEY, TurnKind.ADMIT}
    assert its == {TurnKind.EVALUATE}
    assert play.kinds(TurnKind.AVERAGE) == (["ward_b"] * 2 if scheduler else [])
    assert clients[0].digests() == clients[1].digests() and coordinator.weights_sha256()
    assert coordinator.run_state.scores["ward_a"].keys() == {"validation", "test"}


def test_a_server_that_asks_it_to_train_or_to_average_is_refused():
    """Oracle: the messages; it says that it has no training images."""
    client = build_client(0, num_train=0)
    client.join("run")
    hello = client.hello({})
    assert (hello.num_images, hello.num_batches) == (0, 0)
    with pytest.raises(WireError, match="it asks client0, which only evaluates, to train; refused"):
        client.begin(Turn(TurnKind.TRAIN, "client0", 1, 1))
    with pytest.raises(WireError, match="which only evaluates, to average what others trained; refused"):
        client.average(Turn(TurnKind.AVERAGE, "client0", 1, 2), [])
