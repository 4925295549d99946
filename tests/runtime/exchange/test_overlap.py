"""``--overlap``: what it changes in a whole run, and what it does not.

Oracle: one-step-stale training in plain PyTorch. That a run over RPC ends with the weights of one process shows
tests/integration/test_oracle.py.
"""

import dataclasses
from collections import OrderedDict
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.func import functional_call

from suture.launch import build
from suture.launch.options.options import AskedOptions
from suture.launch.roles import one_process
from suture.launch.roles.one_process import play_locally
from suture.launch.roles.unsplit import Place, Unsplit
from suture.runtime.client.model import ClientModel
from suture.runtime.errors import DataError
from suture.runtime.exchange import LocalExchange
from suture.runtime.server.api import ServerApi
from suture.runtime.training.objectives import build_criterion

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


TINY = AskedOptions(
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
    augment="none",
    exchange="local",
)
PLAIN = dataclasses.replace(
    TINY, model=f"module:{__name__}:plain_net", cut="act", batch_size=6, epochs=1, optimizer="sgd", lr=0.05
)
UNET = dataclasses.replace(
    TINY, data="chest-phantom", model="unet", width=3, cut="2", image_size=32, train_images=6, batch_size=2
)


def weights_sha256(run_dir, options, *, resume=False):
    """Of a whole run in this process."""
    torch.set_num_threads(1)
    run_dir.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "new_run_id", lambda: "run")
        return play_locally(options.resolved(), KEY, run_dir, resume=resume).weights_sha256()


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
    overlapped = weights_sha256(tmp_path / "overlap", dataclasses.replace(case, overlap=True))
    assert overlapped == train_one_step_stale(case)
    assert overlapped != weights_sha256(tmp_path / "plain", case)


@pytest.mark.parametrize("labels", ["shared", "home"])
@pytest.mark.parametrize(
    "changes",
    [
        {"overlap": True},
        {"overlap": True, "wire": "int8"},
        {"overlap": True, "defence": "dcor+noise:scale=0.1"},
        {"overlap": True, "defence": "proxy", "wire": "topk:0.3"},
    ],
    ids=str,
)
def test_a_run_repeats_and_resumes_bit_for_bit(tmp_path, changes, labels):
    """Oracle: the run that was not stopped."""
    options = dataclasses.replace(TINY, labels=labels, **changes)
    whole = weights_sha256(tmp_path / "whole", options)
    weights_sha256(tmp_path / "halves", dataclasses.replace(options, epochs=1))
    assert weights_sha256(tmp_path / "halves", options, resume=True) == whole


# What is under way --------------------------------------------------------------------------------


class Line(LocalExchange):
    """Notes when calls begin and end, and answers no earlier than it is waited for."""

    log: ClassVar[list[str]] = []

    def begin(self, endpoint, *args, **how):
        message = args[0] if args else None
        if endpoint not in (ServerApi.train, ServerApi.backward):
            return super().begin(endpoint, *args, **how)
        name = f"{endpoint.__name__} {message.batch}"
        self.log.append(f"{name} goes")
        waits = super().begin(endpoint, *args, **how)

        def wait():
            self.log.append(f"{name} comes")
            return waits()

        return wait


def _log(tmp_path, monkeypatch, failing=None, **changes):
    Line.log = []
    real = ClientModel.batches

    def batches(client, turn):
        for batch in real(client, turn):
            Line.log.append(f"images {batch.number}")
            if batch.number == failing:
                raise DataError("a picture is gone")
            yield batch

    monkeypatch.setattr(ClientModel, "batches", batches)
    monkeypatch.setattr(one_process, "LocalExchange", Line)
    options = dataclasses.replace(PLAIN, **{"clients": 1, "train_images": 12} | changes)
    weights_sha256(tmp_path, options)
    return Line.log


def test_the_next_images_are_made_ready_while_a_batch_is_away(tmp_path, monkeypatch):
    """Oracle: the order of events."""
    assert _log(tmp_path, monkeypatch) == [
        "images 0", "train 0 goes", "images 1", "train 0 comes", "train 1 goes", "train 1 comes",
    ]  # fmt: skip


def test_overlapped_batches_leave_before_the_one_before_is_back(tmp_path, monkeypatch):
    """Oracle: the order of events; at home the server has a batch's gradient before it is given the next."""
    assert _log(tmp_path / "a", monkeypatch, overlap=True) == [
        "images 0", "train 0 goes", "images 1", "train 1 goes", "train 0 comes", "train 1 comes",
    ]  # fmt: skip
    monkeypatch.undo()
    assert _log(tmp_path / "b", monkeypatch, overlap=True, labels="home") == [
        "images 0", "train 0 goes", "images 1", "train 0 comes", "backward 0 goes", "train 1 goes",
        "backward 0 comes", "train 1 comes", "backward 1 goes", "backward 1 comes",
    ]  # fmt: skip


def test_a_turn_that_fails_leaves_nothing_under_way(tmp_path, monkeypatch):
    """Oracle: every call that went has come, and the error is the image's own."""
    with pytest.raises(DataError, match="a picture is gone"):
        _log(tmp_path, monkeypatch, failing=2, overlap=True, train_images=18)
    gone, come = ({e.split()[1] for e in Line.log if e.endswith(word)} for word in ("goes", "comes"))
    assert gone == come == {"0", "1"}
