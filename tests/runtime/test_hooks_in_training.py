"""The doors are called as documented while a whole run is played, and with nothing at them nothing changes.

Oracle: the messages that crossed the wire, and unsplit autograd over the same parts, images and order.
"""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes import Events, Tap, Watch
from tiny import BATCH, NUM_BATCHES, SGD, build_client, build_coordinator, build_parts, build_server
from torch import nn
from torch.nn.functional import cross_entropy

from suture.runtime.client.step import ClientStep
from suture.runtime.errors import DivergedError, WireError
from suture.runtime.exchange import LocalExchange
from suture.runtime.hooks import Attack, Defence
from suture.runtime.one_process import run_local
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.model import ServerModel
from suture.runtime.state.checkpoint import Checkpoints
from suture.runtime.state.handoff import part_digest
from suture.runtime.wire.messages import Upload


class Recorded(LocalExchange):
    """Notes every upload as the client sent it."""

    def __init__(self, coordinator, log):
        super().__init__(coordinator)
        self.log = log

    def begin(self, endpoint, *args, **how):
        self.log += [arg for arg in args if isinstance(arg, Upload)]
        return super().begin(endpoint, *args, **how)


def play(run_dir: Path, *, attack=None, defences=(None,), detectors=None, home=False, rounds=1):
    """A whole run in this process, one client a defence; returns all that there is to look at."""
    torch.set_num_threads(1)
    server = build_server(home, attack)
    events, uploads = Events(), []
    coordinator = build_coordinator(run_dir, server, len(defences), rounds=rounds, recorder=events)
    clients = [
        build_client(index, home, defence, (detectors or {}).get(index))
        for index, defence in enumerate(defences)
    ]
    played = SimpleNamespace(
        coordinator=coordinator, server=server, clients=clients, uploads=uploads, losses=events.losses,
        checkpoints=Checkpoints(run_dir / "checkpoints"), error=None,
    )  # fmt: skip
    try:
        run_local(
            [Participant(client, Recorded(coordinator, uploads), NoClientObserver()) for client in clients],
            {},
        )
    except DivergedError as error:
        played.error = error
    return played


def train_unsplit(home=False, roots=None, before_step=None):
    """One turn of client0 without a wire: ordinary autograd and SGD.

    Args:
        home: the U-shape.
        roots: (x, smashed, loss) -> what is differentiated in place of the loss.
        before_step: (smashed, loss, parts) after backward.
    """
    client, parts = build_client(0, home), build_parts(home)
    optimizers = [
        SGD.build(p for part in (parts.bottom, parts.head) if part is not None for p in part.parameters()),
        SGD.build(parts.top.parameters()),
    ]
    losses = []
    for batch in client.model.batches(Turn(TurnKind.TRAIN, "client0", 1, 1)):
        smashed, skips = parts.bottom(batch.inputs)
        smashed.retain_grad()
        out = parts.top(smashed)
        loss = cross_entropy(out if parts.head is None else parts.head(out, skips), batch.targets)
        losses.append(float(loss.detach()))
        root = loss if roots is None else roots(batch.inputs, smashed, loss)
        if before_step is None:
            root.backward()
        else:
            before_step(smashed, root, parts)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return parts, losses


def same(part, other) -> bool:
    return part_digest(part.state_dict()) == part_digest(other.state_dict())


def same_parts(played, parts) -> bool:
    client = played.clients[0]
    heads = parts.head is None or same(client.model.head, parts.head)
    return same(client.model.bottom, parts.bottom) and same(played.server.top, parts.top) and heads


# The honest run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", [False, True])
def test_without_anyone_at_the_doors_training_is_ordinary_training(home, tmp_path):
    """Oracle: unsplit autograd, bit for bit; the losses are its own, too."""
    played = play(tmp_path, home=home)
    parts, losses = train_unsplit(home)
    assert same_parts(played, parts) and played.losses == losses


# Attack --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", [False, True])
def test_an_attack_sees_exactly_what_crossed_the_wire(home, tmp_path):
    """Oracle: the uploads, one by one, of every phase and both clients; labels only where they were sent."""
    tap = Tap()
    played = play(tmp_path, attack=tap, defences=(None, None), home=home, rounds=2)
    assert len(tap.seen) == len(played.uploads) == 2 * 2 * (NUM_BATCHES + 1 + 2)
    for batch, upload in zip(tap.seen, played.uploads, strict=True):
        assert torch.equal(batch.smashed, upload.smashed)
        assert (batch.batch, batch.phase) == (upload.batch, upload.phase)
        labelled = batch.phase == "train" and not home
        assert (batch.labels is not None) == labelled and batch.labels is upload.labels
    trained = [(batch.round, batch.client, batch.batch) for batch in tap.seen if batch.phase == "train"]
    assert trained == [(r, f"client{c}", b) for r in (1, 2) for c in (0, 1) for b in range(NUM_BATCHES)]


