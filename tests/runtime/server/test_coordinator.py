"""The run at the server, driven directly: turns are transactions under a lease, and nothing out of turn counts.

Oracle: the protocol's rules, and the server's state before the turn, bit for bit. No process, no network; the
clock is ours.
"""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.futures import Future

from suture.runtime import session
from suture.runtime.errors import (
    ERRORS,
    CheckpointError,
    ConfigError,
    DivergedError,
    MemberLostError,
    NameTakenError,
    StoppedError,
    WireError,
)
from suture.runtime.hooks import Attack
from suture.runtime.records.observers import NoRecorder
from suture.runtime.scheduler import Replay, RoundRobin, TurnKind
from suture.runtime.server.coordinator import Coordinator, RunConfig
from suture.runtime.server.membership import Member, Membership
from suture.runtime.server.model import ServerModel
from suture.runtime.server.run_state import RunState
from suture.runtime.server.turn_log import TurnLog
from suture.runtime.state.checkpoint import Checkpoints
from suture.runtime.state.handoff import handoff_digest, part_digest, weights_digest
from suture.runtime.wire.checks import TensorSpec
from suture.runtime.wire.messages import Farewell, Hello, Refusal, Report, SealedHandoff, StepDone, Upload

LEASE = 100.0
LR = "0.1"


class CountingAttack(Attack):
    """Has a state of its own: how many batches it has seen."""

    def __init__(self):
        self.seen = torch.zeros(1)

    def observe(self, batch):
        self.seen += 1

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Events(NoRecorder):
    def __init__(self):
        self.events = []

    def event(self, name, **fields):
        self.events.append((name, fields))


class Run:
    """One run of a tiny top (batch norm, so that it has buffers, and a linear layer) and its clients' memberships."""

    def __init__(self, run_dir, clients=2, rounds=2, scheduler=None, resume=False, labels=True, door=None):
        torch.manual_seed(0)
        top = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 3))
        self.server = ServerModel(
            top,
            torch.optim.Adam(top.parameters(), lr=0.1),
            smashed=TensorSpec((2, 3), torch.float32, 4),
            labels=TensorSpec((), torch.int64, 4, below=3) if labels else None,
            attack=CountingAttack(),
        )
        turn_log = TurnLog(scheduler or RoundRobin(), rounds)
        run_state = RunState(
            "run", run_dir, self.server, turn_log, Checkpoints(run_dir / "checkpoints"), ("auroc",)
        )
        config = RunConfig(run="run", run_dir=run_dir, lease=LEASE)
        self.coordinator = Coordinator(run_state, Membership(clients, {"lr": LR}, door), config)
        self.recorder = Events()
        self.coordinator.begin(resume, lambda step: self.recorder)
        self.run_state = run_state
        self.members = {}
        self.waiting = {}

    def join(self, name, **changes):
        self.members[name] = Member()
        hello = dataclasses.replace(Hello(name, {"lr": LR}, 8, 2), **changes)
        return self.coordinator.admit(self.members[name], hello)

    def ask(self, name):
        """Calls for a turn; None while the server lets the client wait."""
        self.waiting[name] = Future()
        self.coordinator.ready(self.members[name], self.waiting[name])
        return self.answer(name)

    def answer(self, name):
        return self.waiting[name].value() if self.waiting[name].done() else None

    def granted(self):
        """Who has a turn; who is only told whose it is asks again."""
        for name in self.members:
            turn = self.answer(name)
            if turn is not None and turn.kind is TurnKind.WAIT:
                self.ask(name)
        return [n for n in self.members if (t := self.answer(n)) and t.kind is not TurnKind.END]

    def upload(self, turn, batch=0, **changes):
        generator = torch.Generator().manual_seed(100 * turn.number + batch)
        smashed = torch.randn(4, 2, 3, generator=generator).requires_grad_()
        upload = Upload(turn.number, batch, "train", smashed, torch.tensor([0, 1, 2, 0]))
        return dataclasses.replace(upload, **changes)

    def step(self, turn, batch=0, **done):
        member, parameters = self.members[turn.client], list(self.server.top.parameters())
        reply = self.coordinator.forward(member, self.upload(turn, batch))
        gradients = dict(zip(parameters, torch.autograd.grad(reply.loss, parameters), strict=True))
        message = StepDone(turn.number, batch, float(reply.task_loss))
        self.coordinator.stepped(member, dataclasses.replace(message, **done), gradients)

    def handoff(self, turn):
        sealed = torch.full((32,), turn.number, dtype=torch.uint8)
        return SealedHandoff(turn.number, handoff_digest(self.run_state.handoff), bytes(12), sealed)

    def commit(self, turn):
        self.coordinator.commit(self.members[turn.client], self.handoff(turn))

    def play(self, turn):
        """A whole turn."""
        if turn.kind is TurnKind.EVALUATE:
            self.coordinator.report(self.members[turn.client], Report(turn.number, {"test": {"loss": 1.0}}))
        else:
            self.step(turn, 0)
            self.step(turn, 1)
            self.commit(turn)

    def play_to_the_end(self):
        for name, member in self.members.items():
            if member.waiting is None and name not in self.coordinator._turns.running:
                self.ask(name)
        played = []
        while granted := self.granted():
            (name,) = granted
            played.append(self.answer(name))
            self.play(played[-1])
            self.ask(name)
        return played

    def state(self):
        return part_digest(self.server.top.state_dict()), json.dumps(_plain(self.server.state_dict()))


