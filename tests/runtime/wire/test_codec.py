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
from wire_messages import GOOD, H, only_known

from suture.runtime.errors import WireError
from suture.runtime.wire.codec import MAX_BYTES, MAX_TENSORS, MESSAGES, Kinds, decode, encode


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if type(one) in MESSAGES.values():
        return type(one) is type(other) and all(
            same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)
        )
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
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


class Place(tuple):
    """A kind of value that one carrier knows; a tuple, which would else go as a list."""


def _place(content):
    if type(content) is not list or not all(type(number) is int for number in content):
        raise WireError("a place of numbers")
    return Place(content)


PLACES = Kinds(write={Place: ("place", list)}, read={"place": _place})


def test_a_carriers_own_kind_comes_back_and_is_unknown_to_others():
    """Oracle: the value, inside messages' neighbours too; the words of those who do not know it."""
    value = [{"a": Place((1, 2))}, GOOD[-1]]
    data, tensors = encode(value, PLACES)
    assert decode(data, tensors, PLACES) == value and type(decode(data, tensors, PLACES)[0]["a"]) is Place
    with pytest.raises(WireError, match="a 'place' that cannot be read"):
        decode(data, tensors)
    assert decode(*encode(Place((1, 2)))) == [1, 2]
    with pytest.raises(WireError, match="a place of numbers"):
        decode(b'{"place":["1"]}', [], PLACES)


def test_a_carriers_own_kind_fits_no_field_of_a_message():
    """Oracle: the field's declared type; a carrier adds nothing to the protocol."""
    with pytest.raises(WireError, match="StepDone.turn: got Place"):
        decode(b'{"StepDone":[{"place":[1]},0,0.5]}', [], PLACES)


@pytest.mark.parametrize("value", [object(), open, Place, {1, 2}, torch.nn.Linear(1, 1), WireError("x"), 1j])
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
    "Turn": [
        ["nap", "", 0, 0, 0, 0, "", "", False, 0, ""],
        ["train", "", 0, 0, 0, 0, "", None, False, 0, ""],
        ["train", "", 0, 0, 0, 0, "", "", False, 0, None],
        [["train"], "", 0, 0, 0, 0, "", "", False, 0, ""],
    ],
    "StepDone": [[1, 0, True], [1, 0, "0.5"], [1, 0, None]],
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
        b'{"call":["a",[]]}',
        b'[{"failure":"a"}]',
        b'{"RRef":[0,1,0,1,2,1,"PyObject"]}',
        b'{"WorkerInfo":["a",1]}',
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


@settings(max_examples=400, deadline=None)
@given(JSON)
@example({"Turn": ["train", "", 0, 0, 0, 0, "", ""]})
def test_any_json_becomes_known_things_or_is_refused(form):
    """Fuzz. Oracle: what comes out is of the few types that may, message fields of their declared types."""
    try:
        value = decode(json.dumps(form).encode(), [H])
    except WireError:
        return
    assert only_known(value)


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
    assert only_known(value)
