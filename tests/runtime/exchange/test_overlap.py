"""``--overlap`` and ``--microbatches``: what they change in a whole run, and what they do not.

Oracles: one-step-stale training in plain PyTorch, and the run whose batches cross whole. That a run over RPC ends with the
weights of one process shows tests/integration/test_oracle.py.
"""

import dataclasses
from collections import OrderedDict
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.func import functional_call

from suture.launch import build
from suture.launch.options.options import RunOptions
from suture.launch.roles.one_process import play_locally
from suture.launch.roles.unsplit import Place, Unsplit
from suture.runtime.errors import DataError, DivergedError
from suture.runtime.exchange import LocalExchange
from suture.runtime.exchange.batch_in_flight import MOST_UNDER_WAY
from suture.runtime.hooks import Attack, Detector
from suture.runtime.server.api import ServerApi
from suture.runtime.training.metrics import build_criterion

KEY = bytes(range(32))


def normed_net(num_outputs):
    """Batch norm and dropout on both sides of the cut ``drop``."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Conv2d(3, 8, 3, stride=2, padding=1),
            norm=nn.BatchNorm2d(8),
            act=nn.ReLU(),
            drop=nn.Dropout(0.2),
            second=nn.Conv2d(8, 16, 3, stride=2, padding=1),
            norm2=nn.BatchNorm2d(16),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            drop2=nn.Dropout(0.2),
            last=nn.Linear(16, num_outputs),
        )
    )


def plain_net(num_outputs):
    """Nothing that looks at more than one image, and no chance."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Conv2d(3, 8, 3, stride=2, padding=1),
            act=nn.Tanh(),
            second=nn.Conv2d(8, 16, 3, stride=2, padding=1),
            act2=nn.Tanh(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            last=nn.Linear(16, num_outputs),
        )
    )


TINY = RunOptions(
    model=f"module:{__name__}:normed_net",
    cut="drop",
    image_size=16,
    clients=2,
    train_images=14,
    validation_images=0,
    test_images=2,
    batch_size=4,
    epochs=2,
    lr=1e-2,
    augment=False,
    exchange="local",
)
PLAIN = dataclasses.replace(
    TINY, model=f"module:{__name__}:plain_net", cut="act", batch_size=6, epochs=1, optimizer="sgd", lr=0.05
)
UNET = dataclasses.replace(
    TINY, data="chest-phantom", model="unet", width=3, cut="2", image_size=32, train_images=6, batch_size=2
)


class Played:
    """A whole run in this process and its clients."""

    def __init__(self, run_dir, options, *, resume=False, attack=None, detector=None):
        torch.set_num_threads(1)
        run_dir.mkdir(exist_ok=True)
        self.clients = []

        def noted(*args):
            self.clients.append(real(*args))
            if detector is not None:
                self.clients[-1].model.detector = detector
            return self.clients[-1]

        def arm(server, num_classes):
            server.attack = Attack() if attack is None else attack

        real = build.build_client
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "build_client", noted)
            patch.setattr(build, "new_run_id", lambda: "run")
            self.coordinator = play_locally(options.resolved(), KEY, run_dir, resume=resume, arm=arm)
        self.sha256 = self.coordinator.weights_sha256()

    def tensors(self):
        parts = [
            self.clients[0].model.bottom,
            self.clients[0].model.head,
            self.coordinator.run_state.server.top,
        ]
        return [t for part in parts if part is not None for t in part.state_dict().values()]


def train_one_step_stale(options):
    """Ordinary training of the joined net, but that the bottom computes with the weights that it had a step before."""
    torch.set_num_threads(1)
    options = dataclasses.replace(options, overlap=False).resolved()
    images = build.build_images(options, options.clients)
    names = [build.client_name(index) for index in range(options.clients)]
    data = {name: build.build_data(options, images, index) for index, name in enumerate(names)}
    trainer = Unsplit(options, data, KEY, len(images.source.classes))
    bottom, top, head = (trainer._parts.get(part) for part in ("bottom", "top", "head"))
    criterion = build_criterion(data[names[0]].task, None)
    for round in range(1, options.epochs + 1):
        for name in names:
            before = None
            for batch in trainer.train_batches(round, name):
                trainer.place = Place(round, name, batch.number)
                trainer.model.train()
                now = {key: p.detach().clone() for key, p in bottom.named_parameters()}
                old = {key: p.clone().requires_grad_() for key, p in (before or now).items()}
                trainer._reseed("bottom")
                smashed, skips = functional_call(bottom, old, (batch.inputs,))
                trainer._reseed("top")
                out = top(smashed)
                if head is not None:
                    trainer._reseed("head")
                    out = head(out, skips)
                trainer.optimizer.zero_grad()
                criterion(out, batch.targets).backward()
                for key, parameter in bottom.named_parameters():
                    parameter.grad = old[key].grad
                trainer.optimizer.step()
                before = now
    return trainer.weights_sha256()


