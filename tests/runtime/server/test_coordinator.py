"""The run at the server, driven directly: turns are transactions under a lease, and nothing out of turn counts.

Oracle: the protocol's rules, and the server's state before the turn, bit for bit. No process, no network; the
clock is ours.
"""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from driven_run import LEASE, Run
from tiny import asked

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
from suture.runtime.scheduler import Replay, TurnKind
from suture.runtime.server.api import ServerApi
from suture.runtime.server.run_state import RunState
from suture.runtime.state.checkpoint import Checkpoints
from suture.runtime.state.handoff import part_digest, weights_digest
from suture.runtime.wire.messages import Farewell, Refusal, Report, StepDone


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
    for name in run.members:
        assert run.answer(name) == dataclasses.replace(
            run.answer(name), kind=TurnKind.END, reason="", error=""
        )
        released = run.call(name, "finish", Farewell({"bottom": "a" * 64}, 1))
        assert part_digest(released.top) == run.server.digest()
        run.call(name, "leave")
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
    upload = run.upload(turn)
    return {
        "upload": lambda api: asked(api, "forward", upload),
        "predict": lambda api: asked(api, "predict", dataclasses.replace(upload, phase="test", labels=None)),
        "step": lambda api: asked(api, "step", StepDone(turn.number, 0, 1.0), {}),
        "commit": lambda api: asked(api, "commit", run.handoff(turn)),
        "report": lambda api: asked(api, "report", Report(turn.number, {})),
    }


CALLS = ("upload", "predict", "step", "commit", "report")


@pytest.mark.parametrize("call", CALLS)
def test_a_call_out_of_turn_is_refused(run, call):
    """Oracle: it is client0's turn; nothing of the server changes."""
    before = run.state()
    with pytest.raises(WireError, match="client1: it was granted no turn, or has ended it; refused"):
        _calls(run, run.turn)[call](run.members["client1"])
    assert run.state() == before and run.run_state.turn_log.entries == []


@pytest.mark.parametrize("call", CALLS)
def test_a_strangers_call_is_refused(run, call):
    """Oracle: a member is who has joined, whatever name is written on it."""
    with pytest.raises(WireError, match="a stranger is no member of this run; it must join first"):
        stranger = ServerApi(run.coordinator)
        stranger.member.name = "client0"
        _calls(run, run.turn)[call](stranger)
    for endpoint in ("next_turn", "fetch", "leave"):
        with pytest.raises(WireError, match="a stranger is no member"):
            asked(ServerApi(run.coordinator), endpoint)


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
        run.call("client0", "forward", run.upload(run.turn, batch))


def test_a_malformed_upload_is_refused_and_may_be_mended(run):
    """Oracle: the attack never saw it; the right one passes afterwards."""
    wrong = run.upload(run.turn, smashed=torch.zeros(4, 3, 2))
    with pytest.raises(WireError, match=r"client0: smashed: expected shape \(1..4, 2, 3\), got \(4, 3, 2\)"):
        run.call("client0", "forward", wrong)
    assert float(run.server.attack.seen) == 0
    run.play(run.turn)


@pytest.mark.parametrize("batch", [0, 1, None])
def test_a_step_without_an_upload_is_refused(run, batch):
    """Oracle: the weights have not moved."""
    before = run.state()
    with pytest.raises(WireError, match=f"client0: step: batch {batch} was not uploaded; refused"):
        run.call("client0", "step", StepDone(1, batch, 1.0), {})
    assert run.state() == before


def test_a_step_is_not_taken_twice(run):
    """Oracle: the second StepDone of one upload is refused."""
    run.step(run.turn)
    with pytest.raises(WireError, match="batch 0 was not uploaded"):
        run.call("client0", "step", StepDone(1, 0, 1.0), {})


def test_a_turn_without_a_step_cannot_be_committed(run):
    """Oracle: the message; uploading alone is no step."""
    run.call("client0", "forward", run.upload(run.turn))
    with pytest.raises(WireError, match="client0: a turn without a step cannot be committed; refused"):
        run.commit(run.turn)


