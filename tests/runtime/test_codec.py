"""Messages survive the wire; anything else is refused, and nothing runs while it is read.

Oracle: the messages themselves; for the rest hypothesis, which must not find bytes that raise anything but a WireError.
"""

import json
import pickle
from dataclasses import fields

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.distributed.rpc import WorkerInfo

from runtime import codec
from runtime.codec import MAX_BYTES, MAX_TENSORS, MESSAGES, Call, Failure, decode, encode
from runtime.errors import WireError
from runtime.scheduler import Turn, TurnKind
from runtime.wire import (
    Answer,
    Challenge,
    Farewell,
    Hello,
    LossReply,
    OutputGradient,
    Packed,
    Refusal,
    Release,
    Report,
    SealedHandoff,
    Share,
    StepDone,
    StepReply,
    Upload,
    Welcome,
)

H = torch.arange(6.0).reshape(1, 2, 3)
HANDOFF = SealedHandoff(3, b"p" * 32, b"n" * 12, torch.arange(64, dtype=torch.uint8))
GOOD = [
    Refusal("WireError", "client0: no"),
    Hello("client0", {"lr": "0.1"}, 8, 2, torch.ones(3)),
    Hello("client0", {}, 8, 2),
    Challenge("run", b"n" * 32, b"p" * 32),
    Answer(b"n" * 32, b"p" * 32),
    Welcome("run", "/runs/1", 120.0, "ticket"),
    Upload(1, 0, "train", H, torch.tensor([1])),
    Packed(H.to(torch.int8), torch.ones(2)),
    Upload(1, 0, "train", Packed(H.to(torch.int8), torch.ones(2)), torch.tensor([1])),
    StepReply(torch.tensor(0.5), 0.25, Packed(H.to(torch.int8), torch.ones(2))),
    LossReply(torch.tensor(0.5), 0.25),
    StepReply(torch.tensor(0.5), 0.25, H),
    OutputGradient(1, 0, 0.25, H),
    StepDone(1, 0, 0.1 + 0.2),
    StepDone(1, 0, float("inf")),
    HANDOFF,
    Share("client0", HANDOFF),
    Report(2, {"test": {"loss": 1e-300, "auroc": 1}}),
    Farewell({"bottom": "a" * 64}, 2**40),
    Release({"fc.weight": H, "fc.bias": H[0]}, 2, None, None),
    Release({}, 2, {"fc.weight": H}, HANDOFF),
    Turn(TurnKind.TRAIN, "client0", 1, 2, 3, 4),
    Turn(TurnKind.TRAIN, "client0", 1, 2, 3, 4, together=True),
    Turn(TurnKind.AVERAGE, "client0", 1, 2, 3, 4),
    Turn(TurnKind.END, reason="naïve \U0001f600 \\u0000", error="WireError"),
]


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if type(one) in MESSAGES.values():
        return type(one) is type(other) and all(
            same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("message", GOOD, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_was(message):
    """Oracle: the message, field by field, types and all; floats to the last bit."""
    assert same(message, decode(*encode(message)))


def test_every_message_of_the_protocol_is_in_the_table_and_tested():
    """Oracle: the classes of the examples."""
    assert {type(message) for message in GOOD} == set(MESSAGES.values())


@pytest.mark.parametrize("value", [None, True, 0, -(2**63), 1.5, "text", b"\x00\xff", [1, "a"], {"a": [1]}])
def test_plain_values_come_back(value):
    """Oracle: the value and its type."""
    assert same(value, decode(*encode(value)))


def test_a_call_a_failure_and_a_worker_come_back():
    """Oracle: their fields."""
    assert decode(*encode(Call("a.b", ("t", GOOD[-1])))) == Call("a.b", ("t", GOOD[-1]))
    assert decode(*encode(Failure("it failed"))) == Failure("it failed")
    worker = decode(*encode(WorkerInfo("client0", 3)))
    assert (worker.name, worker.id) == ("client0", 3)


@pytest.mark.parametrize(
    "value", [object(), open, Failure, {1, 2}, torch.nn.Linear(1, 1), WireError("x"), 1j]
)
def test_what_is_no_message_is_not_sent(value):
    """Oracle: the words."""
    with pytest.raises(WireError, match="is no message of the protocol; it was not sent"):
        encode(value)
    with pytest.raises(WireError):
        encode([{"a": value}])


WRONG = {
    "Refusal": [["WireError"], ["WireError", 1], [None, "x"], []],
    "Hello": [["c", {"dict": {"a": 1}}, 8, 2, None], ["c", {}, 8, 2, None], ["c", {"dict": {}}, True, 2, None]],
    "Upload": [[1, 0, "train", {"tensor": 0}], [1.0, 0, "train", {"tensor": 0}, None], [1, 0, "train", [[0.0]], None]],
    "SealedHandoff": [[1, {"bytes": "0"}, {"bytes": ""}, {"tensor": 0}], [1, "", "", {"tensor": 0}]],
    "Report": [[1, {"dict": {"test": {"dict": {"loss": "x"}}}}], [1, {"dict": {"test": {"loss": 1}}}]],
    "Release": [[{"dict": {"a": 1}}, 1, None, None], [{"dict": {}}, 1, None, {"Turn": []}]],
    "Turn": [["nap", "", 0, 0, 0, 0, "", ""], ["train", "", 0, 0, 0, 0, "", None], [["train"], "", 0, 0, 0, 0, "", ""]],
    "StepDone": [[1, 0, True], [1, 0, "0.5"], [1, 0, None]],
    "WorkerInfo": [["a"], ["a", "1"], ["a", -1], ["a", 2**15], [1, 1]],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "content"), [(kind, one) for kind, many in WRONG.items() for one in many])
def test_a_message_with_a_field_of_another_type_is_refused(kind, content):
    """Oracle: the declared types, nested ones too."""
    with pytest.raises(WireError):
        decode(json.dumps({kind: content}).encode(), [H])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04.",
        pickle.dumps(print),
        b"{",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 50 + b"]" * 50,
        b'{"Upload":[],"Hello":[]}',
        b'{"Nothing":[]}',
        b'{"call":[]}',
        b'{"call":[1]}',
        b'{"call":"a"}',
        b'[{"call":["a"]}]',
        b'[{"failure":"a"}]',
        b'{"tensor":-1}',
        b'{"tensor":1}',
        b'{"tensor":true}',
        b'{"tensor":0.0}',
        b'{"bytes":"zz"}',
        b"\xff\xfe",
        b"1" * 5000,
        b" " * (MAX_BYTES + 1),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_bytes_that_are_no_message_are_refused(data):
    """Oracle: pickles, broken and endless JSON, wrong references and too long ones, by hand."""
    with pytest.raises(WireError):
        decode(data, [H])


def test_more_tensors_than_any_message_has_are_refused():
    """Oracle: the bound."""
    with pytest.raises(WireError, match=f"at most {MAX_BYTES} and {MAX_TENSORS}"):
        decode(b"0", [H] * (MAX_TENSORS + 1))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5)
    | st.dictionaries(st.sampled_from([*MESSAGES, "tensor", "bytes", "dict", "call", "failure", "x"]), inner, max_size=2),
    max_leaves=20,
)  # fmt: skip


