"""What the server makes of a batch that comes in parts, from a client that is confused or hostile, or just early.

Oracle: the rule. Parts come in order, each once and all of one batch, and nothing is stepped before the last.
"""

import dataclasses
import threading
from types import SimpleNamespace

import pytest
import torch

from suture.launch.options.options import AskedOptions
from suture.runtime.errors import DivergedError, WireError
from suture.runtime.server import coordinator as coordinators
from suture.runtime.server.api import ServerApi
from suture.runtime.wire.messages import OutputGradient, SealedHandoff, StepDone, Upload, unwrap
from suture.studies.bench.rigs.rig import Rig

OPTIONS = AskedOptions(
    model="resnet18",
    image_size=32,
    clients=1,
    train_images=8,
    validation_images=0,
    test_images=2,
    batch_size=4,
    epochs=1,
    microbatches=2,
    exchange="local",
)


@pytest.fixture(params=["shared", "home"])
def sent(request, tmp_path):
    """A training turn that has begun, and how to send part of its batches by hand."""
    torch.set_num_threads(1)
    # At cut 5 the head is what follows layer4.
    options = dataclasses.replace(OPTIONS, labels=request.param, cut="5")
    rig = Rig(options.resolved(), tmp_path)
    shape, home = rig.server.smashed.shape, request.param == "home"

    def train(part, parts=2, images=2, labels=4, batch=0):
        own = None if home or labels is None else torch.arange(labels) % 2
        upload = Upload(rig.turn.number, batch, "train", torch.rand(images, *shape), own, part, parts)
        return rig._exchange.call(ServerApi.train, upload)

    def backward(output, part, loss=0.5, batch=0):
        message = OutputGradient(rig.turn.number, batch, loss, torch.zeros_like(output), part)
        return rig._exchange.call(ServerApi.backward, message)

    before = rig.server.digest()
    return SimpleNamespace(
        rig=rig, home=home, train=train, backward=backward, stepped=lambda: rig.server.digest() != before
    )


def test_the_server_steps_with_the_last_part_and_not_before(sent):
    """Oracle: the optimizer has state only then (batch norm's statistics move with every part)."""
    state = sent.rig.server.optimizer.state
    first = sent.train(0)
    assert not state
    second = sent.train(1, labels=None)
    if sent.home:
        sent.backward(first, 0)
        assert not state
        sent.backward(second, 1)
    assert state
    sent.train(0, batch=1)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"part": 1, "labels": None}, "part: expected part 0 of 2, got part 1 of 2"),
        ({"part": 0, "parts": 3}, "part: expected part 0 of 2, got part 0 of 3"),
        ({"part": 2, "parts": 2}, "part: expected a number from 0 below that of parts, got 2 of 2"),
        ({"part": -1}, "part: expected a number from 0 below that of parts, got -1 of 2"),
        ({"part": 0, "parts": 0}, ".*got 0 of 0"),
        ({"part": "0"}, ".*got '0' of 2"),
        ({"part": False}, ".*got False of 2"),
        ({"part": 0, "batch": 1}, "batch: expected 0, got 1"),
    ],
    ids=str,
)
def test_a_first_part_that_is_none_is_refused(sent, part, words):
    """Oracle: the message names client, field, and what was due; nothing was computed."""
    with pytest.raises(WireError, match=f"client0: {words}"):
        sent.train(**part)
    assert not sent.stepped()


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"part": 0}, "part: expected part 1 of 2, got part 0 of 2"),
        ({"part": 0, "parts": 1, "images": 4}, "part: expected part 1 of 2, got part 0 of 1"),
        ({"part": 1, "labels": None, "images": 3}, "part 1 of 2: with its 3 images the batch has 5 of 4"),
    ],
    ids=str,
)
def test_a_second_part_that_does_not_follow_is_refused(sent, part, words):
    """Oracle: as above."""
    sent.train(0)
    with pytest.raises(WireError, match=f"client0: {words}"):
        sent.train(**part)
    assert not sent.rig.server.optimizer.state


def test_one_part_too_many_is_refused(sent):
    """Oracle: a batch whose parts have all come waits for its gradient; one that was stepped is over."""
    sent.train(0)
    sent.train(1, labels=None)
    words = "part: expected its gradient, got part 0 of 2" if sent.home else "batch: expected 1, got 0"
    with pytest.raises(WireError, match=words):
        sent.train(0)


