"""One good message of every kind and more, and what may come out of bytes that are read."""

from dataclasses import fields, replace

import torch

from suture.runtime.errors import WireError
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.wire import codec, frames
from suture.runtime.wire.codec import MESSAGES
from suture.runtime.wire.messages import (
    Board,
    Farewell,
    Heads,
    Hello,
    LossReply,
    OutputGradient,
    Packed,
    Refusal,
    Release,
    Report,
    SealedHandoff,
    Share,
    Statement,
    StepDone,
    StepReply,
    Terms,
    Upload,
    Welcome,
)

H = torch.arange(6.0).reshape(1, 2, 3)
HANDOFF = SealedHandoff(3, b"p" * 32, b"n" * 12, torch.arange(64, dtype=torch.uint8))
STATEMENT = Statement("handoff", "ward_a", '{"run":"r"}', "-----BEGIN CERTIFICATE-----", "00ff")
GOOD = [
    Refusal("WireError", "client0: no"),
    Hello("client0", {"lr": "0.1"}, 8, 2, torch.ones(3)),
    Hello("client0", {}, 8, 2),
    Welcome("run", "/runs/1", 120.0),
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
    STATEMENT,
    replace(HANDOFF, turn=0, previous=b"", epoch=1, statement=STATEMENT),
    Board([STATEMENT], [], [STATEMENT] * 2, [], "PEM"),
    Heads([STATEMENT]),
    Terms("run", {"lr": "0.1"}),
    Farewell({"bottom": "a" * 64}, 2**40, STATEMENT),
    Report(2, {"test": {"loss": 1e-300, "auroc": 1}}),
    Farewell({"bottom": "a" * 64}, 2**40),
    Release({"fc.weight": H, "fc.bias": H[0]}, 2, None, None),
    Release({}, 2, {"fc.weight": H}, HANDOFF),
    Turn(TurnKind.TRAIN, "client0", 1, 2, 3, 4),
    Turn(TurnKind.TRAIN, "client0", 1, 2, 3, 4, together=True),
    Turn(TurnKind.AVERAGE, "client0", 1, 2, 3, 4),
    Turn(TurnKind.END, reason="naïve \U0001f600 \\u0000", error="WireError"),
]


def only_known(value) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(only_known, value))
    if isinstance(value, dict):
        return all(type(key) is str and only_known(item) for key, item in value.items())
    plain = (str, bytes, int, float, bool, type(None), TurnKind, torch.Tensor)
    if type(value) in MESSAGES.values():
        assert all(codec.fits(getattr(value, name), t) for name, t in codec._field_types(type(value)).items())
        return True
    return type(value) in plain


def as_frame(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif type(value) in MESSAGES.values():
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)


def read(data: bytes) -> None:
    """Reads ``data`` as one does that trusts nobody; what comes out must be known things that lie within it."""
    frame = as_frame(data)
    try:
        value = frames.unpack(frame)
    except WireError:
        return
    assert only_known(value)
    begin, end = frame.data_ptr(), frame.data_ptr() + len(frame)
    for tensor in tensors_in(value):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes <= len(frame)
        assert not tensor.nbytes or (begin <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= end)
