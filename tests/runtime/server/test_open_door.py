"""Members that come and go by themselves: what ends a run that was started as a whole costs the others nothing here.

Oracle: the protocol's rules; the clock is ours.
"""

import logging

import pytest
from driven_run import LEASE, Run
from torch.futures import Future

from suture.runtime.errors import ConfigError, DivergedError, MemberLostError, NameTakenError
from suture.runtime.scheduler import TurnKind
from suture.runtime.server.membership import Member, OpenMembership
from suture.runtime.wire.messages import Farewell, Refusal

GRACE = 30.0
DOOR = OpenMembership(least=1, grace=GRACE)


@pytest.fixture
def run(tmp_path, clock):
    """Two of two clients: a has its first training turn and b waits."""
    made = Run(tmp_path, door=OpenMembership(least=2, grace=GRACE))
    made.join("a")
    made.join("b")
    made.turn = made.ask("a")
    assert made.ask("b") is None
    return made


def lost(run) -> list[str]:
    return run.coordinator.membership.lost


def test_it_begins_at_once_with_all_and_with_enough_when_the_grace_is_over(tmp_path, clock):
    """Oracle: three are expected, two are enough: nothing at 29 seconds after the second, a turn at 30."""
    run = Run(tmp_path, clients=3, door=OpenMembership(least=2, grace=GRACE))
    run.join("a")
    run.ask("a")
    clock.seconds += GRACE * 2
    run.coordinator.watch()
    assert run.answer("a").kind is TurnKind.WAIT
    run.ask("a")
    run.join("b")
    run.ask("b")
    clock.seconds += GRACE - 10
    run.coordinator.watch()
    assert run.answer("a") is None
    clock.seconds += 10
    run.coordinator.watch()
    run.coordinator.watch()
    asked = run.answer("a") or run.ask("a")
    assert (asked.kind if asked.kind is TurnKind.TRAIN else run.ask("a").kind) is TurnKind.TRAIN
    assert ("begun", {"clients": ["a", "b"]}) in run.recorder.events


def test_one_that_is_refused_stops_nobody(tmp_path):
    """Oracle: the error for the one, a turn for the others."""
    run = Run(tmp_path, door=OpenMembership(least=2, grace=GRACE))
    run.join("a")
    run.ask("a")
    with pytest.raises(ConfigError, match="c has lr = 0.5, the server has 0.1"):
        run.join("c", agreement={"lr": "0.5"})
    with pytest.raises(NameTakenError, match="a is in the run already"):
        run.join("a")
    run.join("b")
    run.ask("b")
    assert run.answer("a").kind is TurnKind.TRAIN


def test_one_that_asks_again_and_again_is_said_once_until_it_is_in(tmp_path, caplog):
    """Oracle: the log's warnings: a site that waits for its seat asks four times a second, for minutes."""
    caplog.set_level(logging.WARNING)
    run = Run(tmp_path, door=OpenMembership(least=2, grace=GRACE))
    run.join("a")
    for _ in range(5):
        with pytest.raises(NameTakenError):
            run.join("a")
        with pytest.raises(ConfigError, match="lr"):
            run.join("b", agreement={"lr": "0.5"})
    assert [message.partition(":")[0] for message in caplog.messages] == ["refused", "refused"]
    run.join("b")
    with pytest.raises(NameTakenError):
        run.join("b")
    assert len(caplog.messages) == 3 and "b is in the run already" in caplog.messages[-1]


def test_one_that_gives_up_is_lost_and_the_others_go_on(run):
    """Oracle: the state before its turn, its reason in the event, the turn's number for the other one."""
    before = run.state()
    run.step(run.turn)
    run.call("a", "abort", Refusal.of(DivergedError("a: the loss is nan")))
    assert run.state() == before and lost(run) == ["a"]
    assert ("lost", {"client": "a", "reason": "a: the loss is nan"}) in run.recorder.events
    assert (run.answer("b").client, run.answer("b").number) == ("b", 1)


def test_when_all_are_lost_the_run_waits_for_one_to_come_back(run, clock):
    """Oracle: no end; the one that is back gets the turn that was rolled back; the other one's falls out of the round."""
    for name in ("a", "b"):
        run.call(name, "leave")
    assert lost(run) == ["a", "b"] and not run.coordinator.ended.is_set()
    run.coordinator.raise_if_stopped()
    run.join("b")
    turn = run.ask("b")
    assert (turn.kind, turn.number, turn.client) == (TurnKind.TRAIN, 1, "b")


