"""The run's position: what counted, what is next, and the same again after a crash.

Oracle: the plan of a run written out by hand; for replay, the run that it came from.
"""

import json

import pytest
import torch

from suture.launch import build
from suture.launch.options.options import AskedOptions
from suture.launch.roles.one_process import play_locally
from suture.runtime.scheduler import AtOnce, Replay, RoundRobin, Shuffled, Together, TurnKind
from suture.runtime.server.turn_log import TurnLog

CLIENTS = ["client0", "client1"]
# Two rounds of two clients with three batches each: (number, round, kind, client, step before, newest hand-off).
PLAN = [
    (1, 1, "train", "client0", 0, 0),
    (2, 1, "train", "client1", 3, 1),
    (3, 1, "evaluate", "client0", 6, 2),
    (4, 1, "evaluate", "client1", 6, 2),
    (5, 2, "train", "client0", 6, 2),
    (6, 2, "train", "client1", 9, 5),
    (7, 2, "evaluate", "client0", 12, 6),
    (8, 2, "evaluate", "client1", 12, 6),
]


def _next(turn_log, clients=CLIENTS):
    turns = turn_log.next_turns(clients)
    if not turns and not turn_log.finished:
        turn_log.start_round(clients)
        turns = turn_log.next_turns(clients)
    return turns


def _play(turn_log, num_turns=None, clients=CLIENTS):
    played = []
    while (num_turns is None or len(played) < num_turns) and (turns := _next(turn_log, clients)):
        turn, names = turns[0], "+".join(turn.client for turn in turns)
        played.append((turn.number, turn.round, turn.kind.value, names, turn.step, turn.handoff))
        turn_log.count(turns, 3 * len(turns) if turn.kind is TurnKind.TRAIN else 0)
    return played


def test_a_run_is_every_client_training_and_then_every_client_evaluating():
    """Oracle: the plan above."""
    turn_log = TurnLog(RoundRobin(), 2)
    assert turn_log.round_done and not turn_log.finished
    assert _play(turn_log) == PLAN
    assert turn_log.finished and (turn_log.step, turn_log.handoff, turn_log.round) == (12, 6, 2)


def test_a_turn_that_does_not_count_comes_again():
    """Oracle: asking twice gives the same turn with the same number."""
    turn_log = TurnLog(RoundRobin(), 1)
    assert _next(turn_log) == _next(turn_log)
    assert turn_log.entries == []


@pytest.mark.parametrize("num_before", range(len(PLAN) + 1))
def test_a_ledger_goes_on_from_its_state_wherever_it_was_taken(num_before):
    """Oracle: the rest of the plan; the state goes through JSON, so it is of plain types only."""
    before = TurnLog(RoundRobin(), 2)
    _play(before, num_before)
    state = json.loads(json.dumps(before.state_dict()))
    after = TurnLog(RoundRobin(), 2)
    after.load_state_dict(state)
    assert after.state_dict() == before.state_dict() and after.lines() == before.lines()
    assert _play(after) == PLAN[num_before:]


def test_a_state_is_a_copy():
    """Oracle: going on does not change what was taken before."""
    turn_log = TurnLog(RoundRobin(), 2)
    _play(turn_log, 2)
    state = turn_log.state_dict()
    before = json.dumps(state)
    _play(turn_log)
    assert json.dumps(state) == before


def test_a_state_is_of_as_many_objects_after_many_turns_as_after_few():
    """Oracle: counting them. A state is taken and written in each turn, which would come to cost more and more."""

    def num_objects(value):
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + sum(map(num_objects, inner))

    few, many = TurnLog(RoundRobin(), 1), TurnLog(RoundRobin(), 250)
    _play(few)
    assert len(_play(many)) == 1000
    assert num_objects(many.state_dict()) == num_objects(few.state_dict())


def test_lost_clients_drop_out_of_the_round():
    """Oracle: the plan without client1; numbers stay gapless."""
    turn_log = TurnLog(RoundRobin(), 2)
    _play(turn_log, 1)
    played = _play(turn_log, clients=["client0"])
    assert [(number, kind, client) for number, _, kind, client, *_ in played] == [
        (2, "evaluate", "client0"),
        (3, "train", "client0"),
        (4, "evaluate", "client0"),
    ]
    assert turn_log.finished


def test_a_round_without_anyone_left_is_done():
    """Oracle: no turn is offered and none is left behind."""
    turn_log = TurnLog(RoundRobin(), 1)
    turn_log.start_round(CLIENTS)
    assert turn_log.next_turns([]) == [] and turn_log.round_done and turn_log.finished