def _plain(value):
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes().hex()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.fixture
def clock(monkeypatch):
    """The time as the coordinator and the members' table read it."""
    now = SimpleNamespace(seconds=1000.0)
    now.monotonic = lambda: now.seconds
    for module in ("coordinator", "dispatcher", "membership", "transaction", "step", "liveness"):
        monkeypatch.setattr(f"suture.runtime.server.{module}.time", now)
    return now


@pytest.fixture
def run(tmp_path, clock):
    """Two clients; client0 has its first training turn and client1 waits."""
    torch.set_num_threads(1)
    made = Run(tmp_path)
    made.join("client0")
    made.join("client1")
    made.turn = made.ask("client0")
    assert made.ask("client1") is None
    return made


def test_a_whole_run_is_what_the_ledger_says(tmp_path):
    """Oracle: two rounds of two clients, training before evaluation, every turn on the disk, an end for all."""
    run = Run(tmp_path)
    run.join("client1")
    run.join("client0")
    played = run.play_to_the_end()
    assert [(t.number, t.round, t.kind.value, t.client, t.step, t.handoff) for t in played] == [
        (1, 1, "train", "client0", 0, 0),
        (2, 1, "train", "client1", 2, 1),
        (3, 1, "evaluate", "client0", 4, 2),
        (4, 1, "evaluate", "client1", 4, 2),
        (5, 2, "train", "client0", 4, 2),
        (6, 2, "train", "client1", 6, 5),
        (7, 2, "evaluate", "client0", 8, 6),
        (8, 2, "evaluate", "client1", 8, 6),
    ]
    assert len((tmp_path / "turns.jsonl").read_text().splitlines()) == 8
    for name, member in run.members.items():
        assert run.answer(name) == dataclasses.replace(
            run.answer(name), kind=TurnKind.END, reason="", error=""
        )
        released = run.coordinator.finish(member, Farewell({"bottom": "a" * 64}, 1))
        assert part_digest(released.top) == run.server.digest()
        run.coordinator.leave(member)
    run.coordinator.wait()
    expected = weights_digest({"bottom": "a" * 64, "top": run.server.digest()})
    assert run.coordinator.weights_sha256() == expected


def test_nobody_trains_before_all_have_joined(tmp_path):
    """Oracle: the first client waits until the second has joined and somebody asks."""
    run = Run(tmp_path)
    run.join("client0")
    assert run.ask("client0") is None
    run.join("client1")
    run.ask("client1")
    assert run.answer("client0").kind is TurnKind.TRAIN and run.answer("client1") is None


