"""A frame is the message that went in, to the bit; any other bytes are refused, and cost no more memory than they are.

Oracle: the messages themselves; for what is no frame the lengths and tables, written by hand; for the rest hypothesis,
which must not find bytes that raise anything but a WireError.
"""

import io
import json
import struct
from dataclasses import fields

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wire_messages import GOOD, as_frame, read

from suture.runtime.errors import WireError
from suture.runtime.wire import codec, frames
from suture.runtime.wire.codec import MESSAGES
from suture.runtime.wire.messages import Upload

DTYPES = list(frames._DTYPES.values())


def framed(value) -> torch.Tensor:
    """The frame as it arrives: one piece of memory."""
    return as_frame(b"".join(frames.pack(value)))


def by_hand(table, values=b"", text=b'{"tensor":0}', lengths=None) -> torch.Tensor:
    """A frame whose table and values are written here; the values begin at a multiple of 16, as they must."""
    table = table if isinstance(table, bytes) else json.dumps(table).encode()
    head = struct.pack("<II", *(lengths or (len(text), len(table)))) + text + table
    return as_frame(head + bytes(-len(head) % 16) + values)


def bits(tensor: torch.Tensor) -> tuple:
    return (
        tensor.dtype,
        tuple(tensor.shape),
        tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
    )


def same(one, other) -> bool:
    """Equal in every bit and type; not a number is equal to itself."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and bits(one) == bits(other)
    if type(one) in MESSAGES.values():
        return type(one) is type(other) and all(
            same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return type(other) is list and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


# There and back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", GOOD, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_was(message):
    """Oracle: the message, field by field and bit by bit."""
    assert same(message, frames.unpack(framed(message)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (0,), (3, 0, 2), (1,) * 8])
def test_a_tensor_of_any_type_and_shape_comes_back(dtype, shape):
    """Oracle: its bits, of which every pattern may occur; scalars and empty tensors have their shapes."""
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=generator)
    tensor = tensor.flatten().view(dtype) if dtype is not torch.bool else tensor.flatten() > 127
    tensor = tensor.reshape(shape)
    assert same(tensor, frames.unpack(framed(tensor)))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(12.0).reshape(3, 4)[:, 1::2],
        torch.arange(3.0).expand(2, 3),
        torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last),
        torch.arange(3.0).requires_grad_(),
        torch.arange(12.0)[5:7],
        -torch.zeros(2),
        torch.tensor([float("nan"), float("-inf")]),
    ],
)
def test_a_view_comes_back_whole_and_by_itself(tensor):
    """Oracle: the values in their order, without the graph and without the rest of the view's memory."""
    back = frames.unpack(framed([tensor]))[0]
    assert same(tensor.detach(), back) and not back.requires_grad
    assert back.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize


def test_a_tensors_piece_is_its_own_memory_and_no_copy():
    """Oracle: the address: a batch of 25 MB is not copied before it is sent."""
    tensor = torch.arange(6.0)
    pieces = frames.pack([tensor, 1])
    tensor[0] = 7
    assert bytes(pieces[-1]) == tensor.numpy().tobytes()


def test_every_tensor_begins_at_a_multiple_of_sixteen_and_lies_in_the_frame():
    """Oracle: the addresses: nothing is copied when it is read, and nothing lies beyond the frame."""
    frame = framed([torch.ones(3, dtype=torch.uint8), torch.ones(2), torch.ones(1, dtype=torch.float64)])
    begin, end = frame.data_ptr(), frame.data_ptr() + len(frame)
    for tensor in frames.unpack(frame):
        assert (tensor.data_ptr() - begin) % 16 == 0
        assert begin <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= end


def test_a_tensor_that_is_kept_or_saved_is_no_larger_than_it_is():
    """Oracle: the bytes that torch.save writes of a single number out of a frame of a megabyte."""
    value = frames.unpack(framed([torch.zeros(2**18), torch.tensor(1.0)]))
    assert value[1].untyped_storage().nbytes() == 4
    saved = io.BytesIO()
    torch.save(value[1], saved)
    assert len(saved.getvalue()) < 10_000