def test_a_client_alone_in_a_round_has_no_mean_to_wait_for(tmp_path):
    """Oracle: the plan by hand, two clients, then one; the lines of both rounds can be replayed."""
    turn_log = TurnLog(AtOnce(Together.PARALLEL), 2)
    both = _play(turn_log, 4)
    assert [(kind, client, handoff) for _, _, kind, client, _, handoff in both] == [
        ("train", "client0+client1", 0),
        ("average", "client0", 0),
        ("evaluate", "client0", 2),
        ("evaluate", "client1", 2),
    ]
    alone = _play(turn_log, clients=["client1"])
    assert [(kind, client, handoff) for _, _, kind, client, _, handoff in alone] == [
        ("train", "client1", 2),
        ("evaluate", "client1", 5),
    ]
    path = tmp_path / "turns.jsonl"
    path.write_bytes(turn_log.lines())
    again = TurnLog(Replay(path), 2)
    assert [_play(again, 4), _play(again, clients=["client1"])] == [both, alone]


@pytest.mark.parametrize("left", [[], ["client0"]])
def test_a_client_lost_from_a_turn_of_several_leaves_its_mean_in_the_plan(left):
    """Oracle: by hand; what is left of the group trains for a mean, and where nobody is left there is none."""
    turn_log = TurnLog(AtOnce(Together.SPLITFED), 1)
    assert [turn.together for turn in _next(turn_log)] == [True, True]
    assert [turn.together for turn in turn_log.next_turns(left)] == [True] * len(left)
    assert [kind for _, _, kind, *_ in _play(turn_log, clients=left)] == ["train", "average", "evaluate"][
        : 3 * len(left)
    ]


def test_a_turn_that_is_not_planned_cannot_be_counted():
    """Oracle: counting the same turn twice is an error of the program."""
    turn_log = TurnLog(RoundRobin(), 1)
    turns = _next(turn_log)
    turn_log.count(turns, 3)
    with pytest.raises(ValueError, match="turn 1 .train. of client0 is not the next one"):
        turn_log.count(turns, 3)


def test_the_lines_are_what_a_replay_reads():
    """Oracle: the fields of turns.jsonl, one object a line."""
    turn_log = TurnLog(Shuffled(1), 1)
    _play(turn_log)
    lines = [json.loads(line) for line in turn_log.lines().decode().splitlines()]
    assert [line["number"] for line in lines] == [1, 2, 3, 4]
    assert {frozenset(line) for line in lines} == {
        frozenset(("number", "round", "client", "kind", "num_batches"))
    }
    assert [line["num_batches"] for line in lines] == [3, 3, 0, 0]


def test_a_replayed_run_equals_the_run_it_came_from(tmp_path, monkeypatch):
    """Oracle: the weights of the shuffled run, bit for bit; round robin's differ, so the order mattered."""
    torch.set_num_threads(1)
    monkeypatch.setattr(build, "new_run_id", lambda: "run")

    def play(name: str, schedule: str):
        folder = tmp_path / name
        folder.mkdir()
        options = AskedOptions(
            data="chest-phantom", width=1, image_size=32, train_images=2, validation_images=0, test_images=1,
            batch_size=2, epochs=2, clients=3, lr=0.01, schedule=schedule, augment="none",
        ).resolved()  # fmt: skip
        coordinator = play_locally(options, bytes(32), folder)
        return coordinator.weights_sha256(), (folder / "turns.jsonl").read_bytes()

    shuffled = play("shuffled", "shuffled")
    assert play("replayed", f"replay:{tmp_path / 'shuffled' / 'turns.jsonl'}") == shuffled
    assert play("in-order", "round-robin")[0] != shuffled[0]


def test_a_mean_is_for_one_that_trains_and_who_only_evaluates_has_no_other_turn():
    """Oracle: the plan of a round in which the first in order only evaluates, written out."""
    turn_log = TurnLog(AtOnce(Together.PARALLEL), 1)
    turn_log.start_round(["b", "c"], ["a", "b", "c"])
    played = []
    while turns := turn_log.next_turns(["a", "b", "c"], ["b", "c"]):
        played.append((turns[0].kind.value, "".join(turn.client for turn in turns)))
        needed = turn_log.needs_training()
        assert needed == (turns[0].kind is not TurnKind.EVALUATE)
        turn_log.count(turns, 3 if turns[0].kind is TurnKind.TRAIN else 0)
    assert played == [("train", "bc"), ("average", "b"), *(("evaluate", name) for name in "abc")]
    assert not turn_log.needs_training()