def test_a_member_with_other_options_stops_a_run_that_has_not_begun(tmp_path):
    """Oracle: both values are named, and the one that waited is told the same error."""
    run = Run(tmp_path)
    run.join("client0")
    run.ask("client0")
    with pytest.raises(ConfigError, match=r"client1 has lr = 0.5, the server has 0.1"):
        run.join("client1", agreement={"lr": "0.5"})
    assert (run.answer("client0").kind, run.answer("client0").error) == (TurnKind.END, "ConfigError")
    with pytest.raises(ConfigError, match=r"client1 has lr = 0.5"):
        run.coordinator.raise_if_stopped()


def test_a_late_pretender_does_not_stop_a_run_that_has_begun(run):
    """Oracle: refused, and the turn goes on."""
    with pytest.raises(NameTakenError, match="client0 is in the run already"):
        Run.join(SimpleNamespace(members={}, coordinator=run.coordinator), "client0")
    run.play(run.turn)
    assert run.answer("client1").number == 2


@pytest.mark.parametrize(
    ("labels", "weights", "words"),
    [
        (True, torch.ones(2), r"client0: class_weights: expected shape \(3\), got \(2,\)"),
        (True, torch.tensor([1.0, float("nan"), 1.0]), "client0: class_weights: 1 of 3 values"),
        (False, torch.ones(3), "client0: class_weights: they must stay at home here"),
    ],
)
def test_class_weights_that_do_not_fit_the_loss_are_refused(labels, weights, words, tmp_path):
    """Oracle: they would have failed in the middle of the first step, without a name."""
    with pytest.raises(WireError, match=words):
        Run(tmp_path, labels=labels).join("client0", class_weights=weights)


def _calls(run, turn):
    coordinator, upload = run.coordinator, run.upload(turn)
    return {
        "upload": lambda member: coordinator.forward(member, upload),
        "predict": lambda member: coordinator.predict(
            member, dataclasses.replace(upload, phase="test", labels=None)
        ),
        "step": lambda member: coordinator.stepped(member, StepDone(turn.number, 0, 1.0), {}),
        "commit": lambda member: coordinator.commit(member, run.handoff(turn)),
        "report": lambda member: coordinator.report(member, Report(turn.number, {})),
    }


CALLS = ("upload", "predict", "step", "commit", "report")


@pytest.mark.parametrize("call", CALLS)
def test_a_call_out_of_turn_is_refused(run, call):
    """Oracle: it is client0's turn; nothing of the server changes."""
    before = run.state()
    with pytest.raises(
        WireError, match=r"client1: \w+ in turn 1, but turn 1 \(train\) of client0 is running"
    ):
        _calls(run, run.turn)[call](run.members["client1"])
    assert run.state() == before and run.run_state.turn_log.entries == []


@pytest.mark.parametrize("call", CALLS)
def test_a_strangers_call_is_refused(run, call):
    """Oracle: a member is who has joined, whatever name it says."""
    with pytest.raises(WireError, match="client0 has no seat in this run; it must join first"):
        _calls(run, run.turn)[call](Member(name="client0"))
    coordinator = run.coordinator
    for ask in (
        lambda member: coordinator.ready(member, Future()),
        coordinator.newest_handoff,
        coordinator.leave,
    ):
        with pytest.raises(WireError, match="a stranger has no seat"):
            ask(Member())


@pytest.mark.parametrize("call", ["upload", "step", "commit"])
def test_a_call_for_another_turn_is_refused(run, call):
    """Oracle: turn 2 has not been granted."""
    with pytest.raises(
        WireError, match=r"client0: train in turn 2, but turn 1 \(train\) of client0 is running"
    ):
        _calls(run, dataclasses.replace(run.turn, number=2))[call](run.members["client0"])


@pytest.mark.parametrize("call", ["predict", "report"])
def test_evaluation_calls_are_refused_in_a_training_turn(run, call):
    """Oracle: the kind of the turn."""
    with pytest.raises(WireError, match=r"client0: evaluate in turn 1, but turn 1 \(train\) of client0"):
        _calls(run, run.turn)[call](run.members["client0"])