def test_a_round_waits_for_whoever_comes_back_where_nobody_is_left(tmp_path):
    """Oracle: the only round of the only client: it is lost in its turn, and the turn is there when it is back."""
    run = Run(tmp_path, clients=1, rounds=1, door=OpenMembership(least=1, grace=GRACE))
    run.join("a")
    run.step(run.ask("a"))
    run.coordinator.disconnected(run.members["a"].member, "its connection has ended")
    run.coordinator.watch()
    assert lost(run) == ["a"] and run.run_state.turn_log.round == 1 and not run.run_state.turn_log.finished
    run.join("a")
    turn = run.ask("a")
    assert (turn.kind, turn.number, turn.round) == (TurnKind.TRAIN, 1, 1)
    assert [played.kind for played in run.play_to_the_end()] == [TurnKind.TRAIN, TurnKind.EVALUATE]


def test_asking_for_another_turn_does_not_keep_the_one_that_is_held(run, clock):
    """Oracle: a lease after its last step the turn is rolled back although it asked all the time; it is told so."""
    run.step(run.turn)
    for _ in range(5):
        clock.seconds += LEASE / 4 + 1
        if run.answer("b") is not None and run.answer("b").kind is TurnKind.WAIT:
            run.ask("b")
        if not lost(run):
            run.ask("a")
        run.coordinator.watch()
    assert lost(run) == ["a"] and run.run_state.totals.rolled_back == 1
    assert run.answer("a").error == "MemberLostError"
    with pytest.raises(MemberLostError):
        run.call("a", "next_turn")


# Members that only evaluate ----------------------------------------------------------------------

EVALUATES = {"num_images": 0, "num_batches": 0}


def test_where_nobody_trains_the_run_waits_and_says_so_once(tmp_path, caplog):
    """Oracle: no round begins for two that only evaluate; it does when one that trains comes, and trains it alone."""
    run = Run(tmp_path, clients=2, rounds=1, door=OpenMembership(least=2, grace=GRACE))
    for name in ("a", "b"):
        run.join(name, **EVALUATES)
        assert run.ask(name) is None
    run.coordinator.watch()
    said = [message for message in caplog.messages if "nobody who trains is here (a, b" in message]
    assert len(said) == 1 and run.run_state.turn_log.round == 0
    run.join("c")
    assert run.ask("c").kind is TurnKind.TRAIN
    played = run.play_to_the_end()
    assert [(turn.kind, turn.client) for turn in played] == [
        (TurnKind.TRAIN, "c"),
        *((TurnKind.EVALUATE, name) for name in "abc"),
    ]


@pytest.mark.parametrize("trained", [False, True])
def test_a_round_waits_for_one_that_trains_but_evaluations_do_not(tmp_path, trained):
    """Oracle: the training turn of the only one that trains does not fall out of the round when it is lost."""
    run = Run(tmp_path, clients=2, rounds=2, door=OpenMembership(least=2, grace=GRACE))
    run.join("a")
    run.join("b", **EVALUATES)
    run.ask("b")
    turn = run.ask("a")
    if trained:
        run.play(turn)
    run.coordinator.disconnected(run.members["a"].member, "its connection has ended")
    if trained:
        assert "b" in run.granted()
        run.play(run.answer("b"))
        run.ask("b")
    assert "b" not in run.granted() and run.run_state.turn_log.round == 1
    run.join("a")
    again = run.ask("a")
    assert (again.kind, again.round) == (TurnKind.TRAIN, 2 if trained else 1)


def test_one_that_left_for_good_is_not_waited_for_at_the_end(tmp_path, clock):
    """Oracle: the run ends with the other one's goodbye, and not after the grace."""
    run = Run(tmp_path, rounds=1, door=OpenMembership(least=2, grace=GRACE))
    run.join("a")
    run.join("b")
    run.ask("b")
    run.play(run.ask("a"))
    run.coordinator.consortium.shut_out("a", "it left for good")
    del run.members["a"]
    run.play_to_the_end()
    run.call("b", "finish", Farewell({"bottom": "a" * 64}, 1))
    run.call("b", "leave")
    assert run.coordinator.ended.is_set()


# What a carrier says of a member ---------------------------------------------------------------------


