"""The server's side of a turn of several clients: who waits for whom, what is refused, and what a lost client costs.

Oracle: the protocol, by hand; the state of the server as it was when the turn began.
"""

import dataclasses

import pytest
import torch
from tiny import asked
from torch import nn

from suture.runtime.errors import HandoffError, TurnUndoneError, WireError
from suture.runtime.records.observers import NoRecorder
from suture.runtime.scheduler import AtOnce, Together, TurnKind
from suture.runtime.server.api import ServerApi
from suture.runtime.server.coordinator import Coordinator, RunConfig
from suture.runtime.server.membership import Membership, OpenMembership
from suture.runtime.server.model import ServerModel
from suture.runtime.server.run_state import RunState
from suture.runtime.server.turn_log import TurnLog
from suture.runtime.state.checkpoint import Checkpoints
from suture.runtime.state.handoff import HandoffSeal, handoff_digest
from suture.runtime.wire.checks import TensorSpec
from suture.runtime.wire.messages import (
    Hello,
    OutputGradient,
    Refusal,
    SealedHandoff,
    Share,
    StepReply,
    Upload,
    unwrap,
)

NAMES = ("ward_a", "ward_b")


class Run:
    """A server whose clients train at once, two batches each, and their memberships."""

    def __init__(self, folder, way, labels=True):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        top = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
        server = ServerModel(
            top,
            torch.optim.Adam(top.parameters(), lr=0.1),
            smashed=TensorSpec((2, 3), torch.float32, 4),
            labels=TensorSpec((), torch.int64, 4, below=3) if labels else None,
        )
        turn_log = TurnLog(AtOnce(way), 1)
        self.run_state = RunState(
            "run", folder, server, turn_log, Checkpoints(folder / "checkpoints"), ("auroc",)
        )
        config = RunConfig(run="run", run_dir=folder, lease=60.0)
        self.coordinator = Coordinator(
            self.run_state, Membership(2, {}, OpenMembership(least=1, grace=0.0)), config
        )
        self.coordinator.begin(False, lambda step: NoRecorder())
        self.labels = labels
        self.members = {name: ServerApi(self.coordinator) for name in NAMES}
        for name in NAMES:
            self.call(name, "hello", Hello(name, {}, 8, 2))
        self.turns = self.ask(*NAMES)

    def ask(self, *names):
        """What each of ``names`` is granted when all of them have asked."""
        waiting = {name: self.members[name].next_turn() for name in names}
        return {name: answer.value() for name, answer in waiting.items() if answer.done()}

    def upload(self, name, batch=0, **changes):
        generator = torch.Generator().manual_seed(10 * NAMES.index(name) + batch)
        smashed = torch.randn(4, 2, 3, generator=generator)
        labels = torch.tensor([0, 1, 2, 0]) if self.labels else None
        upload = Upload(self.turns[name].number, batch, "train", smashed, labels)
        return dataclasses.replace(upload, **changes)

    def train(self, name, batch=0, **changes):
        answer = self.members[name].train(self.upload(name, batch, **changes))
        if answer.done():
            unwrap(answer.value())
        return answer

    def call(self, name, endpoint, *messages):
        """What the server answers a client; raises what it refuses with."""
        return asked(self.members[name], endpoint, *messages)

    def share(self, name):
        turn = self.turns[name].number
        sealed = torch.full((32,), NAMES.index(name), dtype=torch.uint8)
        return SealedHandoff(turn, handoff_digest(self.run_state.handoff), bytes(12), sealed)

    def commit(self, name):
        self.call(name, "commit", self.share(name))

    def weights(self):
        return [tensor.clone() for tensor in self.run_state.server.top.state_dict().values()]


def finished(*answers):
    return [isinstance(answer.value(), StepReply) if answer.done() else None for answer in answers]


@pytest.fixture(params=list(Together))
def run(request, tmp_path):
    return Run(tmp_path, request.param)


def test_all_get_the_same_turn_and_none_before_all_have_asked(run):
    """Oracle: one number, one start, each its own name."""
    assert {(t.number, t.kind, t.handoff, t.together) for t in run.turns.values()} == {
        (1, TurnKind.TRAIN, 0, True)
    }
    assert [turn.client for turn in run.turns.values()] == list(NAMES)


def test_batches_are_answered_when_the_schedule_says(run):
    """Oracle: concat waits for the other client's batch, splitfed for nobody, parallel for its place in the wave."""
    first = run.train("ward_a")
    way = run.run_state.turn_log.together
    if way is Together.CONCAT:
        assert finished(first) == [None]
    if way is Together.SPLITFED:
        assert finished(first) == [True]
    second = run.train("ward_b")
    assert finished(first, second) == [True, True]


def test_what_ends_the_turn_is_the_last_share(run, tmp_path):
    """Oracle: nothing is on the disk before; then one line, and a mean for whoever asks first."""
    for batch in (0, 1):
        assert finished(run.train("ward_a", batch), run.train("ward_b", batch))[1]
    run.commit("ward_a")
    assert run.run_state.turn_log.entries == [] and run.ask("ward_a") == {}
    run.commit("ward_b")
    (entry,) = run.run_state.turn_log.entries
    assert (entry.clients, entry.num_batches, entry.together) == (NAMES, 4, run.run_state.turn_log.together)
    waiting = run.members["ward_b"].next_turn()
    assert [name for name in NAMES if name in run.coordinator.transaction.turns] == [
        "ward_a"
    ] and not waiting.done()
    shares = [run.call("ward_a", "share", index) for index in range(3)]
    assert [None if share is None else share.client for share in shares] == [*NAMES, None]


