"""Members that come and go by themselves: what ends a run that was started as a whole costs the others nothing here.

Oracle: the protocol's rules; the clock is ours.
"""

import pytest
from test_coordinator import LEASE, Run, clock  # noqa: F401
from torch.futures import Future

from runtime.errors import ConfigError, DivergedError, NameTakenError, SeatLostError, WireError
from runtime.members import OpenDoor
from runtime.scheduler import TurnKind
from runtime.wire import Farewell, Refusal

GRACE = 30.0
DOOR = OpenDoor(least=1, grace=GRACE)


@pytest.fixture
def run(tmp_path, clock):  # noqa: F811
    """Two of two clients: a has its first training turn and b waits."""
    made = Run(tmp_path, door=OpenDoor(least=2, grace=GRACE))
    made.join("a")
    made.join("b")
    made.turn = made.ask("a")
    assert made.ask("b") is None
    return made


def lost(run) -> list[str]:
    return run.coordinator.members.lost


def test_it_begins_at_once_with_all_and_with_enough_when_the_grace_is_over(tmp_path, clock):  # noqa: F811
    """Oracle: three are expected, two are enough: nothing at 29 seconds after the second, a turn at 30."""
    run = Run(tmp_path, clients=3, door=OpenDoor(least=2, grace=GRACE))
    run.join("a")
    run.ask("a")
    clock.seconds += GRACE * 2
    run.coordinator._course.watch()
    assert run.answer("a").kind is TurnKind.WAIT
    run.ask("a")
    run.join("b")
    run.ask("b")
    clock.seconds += GRACE - 10
    run.coordinator._course.watch()
    assert run.answer("a") is None
    clock.seconds += 10
    run.coordinator._course.watch()
    run.coordinator._course.watch()
    asked = run.answer("a") or run.ask("a")
    assert (asked.kind if asked.kind is TurnKind.TRAIN else run.ask("a").kind) is TurnKind.TRAIN
    assert ("begun", {"clients": ["a", "b"]}) in run.recorder.events


def test_one_that_is_refused_stops_nobody(tmp_path):
    """Oracle: the error for the one, a turn for the others."""
    run = Run(tmp_path, door=OpenDoor(least=2, grace=GRACE))
    run.join("a")
    run.ask("a")
    with pytest.raises(ConfigError, match="c has lr = 0.5, the server has 0.1"):
        run.join("c", agreement={"lr": "0.5"})
    with pytest.raises(NameTakenError, match="a is in the run already"):
        run.join("a")
    run.join("b")
    run.ask("b")
    assert run.answer("a").kind is TurnKind.TRAIN


def test_one_that_gives_up_is_lost_and_the_others_go_on(run):
    """Oracle: the state before its turn, its reason in the event, the turn's number for the other one."""
    before = run.state()
    run.step(run.turn)
    run.coordinator.abort(run.seats["a"], Refusal.of(DivergedError("a: the loss is nan")))
    assert run.state() == before and lost(run) == ["a"]
    assert ("lost", {"client": "a", "reason": "a: the loss is nan"}) in run.recorder.events
    assert (run.answer("b").client, run.answer("b").number) == ("b", 1)


def test_when_all_are_lost_the_run_waits_for_one_to_come_back(run, clock):  # noqa: F811
    """Oracle: no end; the one that is back gets the turn that was rolled back, in a round of its own."""
    for name in ("a", "b"):
        run.coordinator.leave(run.seats[name])
    assert lost(run) == ["a", "b"] and not run.coordinator._course.ended.is_set()
    run.coordinator.raise_if_stopped()
    run.join("b")
    turn = run.ask("b")
    assert (turn.kind, turn.number, turn.client) == (TurnKind.TRAIN, 1, "b")


def test_asking_for_another_turn_does_not_keep_the_one_that_is_held(run, clock):  # noqa: F811
    """Oracle: a lease after its last step the turn is rolled back although it asked all the time; it is told so."""
    run.step(run.turn)
    for _ in range(5):
        clock.seconds += LEASE / 4 + 1
        if run.answer("b") is not None and run.answer("b").kind is TurnKind.WAIT:
            run.ask("b")
        if not lost(run):
            run.ask("a")
        run.coordinator._course.watch()
    assert lost(run) == ["a"] and run.journal.totals.rolled_back == 1
    assert run.answer("a").error == "SeatLostError"
    with pytest.raises(SeatLostError):
        run.coordinator.ready(run.seats["a"])