def test_labels_come_once_and_fit_the_parts(sent):
    """Oracle: by hand, where labels are shared."""
    if sent.home:
        pytest.skip("labels stay at home")
    with pytest.raises(WireError, match="part 0 of 2: with its 2 images the batch has 2 of 2"):
        sent.train(0, labels=2)
    sent.train(0)
    with pytest.raises(WireError, match="labels: the first part brings them all"):
        sent.train(1)
    with pytest.raises(WireError, match="part 1 of 2: with its 1 images the batch has 3 of 4"):
        sent.train(1, labels=None, images=1)


def test_gradients_of_outputs_come_in_order_and_after_all_parts(sent):
    """Oracle: by hand, where labels are at home."""
    if not sent.home:
        with pytest.raises(WireError, match="step: batch 0 was not uploaded"):
            sent.backward(torch.zeros(2, 2), 0)
        return
    first = sent.train(0)
    with pytest.raises(WireError, match="backward: part: expected 0 when all 2 have come, got 0 when 1 have"):
        sent.backward(first, 0)
    sent.train(1, labels=None)
    with pytest.raises(WireError, match="backward: part: expected 0 when all 2 have come, got 1 when 2 have"):
        sent.backward(first, 1)
    with pytest.raises(DivergedError, match="the loss is inf"):
        sent.backward(first, 0, loss=float("inf"))
    sent.backward(first, 0)
    with pytest.raises(WireError, match="backward: part: expected 1 when all 2 have come, got 0 when 2 have"):
        sent.backward(first, 0)


def test_a_turn_with_a_batch_half_done_does_not_count(sent):
    """Oracle: the hand-off is refused, also after a whole batch."""
    outputs = [sent.train(0), sent.train(1, labels=None)]
    if sent.home:
        for part, output in enumerate(outputs):
            sent.backward(output, part)
    sent.train(0, batch=1)
    handoff = SealedHandoff(sent.rig.turn.number, b"", bytes(12), torch.zeros(64, dtype=torch.uint8))
    with pytest.raises(WireError, match="client0: a turn with a batch half done cannot be committed"):
        sent.rig._exchange.commit(handoff)


def test_parts_are_of_explicit_training_steps_alone(sent):
    """Oracle: the other endpoints that take smashed data refuse them, and a graph's step ends no explicit one."""
    exchange, turn = sent.rig._exchange, sent.rig.turn.number
    smashed = torch.rand(2, *sent.rig.server.smashed.shape)
    labels = None if sent.home else torch.zeros(4, dtype=torch.int64)
    with pytest.raises(WireError, match="forward: a graph crosses whole, not in parts"):
        unwrap(exchange._api.forward(Upload(turn, 0, "train", smashed, labels, 0, 2)))
    sent.train(0)
    member = exchange._api._member
    with pytest.raises(WireError, match="step: its batch is not whole, or came in explicit halves"):
        sent.rig._coordinator.stepped(member, StepDone(turn, 0, 0.5), {})


# Order ----------------------------------------------------------------------------------------------


def _in_threads(api, messages, seconds):
    """Lets RPC's threads take up ``messages``, in this order; returns the order in which they may be computed."""
    order, threads = [], []

    def take_up(message):
        api.await_order(message)
        order.append(message.part)
        api.train(message)

    for message in messages:
        threads.append(threading.Thread(target=take_up, args=(message,)))
        threads[-1].start()
        threads[-1].join(seconds)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return order


def _uploads(sent, parts):
    smashed = torch.rand(2, *sent.rig.server.smashed.shape)
    labels = None if sent.home else torch.zeros(4, dtype=torch.int64)
    turn = sent.rig.turn.number
    return [Upload(turn, 0, "train", smashed, None if part else labels, part, 2) for part in parts]


def test_a_part_that_is_taken_up_before_the_one_before_it_waits(sent):
    """Oracle: the order in which the client sent them."""
    api = sent.rig._exchange._api
    assert _in_threads(api, _uploads(sent, [1, 0]), 0.1) == [0, 1]
    assert api._member.num_early == 0


def test_a_part_whose_predecessor_never_comes_waits_only_so_long(sent, monkeypatch):
    """Oracle: it goes on to be refused; one that is too far ahead does not wait at all."""
    monkeypatch.setattr(coordinators, "GAP_SECONDS", 0.05)
    member = sent.rig._exchange._api._member
    with pytest.raises(WireError, match="expected part 0 of 2, got part 1 of 2"):
        sent.rig._coordinator.await_order(member, _uploads(sent, [1])[0])
        sent.train(1, labels=None)
    monkeypatch.setattr(coordinators, "GAP_SECONDS", 1e6)
    sent.rig._coordinator.await_order(member, dataclasses.replace(_uploads(sent, [0])[0], batch=7))
    member.num_early = 1  # a second one that is early, of two that may be under way
    sent.rig._coordinator.await_order(member, _uploads(sent, [1])[0])