def test_shares_are_for_whoever_averages(run):
    """Oracle: the refusal; a client that trains is shown nobody's."""
    with pytest.raises(WireError, match="ward_a: share 0: no turn of its to average is running; refused"):
        run.call("ward_a", "share", 0)


def test_a_lost_client_undoes_the_turn_for_all_and_the_others_begin_again(run):
    """Oracle: the weights when the turn began; who waited is told, who was not waiting when it calls next."""
    before = run.weights()
    finished(run.train("ward_a"), run.train("ward_b"))
    waiting = run.train("ward_b", 1)
    run.call("ward_a", "leave")
    assert all(torch.equal(*pair) for pair in zip(before, run.weights(), strict=True))
    if isinstance(waiting.value(), Refusal):
        assert waiting.value().error == "TurnUndoneError"
    with pytest.raises(TurnUndoneError, match="turn 1 was rolled back: it left"):
        run.commit("ward_b")
    run.turns = run.ask("ward_b")
    assert (run.turns["ward_b"].number, run.turns["ward_b"].together) == (1, True)
    for batch in (0, 1):
        assert finished(run.train("ward_b", batch)) == [True]
    run.commit("ward_b")
    assert [entry.clients for entry in run.run_state.turn_log.entries] == [("ward_b",)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 1}, "batch: expected 0, got 1"),
        ({"batch": 2}, "batch: it announced 2, got 2"),
        ({"smashed": torch.full((4, 2, 3), torch.nan)}, "24 of 24 values are NaN"),
        ({"turn": 9}, r"train in turn 9, but turn 1 \(train\) of ward_a\+ward_b is running"),
    ],
)
def test_what_does_not_fit_is_refused_and_disturbs_nobody(run, changes, words):
    """Oracle: the message, and the other client's step."""
    with pytest.raises(WireError, match=words):
        run.train("ward_a", **{"batch": 0} | changes)
    assert True in finished(run.train("ward_b"), run.train("ward_a"))


def test_a_second_batch_before_the_first_is_answered_is_refused(tmp_path):
    """Oracle: the number that is due; the first one is answered all the same."""
    run = Run(tmp_path, Together.CONCAT)
    first = run.train("ward_a")
    with pytest.raises(WireError, match="ward_a: batch: expected 0, got 0; refused"):
        run.train("ward_a")
    assert finished(run.train("ward_b"), first) == [True, True]


def test_no_graph_crosses_where_others_train_too(run):
    """Oracle: two graphs on one top would fail in the middle of a step, without a name."""
    with pytest.raises(
        WireError, match="ward_a: forward: others train in this turn; no graph crosses; refused"
    ):
        run.call("ward_a", "forward", run.upload("ward_a"))


def test_one_output_is_out_at_a_time_where_one_top_serves_all(tmp_path):
    """Oracle: labels at home: the other client's batch waits until the first one's gradient is back and stepped."""
    run = Run(tmp_path, Together.PARALLEL, labels=False)
    answers = {name: run.train(name) for name in NAMES}
    (first,) = [name for name, answer in answers.items() if answer.done()]
    (other,) = set(NAMES) - {first}
    back = run.call(first, "backward", OutputGradient(1, 0, 0.5, torch.ones(4, 3)))
    assert back.shape == (4, 2, 3) and answers[other].done()


def test_a_client_that_waits_for_others_does_not_lose_its_lease(tmp_path, monkeypatch):
    """Oracle: beyond the lease the one that the others wait for is lost, and nobody else."""
    run = Run(tmp_path, Together.CONCAT)
    waiting = run.train("ward_a")
    for member in run.coordinator.membership:
        member.turn.heard -= 61
        member.last_seen -= 61
    run.coordinator.watch()
    assert run.coordinator.membership.lost == ["ward_b"]
    assert waiting.value().error == "TurnUndoneError"


def test_a_share_opens_only_as_what_it_was_sealed_as():
    """Oracle: AES-GCM's associated data: another client, another turn, another start, or as a hand-off."""
    key, state = bytes(32), {"state": {"a": torch.ones(2)}, "num_images": 3}
    sealed = HandoffSeal(key, "run").seal(state, 4, None, sharer="ward_a")
    seal = HandoffSeal(key, "run")
    assert seal.open_share(Share("ward_a", sealed), 4, None)["num_images"] == 3
    for wrong in (Share("ward_b", sealed), Share("ward_a", dataclasses.replace(sealed, nonce=b"n" * 12))):
        with pytest.raises(HandoffError, match="does not open"):
            seal.open_share(wrong, 4, None)
    with pytest.raises(HandoffError, match="a share of turn 4 of ward_a for the mean of turn 5"):
        seal.open_share(Share("ward_a", sealed), 5, None)
    with pytest.raises(HandoffError, match="a share of turn 4"):
        seal.open_share(Share("ward_a", sealed), 4, sealed)
    with pytest.raises(HandoffError, match="does not open"):
        HandoffSeal(key, "run").open(sealed)