def test_a_sign_of_life_keeps_a_member_and_not_the_turn_that_it_holds(run, clock):
    """Oracle: beyond the lease the one that holds a turn and does nothing is lost; the one that waits for none is not."""
    run.members["b"].member.waiting = None
    for _ in range(6):
        clock.seconds += LEASE / 4
        for name in ("a", "b"):
            run.coordinator.heard(run.members[name].member)
        run.coordinator.watch()
    assert lost(run) == ["a"]
    assert (
        "lost",
        {"client": "a", "reason": f"it did not go on with its turn for {LEASE:g} s"},
    ) in run.recorder.events
    run.coordinator.heard(run.members["a"].member)
    run.coordinator.heard(Member())
    assert lost(run) == ["a"], "one that is lost, and a stranger, are heard in vain and without an error"


def test_a_member_whose_connection_ends_is_lost_at_once_and_once(run):
    """Oracle: the state before its turn, the event, the other one's turn; no second has passed."""
    before = run.state()
    run.step(run.turn)
    for _ in range(2):
        run.coordinator.disconnected(run.members["a"].member, "its connection has ended")
    assert run.state() == before and lost(run) == ["a"]
    losses = [fields for name, fields in run.recorder.events if name == "lost"]
    assert losses == [{"client": "a", "reason": "its connection has ended"}]
    assert (run.answer("b").client, run.answer("b").number) == ("b", 1)


def test_the_end_of_an_old_connection_is_not_that_of_the_new_one(run):
    """Oracle: the member that has come back keeps its seat when its first connection is noticed to have ended."""
    old = run.members["a"].member
    run.coordinator.disconnected(old, "no word from it for 100 s")
    run.join("a")
    run.coordinator.disconnected(old, "its connection has ended")
    run.coordinator.disconnected(Member(), "a stranger's connection has ended")
    assert lost(run) == [] and run.coordinator.membership.get("a") is run.members["a"].member
    assert run.ask("a") is None and run.answer("b").kind is TurnKind.TRAIN


def test_a_member_that_left_is_not_lost_when_its_connection_ends(tmp_path):
    """Oracle: the run's end, without an event."""
    run = Run(tmp_path, clients=1, rounds=1, door=DOOR)
    run.join("a")
    run.play_to_the_end()
    run.call("a", "finish", Farewell({"bottom": "a" * 64}, 1))
    run.call("a", "leave")
    run.coordinator.disconnected(run.members["a"].member, "its connection has ended")
    assert lost(run) == [] and run.coordinator.ended.is_set()


def pass_time(run, clock, leases, meanwhile=lambda: None):
    """Lets so many leases pass, or fewer where a is lost; b, who waits, asks again when it is told to."""
    for _ in range(round(4 * leases)):
        clock.seconds += LEASE / 4
        meanwhile()
        run.coordinator.watch()
        if lost(run):
            return
        if run.answer("b") is not None:
            assert run.answer("b").kind is TurnKind.WAIT
            run.ask("b")


@pytest.mark.parametrize(("leases", "is_lost"), [(3, False), (0.5, True)])
def test_a_message_on_its_way_renews_the_turn_for_as_long_as_it_may_take(run, clock, leases, is_lost):
    """Oracle: bytes of a slow line come for two leases; they count for so many seconds since the turn last went on."""
    run.step(run.turn)
    pass_time(run, clock, 2, lambda: run.coordinator.transfers(run.members["a"].member, leases * LEASE))
    assert lost(run) == (["a"] if is_lost else [])
    run.coordinator.transfers(Member(), LEASE)


def test_bytes_do_not_keep_a_turn_for_ever(run, clock):
    """Oracle: lost when the transfer's two leases and another one are over, although bytes come all the time."""
    pass_time(run, clock, 2.75, lambda: run.coordinator.transfers(run.members["a"].member, 2 * LEASE))
    assert lost(run) == []
    pass_time(run, clock, 0.5, lambda: run.coordinator.transfers(run.members["a"].member, 2 * LEASE))
    assert lost(run) == ["a"]


def test_to_fetch_the_hand_off_goes_on_with_the_turn_once(run, clock):
    """Oracle: the first fetch renews the turn's lease; those after it are signs of life and no more."""
    pass_time(run, clock, 0.75)
    run.call("a", "fetch")
    pass_time(run, clock, 0.75)
    assert lost(run) == []
    pass_time(run, clock, 0.5, lambda: run.call("a", "fetch"))
    assert lost(run) == ["a"]


