"""Calls that RPC's threads take up in another order than that in which their client made them.

Oracle: the order in which the client made them; one whose predecessor never comes goes on to be refused.
"""

import threading

import pytest
import torch
from tiny import NUM_BATCHES, asked, build_coordinator, build_server

from suture.runtime.errors import WireError
from suture.runtime.server import api as server_api
from suture.runtime.server.api import ServerApi
from suture.runtime.wire.messages import Hello, Upload


@pytest.fixture
def api(tmp_path):
    """Of a client whose training turn has begun, and which may have two batches under way."""
    api = ServerApi(build_coordinator(tmp_path / "run", build_server(), 1, in_flight=2))
    asked(api, "hello", Hello("client0", {}, 2 * NUM_BATCHES, NUM_BATCHES))
    asked(api, "next_turn")
    return api


def upload(batch):
    return Upload(1, batch, "train", torch.rand(2, 2, 4, 4), torch.tensor([0, 1]))


def test_a_batch_that_is_taken_up_before_the_one_before_it_waits(api):
    """Oracle: the second batch's thread is first, and its batch is stepped second."""
    order, threads = [], []

    def take_up(message):
        api.await_order(message)
        order.append(message.batch)
        api.train(message)

    for batch in (1, 0):
        threads.append(threading.Thread(target=take_up, args=(upload(batch),)))
        threads[-1].start()
        threads[-1].join(0.1)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert order == [0, 1]


def test_a_batch_whose_predecessor_never_comes_waits_only_so_long(api, monkeypatch):
    """Oracle: the refusal."""
    monkeypatch.setattr(server_api, "GAP_SECONDS", 0.05)
    api.await_order(upload(1))
    with pytest.raises(WireError, match="client0: batch: expected 0, got 1; refused"):
        asked(api, "train", upload(1))


def test_a_batch_that_is_too_far_ahead_does_not_wait(api, monkeypatch):
    """Oracle: it returns at once, and so does a second early one where two may be under way."""
    monkeypatch.setattr(server_api, "GAP_SECONDS", 1e6)
    api.await_order(upload(7))
    waiting = threading.Thread(target=api.await_order, args=(upload(1),))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    api.await_order(upload(1))
    asked(api, "train", upload(0))
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_batch_that_waits_goes_on_when_its_turn_is_rolled_back(api, monkeypatch):
    """Oracle: the next call of the client's wakes it; it is refused by the turn's own checks."""
    monkeypatch.setattr(server_api, "GAP_SECONDS", 1e6)
    waiting = threading.Thread(target=api.await_order, args=(upload(1),))
    waiting.start()
    waiting.join(0.1)
    asked(api, "leave")
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_batch_that_comes_again_before_its_gradient_is_refused(tmp_path):
    """Oracle: the message; where labels stay at home the first one waits for the gradient of its output."""
    api = ServerApi(build_coordinator(tmp_path / "run", build_server(home=True), 1))
    asked(api, "hello", Hello("client0", {}, 2 * NUM_BATCHES, NUM_BATCHES))
    asked(api, "next_turn")
    first = Upload(1, 0, "train", torch.rand(2, 2, 4, 4))
    asked(api, "train", first)
    with pytest.raises(WireError, match="client0: batch: expected the gradient of 0, got it again; refused"):
        asked(api, "train", first)