@pytest.mark.parametrize(("batch", "steps"), [(1, 0), (7, 0), (0, 1), (2, 1)])
def test_a_batch_with_a_wrong_number_is_refused(run, batch, steps):
    """Oracle: batches count from 0, each once."""
    for number in range(steps):
        run.step(run.turn, number)
    with pytest.raises(WireError, match=f"client0: batch: expected {steps}, got {batch}; refused"):
        run.coordinator.forward(run.members["client0"], run.upload(run.turn, batch))


def test_a_malformed_upload_is_refused_and_may_be_mended(run):
    """Oracle: the attack never saw it; the right one passes afterwards."""
    wrong = run.upload(run.turn, smashed=torch.zeros(4, 3, 2))
    with pytest.raises(WireError, match=r"client0: smashed: expected shape \(1..4, 2, 3\), got \(4, 3, 2\)"):
        run.coordinator.forward(run.members["client0"], wrong)
    assert float(run.server.attack.seen) == 0
    run.play(run.turn)


@pytest.mark.parametrize("batch", [0, 1, None])
def test_a_step_without_an_upload_is_refused(run, batch):
    """Oracle: the weights have not moved."""
    before = run.state()
    with pytest.raises(WireError, match=f"client0: step: batch {batch} was not uploaded; refused"):
        run.coordinator.stepped(run.members["client0"], StepDone(1, batch, 1.0), {})
    assert run.state() == before


def test_a_step_is_not_taken_twice(run):
    """Oracle: the second StepDone of one upload is refused."""
    run.step(run.turn)
    with pytest.raises(WireError, match="batch 0 was not uploaded"):
        run.coordinator.stepped(run.members["client0"], StepDone(1, 0, 1.0), {})


def test_a_turn_without_a_step_cannot_be_committed(run):
    """Oracle: the message; uploading alone is no step."""
    run.coordinator.forward(run.members["client0"], run.upload(run.turn))
    with pytest.raises(WireError, match="client0: a turn without a step cannot be committed; refused"):
        run.commit(run.turn)


def test_a_handoff_that_does_not_follow_is_refused(run):
    """Oracle: it must name the digest of the newest one, none before the first."""
    run.step(run.turn)
    wrong = dataclasses.replace(run.handoff(run.turn), previous=bytes(32))
    with pytest.raises(WireError, match=r"client0: handoff.previous: it does not follow the newest hand-off"):
        run.coordinator.commit(run.members["client0"], wrong)
    run.commit(run.turn)
    second = run.answer("client1")
    run.step(second)
    with pytest.raises(WireError, match=r"client1: handoff.previous: it does not follow"):
        run.coordinator.commit(run.members["client1"], dataclasses.replace(run.handoff(second), previous=b""))
    run.commit(second)
    assert run.coordinator.newest_handoff(run.members["client0"]).turn == 2


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), None, "0.5"])
def test_a_loss_that_is_not_finite_stops_before_the_step(run, loss):
    """Oracle: client, round and batch are named and the weights have not moved."""
    weights = run.server.digest()
    buffers = part_digest(dict(run.server.top.named_parameters()))
    with pytest.raises(DivergedError, match=f"client0: round 1, batch 0: the loss is {loss}"):
        run.step(run.turn, loss=loss)
    assert part_digest(dict(run.server.top.named_parameters())) == buffers
    assert run.server.digest() != weights, "batch norm has seen the batch: only a rollback undoes that"


def test_a_turn_whose_lease_runs_out_is_rolled_back_whole(run, clock):
    """Oracle: the state after turn 1 bit for bit: weights, batch norm's buffers, Adam's, the attack's."""
    run.play(run.turn)
    run.ask("client0")
    second, before = run.answer("client1"), run.state()
    run.step(second, 0)
    run.coordinator.forward(run.members["client1"], run.upload(second, 1))
    assert run.state() != before and float(run.server.attack.seen) == 4
    clock.seconds += LEASE + 1
    run.coordinator._dispatcher.watch()
    assert run.state() == before and float(run.server.attack.seen) == 2
    assert run.coordinator.membership.lost == ["client1"] and run.run_state.totals.rolled_back == 1
    assert [name for name, _ in run.recorder.events[-3:]] == ["rolled_back", "lost", "missing"]
    assert run.recorder.events[-3][1]["turn"] == 2
    with pytest.raises(
        MemberLostError, match="client1 was lost: the server did not hear from it; join again"
    ):
        run.commit(second)