@pytest.mark.parametrize("home", [False, True])
def test_the_doors_of_an_attack_open_in_order(home, tmp_path):
    """Oracle: observe, then what came back, then the active door, then step after each backward; evaluation is observed
    only.
    """
    tap = Tap()
    play(tmp_path, attack=tap, home=home)
    active = ["received", "gradient"] if home else ["loss"]
    assert tap.calls == ["observe", *active, "step"] * NUM_BATCHES + ["validation", "test", "test"]


def test_an_attack_receives_the_gradient_of_the_output(tmp_path):
    """Oracle: unsplit autograd's gradient there, and the batch that it is of."""
    tap, expected, outputs = Tap(), [], []
    forward = nn.Sequential.forward  # the top's

    def noted(self, x):
        outputs.append(forward(self, x))
        return outputs[-1]

    def by_hand(smashed, loss, parts):
        (wanted,) = torch.autograd.grad(loss, outputs[-1], retain_graph=True)
        expected.append((smashed.detach().clone(), wanted))
        loss.backward()

    play(tmp_path, attack=tap, home=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Sequential, "forward", noted)
        train_unsplit(home=True, before_step=by_hand)
    assert len(tap.gradients) == len(expected) == NUM_BATCHES
    for (batch, gradient), (smashed, wanted) in zip(tap.gradients, expected, strict=True):
        assert torch.equal(batch.smashed, smashed) and torch.equal(gradient, wanted)


def test_where_labels_are_shared_nothing_comes_back(tmp_path):
    tap = Tap()
    play(tmp_path, attack=tap)
    assert tap.gradients == [] and "received" not in tap.calls


@pytest.mark.parametrize("home", [False, True])
def test_a_passive_attack_changes_nothing(home, tmp_path):
    """Oracle: the run with the base class, bit for bit, which is the run without one."""
    digests = {
        play(
            tmp_path / name, attack=attack, defences=(None, None), home=home, rounds=2
        ).coordinator.weights_sha256()
        for name, attack in (("none", None), ("base", Attack()), ("tap", Tap()))
    }
    assert len(digests) == 1


def test_an_attacks_loss_is_differentiated_and_the_tasks_is_shown(tmp_path):
    """Oracle: unsplit autograd of the attack's loss; the client is shown cross entropy."""

    class Hijack(Attack):
        def loss(self, batch, task_loss):
            return batch.smashed.pow(2).sum()

    played = play(tmp_path, attack=Hijack())
    parts, losses = train_unsplit(roots=lambda x, smashed, loss: smashed.pow(2).sum())
    assert same_parts(played, parts) and played.losses == losses
    assert same(played.server.top, build_parts(False).top), "the top learnt nothing: nothing asked it to"
    assert not same_parts(played, train_unsplit()[0])


def test_an_attacks_gradient_goes_back_in_place_of_the_servers(tmp_path):
    """Oracle: unsplit autograd with the gradient at the cut set by hand; top, head and skips keep the task's."""

    class Hijack(Attack):
        def gradient(self, batch, grad):
            return batch.smashed.detach() - 2 * grad

    def by_hand(smashed, loss, parts):
        smashed.register_hook(lambda grad: smashed.detach() - 2 * grad)
        loss.backward()

    played = play(tmp_path, attack=Hijack(), home=True)
    parts, losses = train_unsplit(home=True, before_step=by_hand)
    assert same_parts(played, parts) and played.losses == losses
    assert not same(played.clients[0].model.bottom, train_unsplit(home=True)[0].bottom)


def test_an_attacks_own_nets_are_left_to_it(tmp_path):
    """Oracle: no gradient arrives at a net that the attack did not differentiate itself; it steps its own."""

    class WithNet(Attack):
        def __init__(self):
            torch.manual_seed(3)
            self.net = nn.Linear(32, 1)
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
            self.steps = 0

        def loss(self, batch, task_loss):
            return self.net(batch.smashed.flatten(1)).mean()

        def step(self):
            assert all(parameter.grad is None for parameter in self.net.parameters())
            self.steps += 1

    attack = WithNet()
    before = copy.deepcopy(attack.net)
    play(tmp_path, attack=attack)
    assert attack.steps == NUM_BATCHES and same(attack.net, before)