# Overlap ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        TINY,
        dataclasses.replace(TINY, labels="home"),
        UNET,
        dataclasses.replace(TINY, optimizer="sgd", clients=1),
    ],
    ids=["shared", "home", "unet", "sgd"],
)
def test_overlap_trains_with_the_bottoms_weights_of_one_step_before(tmp_path, case):
    """Oracle: `train_one_step_stale`, bit for bit, with batch norm, dropout and skips; without overlap others come."""
    overlapped = Played(tmp_path / "overlap", dataclasses.replace(case, overlap=True)).sha256
    assert overlapped == train_one_step_stale(case)
    assert overlapped != Played(tmp_path / "plain", case).sha256


@pytest.mark.parametrize("labels", ["shared", "home"])
@pytest.mark.parametrize(
    "changes",
    [
        {"overlap": True},
        {"microbatches": 2},
        {"overlap": True, "microbatches": 2, "wire": "int8"},
        {"overlap": True, "defence": "dcor+noise:scale=0.1"},
        {"overlap": True, "microbatches": 2, "defence": "proxy", "wire": "topk:0.3:ef"},
    ],
    ids=str,
)
def test_a_run_repeats_and_resumes_bit_for_bit(tmp_path, changes, labels):
    """Oracle: the run that was not stopped."""
    options = dataclasses.replace(TINY, labels=labels, **changes)
    whole = Played(tmp_path / "whole", options).sha256
    Played(tmp_path / "halves", dataclasses.replace(options, epochs=1))
    assert Played(tmp_path / "halves", options, resume=True).sha256 == whole


