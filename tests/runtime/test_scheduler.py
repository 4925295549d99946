"""The order of turns: the same every time, fair, and repeatable from a file.

Oracle: the definition of each schedule over a list of names.
"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suture.runtime.errors import ConfigError
from suture.runtime.scheduler import Replay, RoundRobin, Shuffled, parse_schedule

NAMES = [f"client{index}" for index in range(12)]


@given(st.integers(1, 1000), st.lists(st.sampled_from(NAMES), unique=True))
def test_round_robin_keeps_the_order_of_joining(round, clients):
    """Oracle: the list itself; the caller's list is not touched."""
    before = list(clients)
    assert RoundRobin().order(round, clients) == [(name,) for name in before] and clients == before


@settings(deadline=None)
@given(st.integers(0, 2**63), st.integers(1, 1000), st.lists(st.sampled_from(NAMES), unique=True))
def test_a_shuffled_round_is_a_permutation_that_seed_and_round_decide(seed, round, clients):
    """Oracle: sorted, it is the list; asked again, even of a new object, it is the same."""
    before = list(clients)
    order = Shuffled(seed).order(round, clients)
    assert sorted(order) == sorted((name,) for name in clients) and clients == before
    assert Shuffled(seed).order(round, clients) == order


def test_a_shuffled_order_differs_by_round_and_by_seed():
    """Oracle: 12 clients have 479,001,600 orders; twenty draws of the same one are no accident."""
    assert len({tuple(Shuffled(0).order(round, NAMES)) for round in range(1, 21)}) == 20
    assert len({tuple(Shuffled(seed).order(1, NAMES)) for seed in range(20)}) == 20
    assert Shuffled(0).order(1, NAMES) != [(name,) for name in NAMES]


def test_every_client_comes_first_sometimes():
    """Oracle: over 300 rounds of three clients each place is taken about 100 times (six standard deviations)."""
    first = [Shuffled(7).order(round, NAMES[:3])[0][0] for round in range(300)]
    assert all(abs(first.count(name) - 100) < 50 for name in NAMES[:3])


def _write(path, entries):
    lines = [
        {"number": number, "round": round, "client": client, "kind": kind, "num_batches": 1}
        for number, (round, client, kind) in enumerate(entries, start=1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_replay_is_the_training_turns_of_the_file(tmp_path):
    """Oracle: the file, written here; a round that a client missed is missed again."""
    turns = [
        (1, "client1", "train"),
        (1, "client0", "train"),
        (1, "client0", "evaluate"),
        (2, "client0", "train"),
    ]
    replay = Replay(_write(tmp_path / "turns.jsonl", turns))
    orders = [replay.order(round, ["client0", "client1"]) for round in (1, 2, 3)]
    assert orders == [[("client1",), ("client0",)], [("client0",)], []]


def test_a_replay_of_clients_who_are_not_here_is_refused(tmp_path):
    """Oracle: the message names file and client; waiting for it would take for ever."""
    replay = Replay(_write(tmp_path / "turns.jsonl", [(1, "client0", "train"), (1, "client2", "train")]))
    with pytest.raises(
        ConfigError, match=r"turns.jsonl has a turn of client2 in round 1, who is not in this run"
    ):
        replay.order(1, ["client0", "client1"])


@pytest.mark.parametrize("content", [None, "no json", "[]\n", '{"round": 1}\n', "3\n", "null\n"])
def test_a_file_that_is_no_list_of_turns_is_refused(content, tmp_path):
    """Oracle: the message names the file and what to name instead."""
    if content is not None:
        (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(
        ConfigError, match=r"cannot replay turns from .*x.jsonl: .*; name a run's turns.jsonl"
    ):
        Replay(tmp_path / "x.jsonl")


def test_a_schedule_is_found_by_its_name(tmp_path):
    """Oracle: the classes, and that the seed arrives."""
    assert isinstance(parse_schedule("round-robin", 3), RoundRobin)
    assert parse_schedule("shuffled", 3).order(1, NAMES) == Shuffled(3).order(1, NAMES)
    path = _write(tmp_path / "turns.jsonl", [(1, "client0", "train")])
    assert parse_schedule(f"replay:{path}", 3).order(1, NAMES) == [("client0",)]


@pytest.mark.parametrize(
    "spec", ["", "fastest", "round-robin:2", "shuffled:1", "replay", "replay:", "Shuffled"]
)
def test_an_unknown_schedule_lists_the_known(spec):
    """Oracle: the message."""
    with pytest.raises(
        ConfigError,
        match="schedule must be one of round-robin, shuffled, parallel, splitfed, concat, replay:FILE, "
        "module:FILE_OR_PACKAGE:NAME, got ",
    ):
        parse_schedule(spec, 0)


def test_a_schedule_of_ones_own_is_called_with_its_argument_and_the_seed(tmp_path):
    """Oracle: a class in a file, written here; what extends nothing is refused by what it lacks."""
    (tmp_path / "own.py").write_text(
        "from suture.runtime.scheduler import InTurns\n"
        "class First(InTurns):\n"
        "    def __init__(self, argument, seed):\n"
        "        self.number = int(argument) + seed\n"
        "    def order(self, round, clients):\n"
        "        return [(name,) for name in clients[: self.number]]\n"
        "class Bare:\n"
        "    def __init__(self, argument, seed): ...\n"
    )
    own = parse_schedule(f"module:{tmp_path}/own.py:First:2", 1)
    assert own.order(1, NAMES) == [("client0",), ("client1",), ("client2",)] and own.together is None
    with pytest.raises(ConfigError, match=r"schedule module:.*:Bare: .* has no together and no order and no"):
        parse_schedule(f"module:{tmp_path}/own.py:Bare", 0)
    with pytest.raises(ConfigError, match=r"own.py has no Frist; known: First, Bare; did you mean First\?"):
        parse_schedule(f"module:{tmp_path}/own.py:Frist", 0)
    with pytest.raises(ConfigError, match="'shufled'; did you mean shuffled"):
        parse_schedule("shufled", 0)