def test_the_next_one_gets_the_turn_of_the_lost(run, clock):
    """Oracle: the turn's number is given again, and the run goes on to its end without the lost client."""
    run.step(run.turn)
    clock.seconds += LEASE / 2
    run.coordinator._dispatcher.watch()
    run.ask("client1")
    clock.seconds += LEASE / 2 + 1
    run.coordinator._dispatcher.watch()
    turn = run.answer("client1")
    if turn.kind is TurnKind.WAIT:
        turn = run.ask("client1")
    assert (turn.number, turn.client, turn.round, turn.step) == (1, "client1", 1, 0)
    del run.members["client0"]
    run.play(turn)
    rest = run.play_to_the_end()
    assert {t.client for t in rest} == {"client1"} and run.run_state.turn_log.finished
    farewell = Farewell({"bottom": "a" * 64}, 1)
    run.coordinator.finish(run.members["client1"], farewell)
    run.coordinator.leave(run.members["client1"])
    run.coordinator.wait()


def test_the_lost_may_join_again_and_take_part_from_the_next_round(run, clock):
    """Oracle: the second round has both."""
    clock.seconds += LEASE + 1
    run.coordinator._dispatcher.watch()
    assert run.coordinator.membership.lost == ["client0"]
    run.join("client0")
    played = run.play_to_the_end()
    assert [t.client for t in played if t.round == 2] == ["client0", "client1"] * 2


def test_every_call_renews_the_lease(run, clock):
    """Oracle: five steps of most of a lease each, and nobody is lost."""
    for batch in range(5):
        clock.seconds += LEASE * 0.9
        run.coordinator._dispatcher.watch()
        if run.answer("client1") is not None:
            run.ask("client1")
        run.step(run.turn, batch)
    assert run.coordinator.membership.lost == []


def test_a_waiting_client_is_told_to_ask_again_after_a_quarter_of_the_lease(run, clock):
    """Oracle: silence up to a quarter, then WAIT; who then says nothing is lost after a whole lease."""
    clock.seconds += LEASE / 4
    run.coordinator._dispatcher.watch()
    assert run.answer("client1") is None
    clock.seconds += 1
    run.coordinator._dispatcher.watch()
    assert run.answer("client1").kind is TurnKind.WAIT
    run.step(run.turn)
    clock.seconds += LEASE * 0.75
    run.coordinator._dispatcher.watch()
    assert run.coordinator.membership.lost == ["client1"]


def test_when_all_are_lost_the_run_stops(run, clock):
    """Oracle: the error names the last one; the server's process may go."""
    clock.seconds += LEASE + 1
    run.coordinator._dispatcher.watch()
    clock.seconds += LEASE + 1
    run.coordinator._dispatcher.watch()
    with pytest.raises(
        StoppedError,
        match="no client is left; the last was client1: it did not go on with its turn for 100 s",
    ):
        run.coordinator.wait()


def test_a_client_lost_after_the_last_turn_does_not_spoil_the_run(run, clock):
    """Oracle: all turns are done and client0 has said goodbye: the run has ended well, with its digest."""
    run.play(run.turn)
    run.play_to_the_end()
    run.coordinator.finish(run.members["client0"], Farewell({"bottom": "a" * 64}, 1))
    run.coordinator.leave(run.members["client0"])
    clock.seconds += LEASE + 1
    run.coordinator._dispatcher.watch()
    assert run.coordinator.membership.lost == ["client1"]
    run.coordinator.wait()
    assert len(run.coordinator.weights_sha256()) == 64