class Learning(Attack):
    """Has a state: the sum of all it saw, and its steps."""

    def __init__(self):
        self.state = {"sum": torch.zeros(2, 4, 4), "steps": 0}

    def observe(self, batch):
        self.state["sum"] += batch.smashed.sum(0)

    def step(self):
        self.state["steps"] += 1

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = dict(state)


class Failing(Defence):
    """Gives up at the second batch of its client's turn."""

    def __init__(self):
        self.batches = 0

    def transform(self, smashed):
        self.batches += 1
        if self.batches == 2:
            raise DivergedError("client1: no further")
        return smashed


def test_an_attacks_state_is_checkpointed_and_rolled_back_with_the_turn(tmp_path):
    """Oracle: client1 fails in the middle of turn 2; everything is as the checkpoint of turn 1 has it."""
    attack = Learning()
    played = play(tmp_path / "two", attack=attack, defences=(None, Failing()))
    assert str(played.error) == "client1: no further" and played.coordinator.run_state.totals.rolled_back == 1
    assert len(played.losses) == NUM_BATCHES + 1, "one step of turn 2 was taken and undone"
    turn, state = played.checkpoints.load_newest()
    assert turn == 1 and attack.state["steps"] == state["server"]["attack"]["steps"] == NUM_BATCHES
    assert torch.equal(attack.state["sum"], state["server"]["attack"]["sum"])
    seen = [upload.smashed for upload in played.uploads[:NUM_BATCHES]]
    assert torch.equal(attack.state["sum"], sum(smashed.detach().sum(0) for smashed in seen))
    assert part_digest(state["server"]["top"]) == played.server.digest()
    later = Learning()
    ServerModel(
        build_parts(False).top, played.server.optimizer, smashed=None, labels=None, attack=later
    ).load_state_dict(state["server"])
    assert later.state["steps"] == NUM_BATCHES


# Defence -------------------------------------------------------------------------------------------


class Shield(Defence):
    """Halves what it sends, pulls on the smashed data, and has a state that every step changes."""

    def __init__(self, acts_in_evaluation=False):
        self.acts_in_evaluation = acts_in_evaluation
        self.scale = torch.tensor(0.5)
        self.calls, self.loaded = [], []

    def transform(self, smashed):
        self.calls.append("transform")
        return smashed * self.scale

    def penalty(self, inputs, smashed):
        self.calls.append("penalty")
        self.given = inputs, smashed
        return 0.1 * (smashed * inputs).pow(2).sum()

    def step(self):
        self.calls.append("step")
        self.scale = self.scale * 0.9

    def state_dict(self):
        return {"scale": self.scale}

    def load_state_dict(self, state):
        self.loaded.append(float(state["scale"]))
        self.scale = state["scale"]


def test_a_client_learns_from_the_loss_and_the_penalty(tmp_path):
    """Oracle: unsplit autograd of cross entropy plus penalty; the losses shown are the task's alone."""

    class Penalty(Defence):
        def penalty(self, inputs, smashed):
            assert inputs.min() >= -1 and inputs.max() <= 1 and inputs.min() < 0, "inputs are normalised"
            return 0.1 * (smashed * inputs).pow(2).sum()

    played = play(tmp_path, defences=(Penalty(),))
    parts, losses = train_unsplit(roots=lambda x, h, loss: loss + 0.1 * (h * x).pow(2).sum())
    assert same_parts(played, parts) and played.losses == losses
    assert not same(played.clients[0].model.bottom, train_unsplit()[0].bottom)


def test_what_is_transformed_crosses_the_wire_and_gradients_go_through_it(tmp_path):
    """Oracle: unsplit autograd of a top that halves its input; the upload is half the smashed data."""

    class Half(Defence):
        def transform(self, smashed):
            return smashed * 0.5

    played = play(tmp_path, defences=(Half(),))
    client, parts = build_client(0), build_parts(False)
    joined = SGD.build([*parts.bottom.parameters(), *parts.top.parameters()])
    for number, batch in enumerate(client.model.batches(Turn(TurnKind.TRAIN, "client0", 1, 1))):
        smashed = parts.bottom(batch.inputs).smashed
        assert torch.equal(played.uploads[number].smashed, smashed * 0.5)
        cross_entropy(parts.top(smashed * 0.5), batch.targets).backward()
        joined.step()
        joined.zero_grad()
    assert same_parts(played, parts)