def _only_known(value) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_only_known, value))
    if isinstance(value, dict):
        return all(type(key) is str and _only_known(item) for key, item in value.items())
    if isinstance(value, Call):
        return type(value.function) is str and _only_known(value.arguments)
    plain = (str, bytes, int, float, bool, type(None), TurnKind, Failure, WorkerInfo, torch.Tensor)
    if type(value) in MESSAGES.values():
        assert all(codec.fits(getattr(value, name), t) for name, t in codec._field_types(type(value)).items())
        return True
    return type(value) in plain


@settings(max_examples=400, deadline=None)
@given(JSON)
@example({"Turn": ["train", "", 0, 0, 0, 0, "", ""]})
def test_any_json_becomes_known_things_or_is_refused(form):
    """Fuzz. Oracle: what comes out is of the few types that may, message fields of their declared types."""
    try:
        value = decode(json.dumps(form).encode(), [H])
    except WireError:
        return
    assert _only_known(value)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200) | st.sampled_from([encode(m)[0] for m in GOOD]), st.data())
def test_any_bytes_become_known_things_or_are_refused(data, draw):
    """Fuzz: random bytes, and good messages with a few bytes changed. Oracle: as above."""
    spoilt = bytearray(data)
    for _ in range(draw.draw(st.integers(0, 4))):
        if spoilt:
            spoilt[draw.draw(st.integers(0, len(spoilt) - 1))] = draw.draw(st.integers(0, 255))
    try:
        value = decode(bytes(spoilt), [H, H])
    except WireError:
        return
    assert _only_known(value)