@pytest.mark.parametrize("name", ERRORS)
def test_a_run_stops_with_the_same_error_at_every_rank(run, name):
    """Oracle: the class that client0 met is raised at client1 and at the server; the turn is rolled back."""
    before = run.state()
    run.step(run.turn)
    run.coordinator.abort(run.members["client0"], Refusal(name, "client0: it broke"))
    assert run.state() == before
    told = run.answer("client1")
    assert (told.kind, told.error, told.reason) == (TurnKind.END, name, "client0: it broke")
    for tell in (lambda: session.end(None, told), run.coordinator.raise_if_stopped):
        with pytest.raises(ERRORS[name], match="^client0: it broke$") as error:
            tell()
        assert type(error.value) is ERRORS[name]
    assert run.ask("client0").error == name


def test_an_unknown_error_stops_the_run_as_stopped(run):
    """Oracle: a peer cannot choose another class; a long message is cut."""
    run.coordinator.abort(run.members["client0"], Refusal("SystemExit", "x" * 5000))
    with pytest.raises(StoppedError, match="^x{1000}$"):
        run.coordinator.raise_if_stopped()


def test_one_that_leaves_in_the_middle_is_lost(run):
    """Oracle: its turn is rolled back and the other one gets it."""
    before = run.state()
    run.step(run.turn)
    run.coordinator.leave(run.members["client0"])
    assert run.state() == before and run.coordinator.membership.lost == ["client0"]
    assert (run.answer("client1").number, run.answer("client1").client) == (1, "client1")


def test_nobody_finishes_early(run):
    """Oracle: the trained top is for those who finished."""
    with pytest.raises(WireError, match="client0: finish: the run is not over; refused"):
        run.coordinator.finish(run.members["client0"], Farewell({"bottom": "a" * 64}, 1))


def test_different_digests_of_the_same_parts_are_noticed(run):
    """Oracle: two farewells that differ; a malformed one is refused at the door."""
    run.play(run.turn)
    run.play_to_the_end()
    with pytest.raises(WireError, match="client0: farewell.digests: expected 64 hex digits, got 'a'"):
        run.coordinator.finish(run.members["client0"], Farewell({"bottom": "a"}, 1))
    for name, letter in (("client0", "a"), ("client1", "b")):
        run.coordinator.finish(run.members[name], Farewell({"bottom": letter * 64}, 1))
    with pytest.raises(WireError, match="the clients report 2 different digests of the same parts"):
        run.coordinator.weights_sha256()


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({"test": {"loss": float("nan")}}, "client0: scores.loss: expected a finite number, got nan"),
        ({"dream": {"loss": 1.0}}, "client0: scores: expected phases"),
        ([], "client0: scores: expected a mapping, got list"),
    ],
)
def test_evaluation_scores_are_checked(run, scores, words):
    """Oracle: the messages; a wrong report does not end the turn, a right one does."""
    run.play(run.turn)
    run.play(run.answer("client1"))
    turn = run.ask("client0")
    assert turn.kind is TurnKind.EVALUATE
    with pytest.raises(WireError, match=words):
        run.coordinator.report(run.members["client0"], Report(turn.number, scores))
    assert run.run_state.scores == {}
    run.coordinator.report(run.members["client0"], Report(turn.number, {"test": {"loss": 0.5, "auroc": 1}}))
    assert run.run_state.scores == {"client0": {"test": {"loss": 0.5, "auroc": 1.0}}}


def test_evaluation_changes_no_weights(run):
    """Oracle: top and optimizer bit for bit; labels are refused, another phase than training's is asked for."""
    run.play(run.turn)
    run.play(run.answer("client1"))
    turn, before = run.ask("client0"), run.state()[0]
    member, upload = run.members["client0"], run.upload(turn, 5, phase="test", labels=None)
    output = run.coordinator.predict(member, upload)
    assert output.shape == (4, 3) and not output.requires_grad and run.state()[0] == before
    assert torch.equal(run.coordinator.predict(member, upload), output)
    with pytest.raises(WireError, match="labels: they must stay at home here"):
        run.coordinator.predict(member, run.upload(turn, phase="test"))
    with pytest.raises(WireError, match="phase: 'train' does not fit the turn"):
        run.coordinator.predict(member, run.upload(turn, labels=None))


