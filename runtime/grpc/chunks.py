"""A frame as a stream of chunks: no message of gRPC's is larger than one, and a frame is bounded before memory is
taken.

gRPC's limit on a message holds for a whole channel, and a hand-off of hundreds of megabytes would have to raise it
for a one-line call, too. In chunks one small limit does, and the bound is each endpoint's own. Sending and receiving
overlap.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio
import torch
from torch import Tensor

from suture.runtime.errors import WireError

CHUNK_BYTES = 2**20
_LENGTH = struct.Struct("<Q")
MESSAGE_LIMIT = CHUNK_BYTES + 1024
"""For gRPC's own limits: no message is longer."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most bytes that a frame may have, by what it carries; from the run's own shapes, with head-room.

    Attributes:
        batch: a batch of smashed data, of outputs or of their gradients.
        handoff: a sealed hand-off or share.
        release: the trained top, with the best round's parts.
    """

    batch: int
    handoff: int
    release: int

    def up(self, endpoint: str) -> int:
        """What a client may send."""
        return {
            "train": self.batch,
            "backward": self.batch,
            "predict": self.batch,
            "commit": self.handoff,
            "begin_epoch": self.handoff,
        }.get(endpoint, SMALL)

    def down(self, endpoint: str) -> int:
        """What a server may answer."""
        down = {"train": self.batch, "backward": self.batch, "predict": self.batch}
        return (
            down
            | {"fetch": self.handoff, "share": self.handoff, "exhibit": self.handoff, "finish": self.release}
        ).get(endpoint, SMALL)


SMALL = 2**20
"""Bytes of every other message: names, numbers, scores, what sites state to each other."""


def chunks(pieces: Sequence[memoryview]) -> Iterator[bytes]:
    """The pieces of a frame in chunks; the first one begins with the frame's length."""
    total = sum(len(piece) for piece in pieces)
    waiting: list[bytes | memoryview] = [_LENGTH.pack(total)]
    room = CHUNK_BYTES
    for piece in pieces:
        while len(piece) >= room:
            yield b"".join([*waiting, piece[:room]])
            waiting, piece, room = [], piece[room:], CHUNK_BYTES
        waiting.append(piece)
        room -= len(piece)
    if any(len(piece) for piece in waiting):
        yield b"".join(waiting)


async def gather(read: Callable[[], Awaitable[Any]], most: int) -> Tensor | None:
    """The frame that `chunks` sent: uint8, one dimension; None where nothing was sent at all.

    Args:
        read: the next chunk, or ``grpc.aio.EOF``.
        most: bytes that the frame may have.

    Raises:
        WireError: it says that it is longer, or it is shorter or longer than it says.
    """
    chunk = await read()
    if chunk is grpc.aio.EOF:
        return None
    if len(chunk) < _LENGTH.size:
        raise WireError(f"a first chunk of {len(chunk)} bytes, which holds no length")
    (total,) = _LENGTH.unpack(chunk[: _LENGTH.size])
    if total > most:
        raise WireError(f"a message of {total} bytes; at most {most} are taken here")
    frame = torch.empty(total, dtype=torch.uint8)
    memory, filled, chunk = frame.numpy().data, 0, memoryview(chunk)[_LENGTH.size :]
    while chunk is not grpc.aio.EOF:
        if filled + len(chunk) > total:
            raise WireError(f"a message that is longer than the {total} bytes that it says")
        memory[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
        chunk = await read()
    if filled != total:
        raise WireError(f"a message of {filled} bytes that says {total}")
    return frame
