"""What a client calls at the server over RPC: each function finds the client's object by its reference.

Oracle: the calls that the object notes; a stand-in for the reference, which torch makes in real processes only.
"""

from typing import Any

import pytest
import torch
from torch.futures import Future

from suture.runtime.rpc import functions
from suture.runtime.server.api import ServerApi
from suture.runtime.wire.messages import Hello, OutputGradient, Refusal, StepDone, Upload

H = torch.zeros(1, 2, 3)
UPLOAD, GRADIENT, DONE = Upload(1, 0, "train", H), OutputGradient(1, 0, 0.5, H), StepDone(1, 0, 0.5)


class Noted(ServerApi):
    """Notes in which order it was asked for what."""

    def __init__(self) -> None:
        super().__init__(None)
        self.calls: list[tuple[str, Any]] = []

    def await_order(self, message: Upload | OutputGradient) -> None:
        self.calls.append(("await_order", message))

    def train(self, upload: Upload | OutputGradient) -> Future[Any]:
        return self._noted("train", upload)

    def leave(self) -> Future[Any]:
        return self._noted("leave", None)

    def forward(self, upload: Upload) -> str:
        self.calls.append(("forward", upload))
        return "the loss"

    def step(self, done: StepDone, gradients: Any) -> None:
        self.calls.append(("step", (done, gradients)))

    def _noted(self, name: str, message: Any) -> Future[Any]:
        self.calls.append((name, message))
        answer: Future[Any] = Future()
        answer.set_result(name)
        return answer


class Reference:
    """In the place of torch's, at the owner."""

    def __init__(self, api: ServerApi) -> None:
        self._api = api

    def local_value(self) -> ServerApi:
        return self._api


@pytest.fixture
def api(monkeypatch) -> Noted:
    made = Noted()
    monkeypatch.setattr(
        functions.server_api, "ask", lambda api, name, messages: getattr(api, name)(*messages)
    )
    return made


@pytest.mark.parametrize("message", [UPLOAD, GRADIENT])
def test_batches_wait_for_those_before_them_and_other_messages_do_not(message, api):
    """Oracle: the order of the calls: RPC's threads may take up two of them in another order than they came."""
    assert functions._ask(Reference(api), "train", [message]).value() == "train"
    assert functions._ask(Reference(api), "leave", []).value() == "leave"
    assert api.calls == [("await_order", message), ("train", message), ("leave", None)]


def test_what_does_not_fit_is_refused_by_the_object_itself():
    """Oracle: the refusals, with the object's real way of asking."""
    answer = functions._ask(Reference(ServerApi(None)), "step", [DONE]).value()
    assert answer == Refusal("WireError", "'step' is no endpoint; refused")
    answer = functions._ask(Reference(ServerApi(None)), "leave", [Hello("client0", {}, 1, 1)]).value()
    assert answer == Refusal("WireError", "leave: it takes other messages; refused")


def test_the_graphs_calls_reach_the_object(api, monkeypatch):
    """Oracle: the messages, and the gradients of the caller's context."""
    gradients = {H: H}
    monkeypatch.setattr(functions.dist_autograd, "get_gradients", {7: gradients}.__getitem__)
    assert functions.forward(Reference(api), UPLOAD) == "the loss"
    assert functions.step(Reference(api), DONE, 7) is None
    assert api.calls == [("forward", UPLOAD), ("step", (DONE, gradients))]


def test_a_context_that_is_none_is_refused(api):
    """Oracle: torch's own error, where no forward came through: a refusal, and no step."""
    answer = functions.step(Reference(api), DONE, 12345)
    assert answer == Refusal("WireError", "step: no forward came through context 12345; refused")
    assert api.calls == []


def test_the_answer_comes_later_and_holds_no_thread():
    """Oracle: torch's mark for functions whose future comes back at once; the name by which peers call it."""
    assert functions.ask._wrapped_async_rpc_function is functions._ask
    assert (functions.ask.__module__, functions.ask.__qualname__) == ("suture.runtime.rpc.functions", "ask")