class Knocks:
    """Answers that tests give; at most one knock at a member at a time."""

    def __init__(self):
        self.answers = {}

    def __call__(self, rpc_name, patience):
        assert patience == LEASE
        assert rpc_name not in self.answers or self.answers[rpc_name].done()
        self.answers[rpc_name] = Future()
        return self.answers[rpc_name]


def test_a_dead_process_is_noticed_without_waiting_for_the_lease(run):
    """Oracle: no second has passed; the turn is the other one's; one whose knock is not answered yet is not lost."""
    knocks = Knocks()
    run.coordinator._course.watch(knocks)
    run.coordinator._course.watch(knocks)
    assert lost(run) == []
    knocks.answers["b"].set_result(None)
    knocks.answers["a"].set_exception(RuntimeError("EOF: end of file"))
    run.coordinator._course.watch(knocks)
    assert lost(run) == ["a"] and run.answer("b").client == "b"
    assert (
        "lost",
        {"client": "a", "reason": "its process is gone or does not answer"},
    ) in run.recorder.events


def test_a_member_whose_process_nobody_knows_is_lost(run):
    """Oracle: RPC has no such member."""

    def knock(rpc_name, patience):
        raise RuntimeError("Unknown destination worker")

    run.coordinator._course.watch(knock)
    assert lost(run) == ["a", "b"]


@pytest.mark.parametrize("rpc_name", [0, "", "server-0", "x" * 101])
def test_a_name_that_rpc_could_not_be_asked_for_is_refused(rpc_name, tmp_path):
    """Oracle: the message; a number would be taken for somebody's rank."""
    run = Run(tmp_path, door=DOOR)
    from runtime.members import Seat
    from runtime.wire import Hello

    with pytest.raises(WireError, match="a: rpc_name: expected letters, digits and underscores"):
        run.coordinator.admit(Seat(), Hello("a", {"lr": "0.1"}, 8, 2), rpc_name)


def test_a_restarted_server_goes_on_without_whoever_does_not_come_back(run, tmp_path, clock):  # noqa: F811
    """Oracle: b had a turn left in the round; when the grace is over it is lost, and a's evaluation is next."""
    run.play(run.turn)
    again = Run(tmp_path, resume=True, door=DOOR)
    again.join("a")
    again.ask("a")
    clock.seconds += GRACE - 10
    again.coordinator._course.watch()
    assert again.answer("a") is None and lost(again) == []
    clock.seconds += 10
    again.coordinator._course.watch()
    assert lost(again) == ["b"]
    turn = again.answer("a") if again.answer("a").kind is not TurnKind.WAIT else again.ask("a")
    assert (turn.kind, turn.number) == (TurnKind.EVALUATE, 2)


def test_at_the_end_one_that_trained_is_waited_for(run, clock):  # noqa: F811
    """Oracle: a is lost in the last evaluation; it is back within the grace and gets the model. Then it is over."""
    run.play(run.turn)
    run.ask("a")
    while not run.journal.ledger.finished:
        granted = {n: run.answer(n) for n in run.seats if run.answer(n) and n not in lost(run)}
        name = next(n for n, t in granted.items() if t.kind not in (TurnKind.WAIT, TurnKind.END))
        turn = run.answer(name)
        if turn.round == 2 and turn.kind is TurnKind.EVALUATE and name == "a":
            run.coordinator.leave(run.seats["a"])
            continue
        run.play(turn)
        run.ask(name)
    run.coordinator.finish(run.seats["b"], Farewell({"bottom": "a" * 64}, 1))
    run.coordinator.leave(run.seats["b"])
    clock.seconds += GRACE - 1
    run.coordinator._course.watch()
    assert not run.coordinator._course.ended.is_set()
    run.join("a")
    assert run.ask("a").kind is TurnKind.END
    assert run.coordinator.finish(run.seats["a"], Farewell({"bottom": "a" * 64}, 1)).top
    run.coordinator.leave(run.seats["a"])
    assert run.coordinator._course.ended.is_set() and lost(run) == []


@pytest.mark.parametrize(("values", "words"), [({"least": 0}, "min_clients"), ({"grace": -1.0}, "grace")])
def test_the_doors_numbers_are_checked(values, words):
    """Oracle: the message names the option and what it was."""
    with pytest.raises(ConfigError, match=f"{words} must be at least"):
        OpenDoor(**{"least": 1, "grace": 0.0} | values)