@pytest.mark.parametrize("in_evaluation", [False, True])
def test_the_doors_of_a_defence_open_in_order(in_evaluation, tmp_path):
    """Oracle: transform, penalty, step a batch; in evaluation transform alone, where the defence acts there."""
    shield = Shield(in_evaluation)
    played = play(tmp_path, defences=(shield,))
    evaluation = ["transform"] * 3 if in_evaluation else []
    assert shield.calls == ["transform", "penalty", "step"] * NUM_BATCHES + evaluation
    inputs, smashed = shield.given
    sent = [upload.smashed for upload in played.uploads if upload.phase == "train"][-1]
    assert torch.equal(sent, smashed * (torch.tensor(0.5) * 0.9 * 0.9)), (
        "penalty is given the smashed data before door 1"
    )
    assert inputs.shape == (BATCH, 1, 4, 4)


def test_a_defences_state_travels_in_the_handoff(tmp_path):
    """Oracle: each client begins with the scale that the one before it ended with."""
    shields = (Shield(), Shield())
    play(tmp_path, defences=shields, rounds=2)
    after = [0.5 * 0.9 ** (NUM_BATCHES * turns) for turns in range(5)]
    # client0 opens client1's hand-off for round 1's evaluation, then trains with it; at the end again.
    assert shields[0].loaded == pytest.approx([after[2], after[4]])
    assert shields[1].loaded == pytest.approx([after[1], after[3]])
    assert float(shields[0].scale) == pytest.approx(after[4])


# Detector ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", [False, True])
def test_a_detector_sees_what_was_sent_its_gradient_and_the_targets(home, tmp_path):
    """Oracle: unsplit autograd's gradient at the cut, without the penalty's, which is the client's own."""
    watch, expected = Watch(), []

    class Penalty(Defence):
        def penalty(self, inputs, smashed):
            return 0.1 * smashed.pow(2).sum()

    def by_hand(smashed, root, parts):
        expected.append(
            (smashed.detach().clone(), torch.autograd.grad(root.task, smashed, retain_graph=True)[0])
        )
        root.total.backward()

    def roots(x, smashed, loss):
        return SimpleNamespace(task=loss, total=loss + 0.1 * smashed.pow(2).sum())

    played = play(tmp_path, defences=(Penalty(),), detectors={0: watch}, home=home)
    parts, _ = train_unsplit(home, roots=roots, before_step=by_hand)
    assert same_parts(played, parts) and len(watch.seen) == NUM_BATCHES
    targets = [
        batch.targets for batch in build_client(0).model.batches(Turn(TurnKind.TRAIN, "client0", 1, 1))
    ]
    for (smashed, grad, labels), (h, dh), target in zip(watch.seen, expected, targets, strict=True):
        assert torch.equal(smashed, h) and torch.equal(grad, dh) and torch.equal(labels, target)


def test_a_detector_changes_nothing_by_watching(tmp_path):
    """Oracle: the run without one."""
    with_one = play(tmp_path / "a", defences=(None, None), detectors={0: Watch(), 1: Watch()})
    without = play(tmp_path / "b", defences=(None, None))
    assert with_one.coordinator.weights_sha256() == without.coordinator.weights_sha256()


def test_fake_labels_go_up_and_the_client_does_not_learn_from_them(tmp_path):
    """Oracle: the labels on the wire; the client's weights are the initial ones, the server's are not."""

    liar = Watch(fake_steps=range(NUM_BATCHES))
    played = play(tmp_path, detectors={0: liar})
    batches = list(build_client(0).model.batches(Turn(TurnKind.TRAIN, "client0", 1, 1)))
    for batch, upload, (_, _, watched) in zip(batches, played.uploads[:NUM_BATCHES], liar.seen, strict=True):
        assert torch.equal(upload.labels, 1 - batch.targets) and torch.equal(watched, upload.labels)
    assert same(played.clients[0].model.bottom, build_parts(False).bottom)
    assert not same(played.server.top, build_parts(False).top)


# What the client believes of the server ------------------------------------------------------------


@pytest.mark.parametrize(
    ("home", "reply", "words"),
    [
        (False, torch.zeros(BATCH, 2), "server: loss: expected a LossReply, got Tensor"),
        (True, torch.zeros(BATCH, 3, 4, 4), r"server: output: expected shape \(1..2, 2, 4, 4\)"),
        (True, torch.full((BATCH, 2, 4, 4), float("nan")), "server: output: 64 of 64 values are NaN"),
        (True, "logits", "server: output: expected a tensor, got str"),
    ],
)
def test_a_client_refuses_a_reply_that_does_not_fit(home, reply, words):
    """Oracle: the message names the server and the field."""
    model, turn = build_client(0, home).model, Turn(TurnKind.TRAIN, "client0", 1, 1)
    with pytest.raises(WireError, match=words):
        ClientStep(model, turn, next(model.batches(turn))).whole(lambda smashed, labels: reply)