def test_a_handoff_that_does_not_follow_is_refused(run):
    """Oracle: it must name the digest of the newest one, none before the first."""
    run.step(run.turn)
    wrong = dataclasses.replace(run.handoff(run.turn), previous=bytes(32))
    with pytest.raises(WireError, match=r"client0: handoff.previous: it does not follow the newest hand-off"):
        run.call("client0", "commit", wrong)
    run.commit(run.turn)
    second = run.answer("client1")
    run.step(second)
    with pytest.raises(WireError, match=r"client1: handoff.previous: it does not follow"):
        run.call("client1", "commit", dataclasses.replace(run.handoff(second), previous=b""))
    run.commit(second)
    assert run.call("client0", "fetch").turn == 2


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
    run.call("client1", "forward", run.upload(second, 1))
    assert run.state() != before and float(run.server.attack.seen) == 4
    clock.seconds += LEASE + 1
    run.coordinator.watch()
    assert run.state() == before and float(run.server.attack.seen) == 2
    assert run.coordinator.membership.lost == ["client1"] and run.run_state.totals.rolled_back == 1
    assert [name for name, _ in run.recorder.events[-3:]] == ["rolled_back", "lost", "missing"]
    assert run.recorder.events[-3][1]["turn"] == 2
    with pytest.raises(
        MemberLostError, match="client1 was lost: it did not go on with its turn for 100 s; join again"
    ):
        run.commit(second)


def test_the_next_one_gets_the_turn_of_the_lost(run, clock):
    """Oracle: the turn's number is given again, and the run goes on to its end without the lost client."""
    run.step(run.turn)
    clock.seconds += LEASE / 2
    run.coordinator.watch()
    run.ask("client1")
    clock.seconds += LEASE / 2 + 1
    run.coordinator.watch()
    turn = run.answer("client1")
    if turn.kind is TurnKind.WAIT:
        turn = run.ask("client1")
    assert (turn.number, turn.client, turn.round, turn.step) == (1, "client1", 1, 0)
    del run.members["client0"]
    run.play(turn)
    rest = run.play_to_the_end()
    assert {t.client for t in rest} == {"client1"} and run.run_state.turn_log.finished
    farewell = Farewell({"bottom": "a" * 64}, 1)
    run.call("client1", "finish", farewell)
    run.call("client1", "leave")
    run.coordinator.wait()


def test_the_lost_may_join_again_and_take_part_from_the_next_round(run, clock):
    """Oracle: the second round has both."""
    clock.seconds += LEASE + 1
    run.coordinator.watch()
    assert run.coordinator.membership.lost == ["client0"]
    run.join("client0")
    played = run.play_to_the_end()
    assert [t.client for t in played if t.round == 2] == ["client0", "client1"] * 2


def test_every_call_renews_the_lease(run, clock):
    """Oracle: five steps of most of a lease each, and nobody is lost."""
    for batch in range(5):
        clock.seconds += LEASE * 0.9
        run.coordinator.watch()
        if run.answer("client1") is not None:
            run.ask("client1")
        run.step(run.turn, batch)
    assert run.coordinator.membership.lost == []


def test_a_waiting_client_is_told_to_ask_again_after_a_quarter_of_the_lease(run, clock):
    """Oracle: silence up to a quarter, then WAIT; who then says nothing is lost after a whole lease."""
    clock.seconds += LEASE / 4
    run.coordinator.watch()
    assert run.answer("client1") is None
    clock.seconds += 1
    run.coordinator.watch()
    assert run.answer("client1").kind is TurnKind.WAIT
    run.step(run.turn)
    clock.seconds += LEASE * 0.75
    run.coordinator.watch()
    assert run.coordinator.membership.lost == ["client1"]


def test_when_all_are_lost_the_run_stops(run, clock):
    """Oracle: the error names the last one; the server's process may go."""
    clock.seconds += LEASE + 1
    run.coordinator.watch()
    clock.seconds += LEASE + 1
    run.coordinator.watch()
    with pytest.raises(
        StoppedError,
        match="no client is left; the last was client1: it did not go on with its turn for 100 s",
    ):
        run.coordinator.wait()