def test_a_tensor_outlives_the_name_of_its_frame():
    """Oracle: its values after the frame is let go and as much memory was taken again."""
    frame = framed([torch.arange(1000.0)])
    (tensor,) = frames.unpack(frame)
    del frame
    torch.zeros(2000).fill_(1)
    assert torch.equal(tensor, torch.arange(1000.0))


def test_what_is_no_message_is_not_packed():
    """Oracle: the codec's words."""
    with pytest.raises(WireError, match="a object is no message of the protocol; it was not sent"):
        frames.pack([object()])


# What lies -----------------------------------------------------------------------------------------

ONE = [["float32", [2]]]


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (as_frame(b""), "a frame of 0 bytes, shorter than its head"),
        (as_frame(bytes(7)), "a frame of 7 bytes, shorter than its head"),
        (as_frame(bytes(8)), "table of tensors cannot be read"),
        (by_hand(ONE, bytes(4)), "a tensor of 8 bytes from 48 on in a frame of 52"),
        (by_hand(ONE), "a tensor of 8 bytes from 48 on in a frame of 48"),
        (by_hand(ONE, bytes(9)), "a frame of 57 bytes whose contents end at 56"),
        (by_hand([["float32", [2]]] * 2, bytes(8)), "a tensor of 8 bytes from 80 on in a frame of 72"),
        (by_hand([], text=b"1"), "a frame of 16 bytes whose contents end at 11"),
        (by_hand(ONE, bytes(8), lengths=(2**32 - 1, 2**32 - 1)), "that says 4294967295 and 4294967295"),
        (by_hand(ONE, bytes(8), lengths=(12, 2**21)), "that says 12 and 2097152"),
        (by_hand(ONE, bytes(8), lengths=(2**20 + 1, 2)), "that says 1048577 and 2"),
        (by_hand(ONE, bytes(8), lengths=(12, 100)), "that says 12 and 100 of its parts"),
        (by_hand(ONE, bytes(8), lengths=(12, 5)), "table of tensors cannot be read"),
        (by_hand(ONE, bytes(8), lengths=(13, 16)), "a tensor without a type and sizes"),
        (by_hand([["float32", [-2]]], bytes(8)), "sizes are no numbers from 0"),
        (by_hand([["float32", [-2, -1]]], bytes(8)), "sizes are no numbers from 0"),
        (by_hand([["float32", [2.0]]], bytes(8)), "sizes are no numbers from 0"),
        (by_hand([["float32", [True, 2]]], bytes(8)), "sizes are no numbers from 0"),
        (by_hand([["float32", ["2"]]], bytes(8)), "sizes are no numbers from 0"),
        (by_hand([["float32", [None]]], bytes(8)), "sizes are no numbers from 0"),
        (by_hand([["float32", [2**40]]], bytes(8)), "sizes are no numbers from 0"),
        (by_hand(b'[["float32",[1e3]]]', bytes(8)), "sizes are no numbers from 0"),
        (by_hand([["float32", [2**39]]], bytes(8)), "a tensor of 2199023255552 bytes"),
        (by_hand([["float32", [2**20, 2**20]]], bytes(8)), "sizes are beyond any memory"),
        (by_hand([["float32", [2**39, 2**39, 0, 2**39]]]), "sizes are beyond any memory"),
        (by_hand([["float32", [0, 2**39, 2**39, 2**39]]]), "sizes are beyond any memory"),
        (by_hand([["float32", [1] * 9]], bytes(4)), "a tensor of type 'float32' and 9 dimensions"),
        (by_hand([["complex64", [1]]], bytes(8)), "a tensor of type 'complex64' and 1 dimensions"),
        (by_hand([["torch.float32", [2]]], bytes(8)), "a tensor of type 'torch.float32'"),
        (by_hand([["quint8", [8]]], bytes(8)), "a tensor of type 'quint8'"),
        (by_hand([["x" * 1000, [2]]], bytes(8)), "a tensor of type 'xxxxxxxxxxxxxxxxxxx and"),
        (by_hand([["float32"]], bytes(8)), "a tensor without a type and sizes"),
        (by_hand([["float32", [2], 1]], bytes(8)), "a tensor without a type and sizes"),
        (by_hand([["float32", 2]], bytes(8)), "a tensor without a type and sizes"),
        (by_hand([[["float32"], [2]]], bytes(8)), "a tensor without a type and sizes"),
        (by_hand([{"float32": [2]}], bytes(8)), "a tensor without a type and sizes"),
        (by_hand([None], bytes(8)), "a tensor without a type and sizes"),
        (by_hand({"float32": [2]}, bytes(8)), "table is no list of at most"),
        (by_hand([["uint8", [0]]] * 10_001), "table is no list of at most"),
        (by_hand(b"[" * 100_000), "table of tensors cannot be read"),
        (by_hand(b"\xff"), "table of tensors cannot be read"),
        (by_hand(b"9" * 5000), "table of tensors cannot be read"),
        (as_frame(struct.pack("<II", 1, 2) + b"{[]"), "not a message of the protocol"),
        (by_hand(ONE, bytes(8), text=b'{"tensor":1}'), "a 'tensor' that cannot be read"),
    ],
)  # fmt: skip
def test_a_frame_that_lies_about_itself_is_refused(frame, words):
    """Oracle: the message; its numbers are those of the frame above."""
    with pytest.raises(WireError, match=words):
        frames.unpack(frame)