def test_a_resumed_run_goes_on_with_the_state_of_the_last_turn(run, tmp_path, clock):
    """Oracle: the state when turn 1 counted; the turn begun after it is granted again."""
    run.play(run.turn)
    before = run.state()
    run.step(run.answer("client1"))
    resumed = Run(tmp_path, resume=True)
    assert resumed.state() == before
    assert resumed.recorder.events == [("resumed", {"after_turn": 1, "step": 2})]
    resumed.join("client0")
    resumed.join("client1")
    resumed.ask("client0")
    assert (resumed.ask("client1").number, resumed.run_state.handoff.turn) == (2, 1)


def test_the_checkpoint_of_another_run_is_refused(run, tmp_path):
    """Oracle: the message names both runs."""
    run.play(run.turn)
    run.run_state._run = "another"
    with pytest.raises(
        CheckpointError, match="the checkpoint is of run run, format 4; expected run another, format 4"
    ):
        run.run_state.begin(resume=True)


def test_a_replay_that_waits_for_nobody_stops_the_run(tmp_path):
    """Oracle: the run that is replayed had a client that this one has not: an error at every rank, no waiting."""
    turns = tmp_path / "turns.jsonl"
    turns.write_text('{"round": 1, "client": "client9", "kind": "train"}\n')
    (tmp_path / "run").mkdir()
    run = Run(tmp_path / "run", scheduler=Replay(turns))
    run.join("client0")
    run.join("client1")
    run.ask("client0")
    run.ask("client1")
    for name in run.members:
        assert (run.answer(name).kind, run.answer(name).error) == (TurnKind.END, "ConfigError")
        assert "client9 in round 1, who is not in this run" in run.answer(name).reason


def _full(*args, **fields):
    raise CheckpointError("cannot write: No space left on device")


@pytest.mark.parametrize(
    "what", ["train_step", "scores", "flush", "the best round", "a checkpoint", "turns.jsonl"]
)
def test_what_cannot_be_written_stops_the_run_and_everyone_is_told(what, tmp_path, monkeypatch):
    """Oracle: the error at whoever called, at every member that asks, and at the server, which does not wait for ever."""
    run = Run(tmp_path)
    run.join("client0")
    run.join("client1")
    owner, name = {
        "the best round": (RunState, "_keep_best"),
        "a checkpoint": (Checkpoints, "save"),
        "turns.jsonl": (RunState, "_write_turns"),
    }.get(what, (run.recorder, what))
    monkeypatch.setattr(owner, name, _full)
    with pytest.raises(CheckpointError, match="No space left"):
        run.play_to_the_end()
    for name, member in run.members.items():
        told = run.ask(name)
        assert (told.kind, told.error, told.reason[:12]) == (TurnKind.END, "CheckpointError", "cannot write")
        run.coordinator.leave(member)
    with pytest.raises(CheckpointError, match="No space left"):
        run.coordinator.wait()


def test_an_event_that_cannot_be_written_does_not_interrupt_what_it_tells_of(run, clock, monkeypatch):
    """Oracle: a lost member's turn is rolled back whole, the other is told, and the run ends when it has left."""
    before = run.state()
    run.step(run.turn)
    monkeypatch.setattr(run.recorder, "event", _full)
    clock.seconds += LEASE - 1
    run.ask("client1")
    clock.seconds += 2
    run.coordinator._dispatcher.watch()
    assert run.members["client0"].left and run.state() == before
    assert (run.answer("client1").kind, run.answer("client1").error) == (TurnKind.END, "CheckpointError")
    run.coordinator.leave(run.members["client1"])
    with pytest.raises(CheckpointError, match="No space left"):
        run.coordinator.wait()


def test_after_a_line_was_lost_no_turn_counts(run, monkeypatch):
    """Oracle: the commit is refused with the same error, although the disk has room again; no checkpoint is written."""
    run.step(run.turn, 0)
    monkeypatch.setattr(run.recorder, "train_step", _full)
    with pytest.raises(CheckpointError):
        run.step(run.turn, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="No space left"):
        run.commit(run.turn)
    assert run.run_state._checkpoints.turns() == [0]