# Parts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["shared", "home"])
@pytest.mark.parametrize("changes", [{}, {"defence": "dcor"}, {"class_weights": "balanced"}], ids=str)
@pytest.mark.parametrize("microbatches", [2, 3, 6])
def test_a_batch_in_parts_trains_like_a_whole_one(tmp_path, monkeypatch, microbatches, changes, labels):
    """Oracle: the run whose batches cross whole, within rounding; 17 images make batches of 6, 6 and 5, in parts of
    different sizes and, with weights, of different weight. The losses that the server is told are the same, too.
    """
    monkeypatch.setattr(build, "class_weights", lambda options, data: None if not changes else (0.4, 1.7))
    options = dataclasses.replace(PLAIN, labels=labels, train_images=17, **changes)
    whole = Played(tmp_path / "whole", options)
    options = dataclasses.replace(options, microbatches=microbatches)
    parts = Played(tmp_path / "parts", options)
    for ours, theirs in zip(parts.tensors(), whole.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    ours, theirs = parts.coordinator.run_state.train_loss, whole.coordinator.run_state.train_loss
    assert ours == pytest.approx(theirs, rel=1e-5)
    # The bound would catch a part that counts for a batch: one step's worth of the learning rate is far above it.
    start = build.build_split(options.resolved(), 2, KEY)
    moved = max(
        float((a - b).abs().max())
        for a, b in zip(parts.tensors(), start.bottom.state_dict().values(), strict=False)
    )
    assert moved > 100 * 1e-5


def test_unets_batches_in_parts_train_like_whole_ones_but_for_batch_norm(tmp_path):
    """Oracle: the whole batch's loss at the first step, Dice over all of it: before any step batch norm alone differs."""
    options = dataclasses.replace(UNET, batch_size=4, train_images=4, epochs=1, clients=1)
    losses = {}
    for parts in (1, 2):
        played = Played(tmp_path / str(parts), dataclasses.replace(options, microbatches=parts))
        losses[parts] = played.coordinator.run_state.train_loss["client0"]
    assert losses[1] != losses[2] and losses[1] == pytest.approx(losses[2], rel=0.1)


class Doors(Attack, Detector):
    """Notes what each door is shown."""

    def __init__(self):
        self.seen, self.losses, self.steps, self.watched = [], [], 0, []

    def loss(self, batch, task_loss):
        self.losses.append((batch.batch, batch.part, len(batch.labels)))
        return task_loss

    def step(self):
        self.steps += 1

    def state_dict(self):
        return {}


class Watch(Detector):
    def __init__(self):
        self.seen = []

    def observe(self, smashed, grad, labels):
        self.seen.append((smashed, grad, labels))


def test_to_an_attack_a_part_is_a_batch_and_a_detector_sees_whole_ones(tmp_path):
    """Oracle: the sizes by hand; the gradients of the run in whole batches."""
    watched = {}
    for parts in (1, 3):
        doors, watch = Doors(), Watch()
        options = dataclasses.replace(PLAIN, clients=1, microbatches=parts)
        Played(tmp_path / str(parts), options, attack=doors, detector=watch)
        watched[parts] = watch.seen
        assert doors.steps == len(doors.losses)
        if parts == 3:
            sizes = [(b, p, 2) for b in (0, 1) for p in (0, 1, 2)]
            assert doors.losses == [*sizes, (2, 0, 2)]  # two images make no two parts of one
    for (h, dh, y), (h_whole, dh_whole, y_whole) in zip(watched[3], watched[1], strict=True):
        assert torch.equal(y, y_whole)
        torch.testing.assert_close(h, h_whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dh, dh_whole, rtol=1e-3, atol=1e-6)


# What is under way --------------------------------------------------------------------------------


class Line(LocalExchange):
    """Notes when calls begin and end, and answers no earlier than it is waited for."""

    log: ClassVar[list[str]] = []

    def begin(self, endpoint, *args, **how):
        message = args[0] if args else None
        if endpoint not in (ServerApi.train, ServerApi.backward):
            return super().begin(endpoint, *args, **how)
        name = f"{endpoint.__name__} {message.batch}.{message.part}"
        self.log.append(f"{name} goes")
        waits = super().begin(endpoint, *args, **how)

        def wait():
            self.log.append(f"{name} comes")
            return waits()

        return wait


def _log(tmp_path, monkeypatch, failing=None, **changes):
    from suture.launch.roles import ranks
    from suture.runtime.client.model import ClientModel

    Line.log = []
    real = ClientModel.batches

    def batches(client, turn):
        for batch in real(client, turn):
            Line.log.append(f"images {batch.number}")
            if batch.number == failing:
                raise DataError("a picture is gone")
            yield batch

    monkeypatch.setattr(ClientModel, "batches", batches)
    monkeypatch.setattr(ranks, "LocalExchange", Line)
    options = dataclasses.replace(PLAIN, clients=1, train_images=12, **changes)
    Played(tmp_path, options)
    return Line.log


def test_the_next_images_are_made_ready_while_a_batch_is_away(tmp_path, monkeypatch):
    """Oracle: the order of events."""
    assert _log(tmp_path, monkeypatch) == [
        "images 0", "train 0.0 goes", "images 1", "train 0.0 comes", "train 1.0 goes", "train 1.0 comes",
    ]  # fmt: skip


def test_overlapped_batches_leave_before_the_one_before_is_back(tmp_path, monkeypatch):
    """Oracle: the order of events; at home the server has a batch's gradient before it is given the next."""
    assert _log(tmp_path / "a", monkeypatch, overlap=True) == [
        "images 0", "train 0.0 goes", "images 1", "train 1.0 goes", "train 0.0 comes", "train 1.0 comes",
    ]  # fmt: skip
    monkeypatch.undo()
    assert _log(tmp_path / "b", monkeypatch, overlap=True, labels="home") == [
        "images 0", "train 0.0 goes", "images 1", "train 0.0 comes", "backward 0.0 goes", "train 1.0 goes",
        "backward 0.0 comes", "train 1.0 comes", "backward 1.0 goes", "backward 1.0 comes",
    ]  # fmt: skip


def test_parts_follow_each_other(tmp_path, monkeypatch):
    """Oracle: the order of events."""
    assert _log(tmp_path, monkeypatch, microbatches=2)[:6] == [
        "images 0", "train 0.0 goes", "train 0.1 goes", "images 1", "train 0.0 comes", "train 0.1 comes",
    ]  # fmt: skip


def test_no_more_parts_are_under_way_than_leave_the_server_threads(tmp_path, monkeypatch):
    """Oracle: the count of events; all six parts go and come."""
    under_way, most = 0, 0
    for event in _log(tmp_path, monkeypatch, microbatches=6):
        under_way += event.endswith("goes") - event.endswith("comes")
        most = max(most, under_way)
    assert (under_way, most) == (0, MOST_UNDER_WAY) and Line.log.count("train 1.5 comes") == 1


def test_a_turn_that_fails_leaves_nothing_under_way(tmp_path, monkeypatch):
    """Oracle: every call that went has come, and the error is the image's own."""
    with pytest.raises(DataError, match="a picture is gone"):
        _log(tmp_path, monkeypatch, failing=1, microbatches=3)
    gone, come = ({e.split()[1] for e in Line.log if e.endswith(word)} for word in ("goes", "comes"))
    assert gone == come == {"0.0", "0.1", "0.2"}


def test_a_loss_that_is_no_number_is_refused_by_its_part(tmp_path):
    """Oracle: the message names client, round and batch."""

    class Broken(Attack):
        def loss(self, batch, task_loss):
            return task_loss * float("nan") if batch.part == 1 else task_loss

    options = dataclasses.replace(PLAIN, clients=1, microbatches=2)
    with pytest.raises(DivergedError, match="client0: round 1, batch 0: the loss is nan"):
        Played(tmp_path, options, attack=Broken())