def test_tensors_cannot_overlap_and_one_may_be_named_twice():
    """Oracle: the table has no places, so each tensor begins where the one before it ends; a text may name one twice,
    which is the same memory and no more of it."""
    one, other = frames.unpack(
        by_hand([*ONE, *ONE], b"\1" * 16 + b"\2" * 8, text=b'[{"tensor":0},{"tensor":1}]')
    )
    assert one.data_ptr() + 16 == other.data_ptr()
    twice = frames.unpack(by_hand(ONE, bytes(8), text=b'[{"tensor":0},{"tensor":0}]'))
    assert twice[0] is twice[1]


# Whatever comes --------------------------------------------------------------------------------------


@st.composite
def tensors(draw) -> torch.Tensor:
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 3), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    values = torch.randint(-100, 100, shape, generator=generator)
    return (
        (values > 0 if dtype is torch.bool else values.to(dtype)).transpose(0, -1)
        if shape
        else values.to(dtype)
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | tensors() | st.sampled_from(GOOD),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_any_value_comes_back(value):
    """Property. Oracle: the value, bit by bit."""
    assert same(value, frames.unpack(framed(value)))


FRAMES = [b"".join(frames.pack(message)) for message in GOOD]


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300))
@example(b"\x01\0\0\0\x02\0\0\x001[]")
def test_any_bytes_are_read_or_refused(data):
    """Fuzz. Oracle: nothing is raised but a WireError; memory of tensors lies in the frame."""
    read(data)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(FRAMES), st.data())
def test_a_spoilt_frame_is_read_or_refused(data, draw):
    """Fuzz: bytes changed, cut off, put in and taken out of good frames. Oracle: as above."""
    spoilt = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, max(0, len(spoilt) - 1)))
        how = draw.draw(st.sampled_from(["change", "cut", "put", "take", "end"]))
        if how == "change" and spoilt:
            spoilt[at] = draw.draw(st.integers(0, 255))
        elif how == "cut":
            del spoilt[at:]
        elif how == "put":
            spoilt[at:at] = draw.draw(st.binary(max_size=8))
        elif how == "take":
            del spoilt[at : at + 4]
        else:
            spoilt += draw.draw(st.binary(max_size=20))
    read(bytes(spoilt))


TABLES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([*frames._DTYPES, "x"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
) | st.lists(
    st.tuples(st.sampled_from([*frames._DTYPES]), st.lists(st.sampled_from([0, 1, 2, 2**31, 2**39]), max_size=9)).map(list),
    max_size=3,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(TABLES, st.binary(max_size=64))
def test_any_table_is_read_or_refused(table, values):
    """Fuzz: the sizes that a table may claim. Oracle: as above."""
    read(by_hand(table, values, text=b'[{"tensor":0},{"tensor":1}]').numpy().tobytes())
    read(by_hand(table, values, text=b"1").numpy().tobytes())


def test_the_text_of_a_frame_is_the_codecs():
    """Oracle: the codec's own bytes behind the two lengths."""
    message = Upload(1, 0, "train", torch.ones(1, 2))
    text, _ = codec.encode(message)
    assert framed(message).numpy().tobytes()[8 : 8 + len(text)] == text
