"""A frame goes through chunks of one size and comes out whole; what says too much or says wrong is refused.

Oracle: the bytes that went in, and lengths on both sides of a chunk's.
"""

import asyncio
import struct

import grpc.aio
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suture.runtime.errors import WireError
from suture.runtime.grpc import chunks
from suture.runtime.grpc.chunks import CHUNK_BYTES, MESSAGE_LIMIT, SMALL, Limits
from suture.runtime.server.api import ENDPOINTS

EDGES = (0, 1, 7, 8, 9, CHUNK_BYTES - 9, CHUNK_BYTES - 8, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1)


def gathered(sent, most=2**30):
    """What `gather` makes of the chunks in ``sent``."""
    waiting = iter(sent)

    async def read():
        return next(waiting, grpc.aio.EOF)

    return asyncio.run(chunks.gather(read, most))


def said(total: int, content: bytes = b"") -> bytes:
    return struct.pack("<Q", total) + content


def drawn(size: int) -> bytes:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size)).numpy().tobytes()  # fmt: skip


@pytest.mark.parametrize(
    "sizes",
    [
        *([edge] for edge in EDGES),
        *([edge, edge] for edge in EDGES),
        [2 * CHUNK_BYTES],
        [3 * CHUNK_BYTES + 5],
        [5, CHUNK_BYTES - 5, 3],
        [5, CHUNK_BYTES - 5, CHUNK_BYTES, 0, 3],
        [5, CHUNK_BYTES - 6, 1, 1],
        [1] * 100,
        [],
    ],
    ids=lambda sizes: "+".join(map(str, sizes[:5])),
)
def test_a_frame_comes_out_whole(sizes):
    """Oracle: the bytes; every chunk but the last is full, and none is longer than gRPC is told to take."""
    content = drawn(sum(sizes))
    pieces, begin = [], 0
    for size in sizes:
        pieces.append(memoryview(content)[begin : begin + size])
        begin += size
    sent = list(chunks.chunks(pieces))
    assert b"".join(sent) == said(len(content), content)
    assert all(0 < len(chunk) <= CHUNK_BYTES + 8 <= MESSAGE_LIMIT for chunk in sent)
    assert all(len(chunk) >= CHUNK_BYTES for chunk in sent[:-1])
    frame = gathered(sent, most=len(content))
    assert frame.dtype is torch.uint8 and frame.shape == (len(content),)
    assert frame.numpy().tobytes() == content


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(8, 208), max_size=8))
def test_wherever_the_chunks_are_cut_the_frame_is_the_same(content, cuts):
    """Property: the other side's chunks may have any size. Oracle: the bytes."""
    stream, places = said(len(content), content), sorted(cuts)
    sent = [stream[a:b] for a, b in zip([0, *places], [*places, None], strict=True)]
    assert gathered(sent).numpy().tobytes() == content


def test_nothing_at_all_is_no_frame():
    """Oracle: None where the stream ends before it begins, and an empty frame where that is what was said."""
    assert gathered([]) is None
    assert gathered([said(0)]).shape == (0,)


@pytest.mark.parametrize("first", [b"", b"\0", said(5)[:7]])
def test_a_first_chunk_without_a_length_is_refused(first):
    """Oracle: the message."""
    with pytest.raises(WireError, match=f"a first chunk of {len(first)} bytes, which holds no length"):
        gathered([first, said(5, b"hello")])


@pytest.mark.parametrize("total", [101, 2**40, 2**63, 2**64 - 1])
def test_a_frame_that_says_too_much_is_refused_before_memory_is_taken(total, monkeypatch):
    """Oracle: torch is not asked for any; one byte less is taken."""
    assert gathered([said(100, bytes(100))], most=100).shape == (100,)
    monkeypatch.setattr(chunks.torch, "empty", lambda *_, **__: pytest.fail("memory was taken"))
    with pytest.raises(WireError, match=f"a message of {total} bytes; at most 100 are taken here"):
        gathered([said(total, bytes(50))], most=100)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ([said(5)], "a message of 0 bytes that says 5"),
        ([said(5, b"hell")], "a message of 4 bytes that says 5"),
        ([said(5, b"he"), b"", b"ll"], "a message of 4 bytes that says 5"),
        ([said(5, b"hello!")], "a message that is longer than the 5 bytes that it says"),
        ([said(5, b"hello"), b"!"], "a message that is longer than the 5 bytes that it says"),
        ([said(0, b"!")], "a message that is longer than the 0 bytes that it says"),
        ([said(5), b"x" * 10_000], "a message that is longer than the 5 bytes that it says"),
    ],
)
def test_a_frame_of_another_length_than_it_says_is_refused(sent, words):
    """Oracle: the message."""
    with pytest.raises(WireError, match=words):
        gathered(sent)


def test_each_endpoint_has_its_own_bounds():
    """Oracle: the protocol: which way batches, hand-offs and the trained top go; every other message is small."""
    limits = Limits(batch=11, handoff=22, release=33)
    up = {"train": 11, "backward": 11, "predict": 11, "commit": 22, "begin_epoch": 22}
    down = {"train": 11, "backward": 11, "predict": 11, "fetch": 22, "share": 22, "exhibit": 22, "finish": 33}
    for endpoint in [*ENDPOINTS, "nothing", ""]:
        assert limits.up(endpoint) == up.get(endpoint, SMALL)
        assert limits.down(endpoint) == down.get(endpoint, SMALL)