def test_a_client_lost_after_the_last_turn_does_not_spoil_the_run(run, clock):
    """Oracle: all turns are done and client0 has said goodbye: the run has ended well, with its digest."""
    run.play(run.turn)
    run.play_to_the_end()
    run.call("client0", "finish", Farewell({"bottom": "a" * 64}, 1))
    run.call("client0", "leave")
    clock.seconds += LEASE + 1
    run.coordinator.watch()
    assert run.coordinator.membership.lost == ["client1"]
    run.coordinator.wait()
    assert len(run.coordinator.weights_sha256()) == 64


@pytest.mark.parametrize("name", ERRORS)
def test_a_run_stops_with_the_same_error_at_every_rank(run, name):
    """Oracle: the class that client0 met is raised at client1 and at the server; the turn is rolled back."""
    before = run.state()
    run.step(run.turn)
    run.call("client0", "abort", Refusal(name, "client0: it broke"))
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
    run.call("client0", "abort", Refusal("SystemExit", "x" * 5000))
    with pytest.raises(StoppedError, match="^x{1000}$"):
        run.coordinator.raise_if_stopped()


def test_one_that_leaves_in_the_middle_is_lost(run):
    """Oracle: its turn is rolled back and the other one gets it."""
    before = run.state()
    run.step(run.turn)
    run.call("client0", "leave")
    assert run.state() == before and run.coordinator.membership.lost == ["client0"]
    assert (run.answer("client1").number, run.answer("client1").client) == (1, "client1")


def test_nobody_finishes_early(run):
    """Oracle: the trained top is for those who finished."""
    with pytest.raises(WireError, match="client0: finish: the run is not over; refused"):
        run.call("client0", "finish", Farewell({"bottom": "a" * 64}, 1))


def test_different_digests_of_the_same_parts_are_noticed(run):
    """Oracle: two farewells that differ; a malformed one is refused at the door."""
    run.play(run.turn)
    run.play_to_the_end()
    with pytest.raises(WireError, match="client0: farewell.digests: expected 64 hex digits, got 'a'"):
        run.call("client0", "finish", Farewell({"bottom": "a"}, 1))
    for name, letter in (("client0", "a"), ("client1", "b")):
        run.call(name, "finish", Farewell({"bottom": letter * 64}, 1))
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
        run.call("client0", "report", Report(turn.number, scores))
    assert run.run_state.scores == {}
    run.call("client0", "report", Report(turn.number, {"test": {"loss": 0.5, "auroc": 1}}))
    assert run.run_state.scores == {"client0": {"test": {"loss": 0.5, "auroc": 1.0}}}


def test_evaluation_changes_no_weights(run):
    """Oracle: top and optimizer bit for bit; labels are refused, another phase than training's is asked for."""
    run.play(run.turn)
    run.play(run.answer("client1"))
    turn, before = run.ask("client0"), run.state()[0]
    upload = run.upload(turn, 5, phase="test", labels=None)
    output = run.call("client0", "predict", upload)
    assert output.shape == (4, 3) and not output.requires_grad and run.state()[0] == before
    assert torch.equal(run.call("client0", "predict", upload), output)
    with pytest.raises(WireError, match="labels: they must stay at home here"):
        run.call("client0", "predict", run.upload(turn, phase="test"))
    with pytest.raises(WireError, match="phase: 'train' does not fit the turn"):
        run.call("client0", "predict", run.upload(turn, labels=None))


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
    for name in run.members:
        told = run.ask(name)
        assert (told.kind, told.error, told.reason[:12]) == (TurnKind.END, "CheckpointError", "cannot write")
        run.call(name, "leave")
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
    run.coordinator.watch()
    assert run.members["client0"].member.left and run.state() == before
    assert (run.answer("client1").kind, run.answer("client1").error) == (TurnKind.END, "CheckpointError")
    run.call("client1", "leave")
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
