"""Messages as plain bytes, for a carrier that knows no tensors: the codec's text, a table of tensors, then their
values.

    4 bytes    length of the text
    4 bytes    length of the table
    text       what ``codec.encode`` wrote
    table      JSON: of each tensor its type and its sizes, as ["float32", [32, 64, 16, 16]]
    values     of each tensor, one after the other, each from a multiple of 16 bytes on

All numbers are little-endian. A reader believes none of it: the sizes in the table must make up what is there, to the
byte.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from suture.runtime.errors import WireError
from suture.runtime.wire import codec

_HEAD = struct.Struct("<II")
_ALIGNED = 16
_MAX_TABLE = 2**20
_MAX_DIMS = 8
_MAX_SIZE = 2**40
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


def pack(value: Any) -> list[memoryview]:
    """``value`` as the pieces of a frame; a tensor's piece is its own memory, not a copy.

    Raises:
        WireError: it holds something that is no message.
    """
    text, tensors = codec.encode(value)
    tensors = [tensor.detach().cpu().contiguous() for tensor in tensors]
    shapes = [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors]
    table = json.dumps(shapes, separators=(",", ":")).encode()
    head = _HEAD.pack(len(text), len(table)) + text + table
    pieces = [memoryview(head)]
    length = len(head)
    for tensor in tensors:
        pieces.append(memoryview(bytes(-length % _ALIGNED)))
        pieces.append(tensor.reshape(-1).view(torch.uint8).numpy().data)
        length += len(pieces[-2]) + tensor.nbytes
    return pieces


def unpack(frame: Tensor) -> Any:
    """The value that `pack` wrote; its tensors lie in the memory of ``frame``.

    Args:
        frame: uint8, one dimension.

    Raises:
        WireError: the bytes are anything else.
    """
    data = frame.numpy().data
    if len(data) < _HEAD.size:
        raise WireError(f"a frame of {len(data)} bytes, shorter than its head")
    text_length, table_length = _HEAD.unpack(data[: _HEAD.size])
    begin = _HEAD.size + text_length
    end = begin + table_length
    if text_length > codec.MAX_BYTES or table_length > _MAX_TABLE or end > len(data):
        raise WireError(
            f"a frame of {len(data)} bytes that says {text_length} and {table_length} of its parts"
        )
    try:
        table = json.loads(bytes(data[begin:end]).decode())
    except (ValueError, RecursionError):
        raise WireError("a frame whose table of tensors cannot be read") from None
    return codec.decode(bytes(data[_HEAD.size : begin]), list(_tensors(data, table, end)))


def _tensors(frame: memoryview, table: Any, begin: int) -> Iterator[Tensor]:
    if type(table) is not list or len(table) > codec.MAX_TENSORS:
        raise WireError(f"a frame whose table is no list of at most {codec.MAX_TENSORS} tensors")
    for entry in table:
        dtype, shape = _entry(entry)
        begin += -begin % _ALIGNED
        count = math.prod(shape)
        length = count * dtype.itemsize
        if begin + length > len(frame):
            raise WireError(f"a tensor of {length} bytes from {begin} on in a frame of {len(frame)}")
        # A storage of its own, which is not the whole frame's where the tensor is kept or saved.
        own = (
            torch.frombuffer(frame, dtype=dtype, count=count, offset=begin)
            if count
            else torch.empty(0, dtype=dtype)
        )
        yield own.reshape(shape)
        begin += length
    if begin != len(frame):
        raise WireError(f"a frame of {len(frame)} bytes whose contents end at {begin}")


def _entry(entry: Any) -> tuple[torch.dtype, list[int]]:
    if type(entry) is not list or len(entry) != 2 or type(entry[0]) is not str or type(entry[1]) is not list:
        raise WireError("a tensor without a type and sizes")
    dtype, shape = _DTYPES.get(entry[0]), entry[1]
    if dtype is None or len(shape) > _MAX_DIMS:
        raise WireError(f"a tensor of type {entry[0]!r:.20} and {len(shape)} dimensions")
    if not all(type(size) is int and 0 <= size < _MAX_SIZE for size in shape):
        raise WireError("a tensor whose sizes are no numbers from 0")
    if math.prod(size or 1 for size in shape) >= _MAX_SIZE:  # torch multiplies them, an empty tensor's too
        raise WireError("a tensor whose sizes are beyond any memory")
    return dtype, shape