class Knocks:
    """Answers that tests give; at most one knock at a member at a time."""

    def __init__(self):
        self.answers = {}

    def __call__(self, name, patience):
        assert patience == LEASE
        assert name not in self.answers or self.answers[name].done()
        self.answers[name] = Future()
        return self.answers[name]


def test_a_dead_process_is_noticed_without_waiting_for_the_lease(run):
    """Oracle: no second has passed; the turn is the other one's; one whose knock is not answered yet is not lost."""
    knocks = Knocks()
    run.coordinator.watch(knocks)
    run.coordinator.watch(knocks)
    assert lost(run) == []
    knocks.answers["b"].set_result(None)
    knocks.answers["a"].set_exception(RuntimeError("EOF: end of file"))
    run.coordinator.watch(knocks)
    assert lost(run) == ["a"] and run.answer("b").client == "b"
    assert (
        "lost",
        {"client": "a", "reason": "its process is gone or does not answer"},
    ) in run.recorder.events


def test_a_member_whose_process_nobody_knows_is_lost(run):
    """Oracle: RPC has no such member."""

    def ping(name, patience):
        raise RuntimeError("Unknown destination worker")

    run.coordinator.watch(ping)
    assert lost(run) == ["a", "b"]


def test_a_restarted_server_goes_on_without_whoever_does_not_come_back(run, tmp_path, clock):
    """Oracle: b had a turn left in the round; when the grace is over it is lost, and a's evaluation is next."""
    run.play(run.turn)
    again = Run(tmp_path, resume=True, door=DOOR)
    again.join("a")
    again.ask("a")
    clock.seconds += GRACE - 10
    again.coordinator.watch()
    assert again.answer("a") is None and lost(again) == []
    clock.seconds += 10
    again.coordinator.watch()
    assert lost(again) == ["b"]
    turn = again.answer("a") if again.answer("a").kind is not TurnKind.WAIT else again.ask("a")
    assert (turn.kind, turn.number) == (TurnKind.EVALUATE, 2)


def test_at_the_end_one_that_trained_is_waited_for(run, clock):
    """Oracle: a is lost in the last evaluation; it is back within the grace and gets the model. Then it is over."""
    run.play(run.turn)
    run.ask("a")
    while not run.run_state.turn_log.finished:
        granted = {n: run.answer(n) for n in run.members if run.answer(n) and n not in lost(run)}
        name = next(n for n, t in granted.items() if t.kind not in (TurnKind.WAIT, TurnKind.END))
        turn = run.answer(name)
        if turn.round == 2 and turn.kind is TurnKind.EVALUATE and name == "a":
            run.call("a", "leave")
            continue
        run.play(turn)
        run.ask(name)
    run.call("b", "finish", Farewell({"bottom": "a" * 64}, 1))
    run.call("b", "leave")
    clock.seconds += GRACE - 1
    run.coordinator.watch()
    assert not run.coordinator.ended.is_set()
    run.join("a")
    assert run.ask("a").kind is TurnKind.END
    assert run.call("a", "finish", Farewell({"bottom": "a" * 64}, 1)).top
    run.call("a", "leave")
    assert run.coordinator.ended.is_set() and lost(run) == []


@pytest.mark.parametrize(("values", "words"), [({"least": 0}, "min_clients"), ({"grace": -1.0}, "grace")])
def test_the_doors_numbers_are_checked(values, words):
    """Oracle: the message names the option and what it was."""
    with pytest.raises(ConfigError, match=f"{words} must be at least"):
        OpenMembership(**{"least": 1, "grace": 0.0} | values)


def test_who_waits_is_told_whose_turn_it_is(tmp_path):
    """Oracle: the turn that a was given; ranks of one start have the server's display beside them, and are told nothing."""
    for door in (OpenMembership(least=2, grace=GRACE), None):
        (tmp_path / ("ranks" if door is None else "sites")).mkdir()
        run = Run(tmp_path / ("ranks" if door is None else "sites"), door=door)
        run.join("a")
        run.join("b")
        assert run.ask("b") is None
        granted = run.ask("a")
        assert granted.kind is TurnKind.TRAIN
        told = run.waiting["b"]
        assert told.done() is (door is not None)
        if door is not None:
            said = told.value()
            assert (said.kind, said.client, said.meanwhile) == (TurnKind.WAIT, "a", "train")
            assert (said.round, said.number) == (granted.round, granted.number)
