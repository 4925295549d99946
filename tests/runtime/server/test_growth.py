"""What a server holds does not grow with the turns it has played, but for the list of them.

Oracle: the objects that Python and glibc hold early in a run and late in it; weak references to what a client sent.
"""

import ctypes
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from suture.launch.options.options import AskedOptions
from suture.launch.roles.one_process import play_locally
from suture.runtime.hooks import Attack, SmashedBatch
from suture.runtime.server.model import ServerModel
from suture.runtime.server.turn_log import TurnLog
from suture.runtime.wire.checks import TensorSpec

EARLY, LATE = 5, 16  # rounds


class Mallinfo2(ctypes.Structure):
    """See mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def bytes_in_use() -> int:
    """What malloc has given out and not been given back; 0 where there is no mallinfo2."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = Mallinfo2
    told = mallinfo2()
    return int(told.uordblks + told.hblkhd)


def num_tensors() -> int:
    """Those that Python holds."""
    return sum(issubclass(type(item), Tensor) for item in gc.get_objects())


@pytest.mark.parametrize("schedule", ["round-robin", "parallel", "splitfed", "concat"])
def test_a_long_run_takes_no_more_memory_than_a_short_one(schedule, tmp_path, monkeypatch):
    """A step's smashed data is 16 KB, of which malloc's growth a turn must be a small part."""
    torch.set_num_threads(1)
    options = AskedOptions(
        data="chest-phantom", model="unet", width=8, cut="1", image_size=32, augment="none", train_images=2,
        validation_images=1, test_images=1, batch_size=2, clients=2, epochs=LATE, schedule=schedule,
    ).resolved()  # fmt: skip
    seen, start = {}, TurnLog.start_round

    def start_round(turn_log, *clients):
        if turn_log.round in (EARLY, LATE - 1):
            gc.collect()
            seen[turn_log.round] = len(turn_log.entries), len(gc.get_objects()), num_tensors(), bytes_in_use()
        start(turn_log, *clients)

    monkeypatch.setattr(TurnLog, "start_round", start_round)
    play_locally(options, bytes(32), tmp_path)
    turns, objects, tensors, in_use = (
        late - early for early, late in zip(seen[EARLY], seen[LATE - 1], strict=True)
    )
    assert turns >= 3 * (LATE - 1 - EARLY)
    assert tensors == 0
    assert objects <= 1.5 * turns, "more than the turn's own entry"
    assert in_use <= 2048 * turns


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("home", [False, True])
def test_a_server_keeps_nothing_of_a_step(home, joined):
    """Oracle: weak references to the batch as it went through the top, whether it was stepped or given up."""
    top = nn.Linear(3, 2)
    labels = None if home else TensorSpec((), torch.int64, 4, 2)
    handed = []

    class Watching(Attack):
        def loss(self, batch, task_loss):
            handed.append(weakref.ref(batch.smashed))
            return task_loss

        def gradient(self, batch, grad):
            handed.append(weakref.ref(batch.smashed))
            return grad

    server = ServerModel(
        top,
        torch.optim.SGD(top.parameters(), lr=0.1),
        smashed=TensorSpec((3,), torch.float32, 4),
        labels=labels,
        attack=Watching(),
    )

    def step(back: bool) -> None:
        batches = [
            SmashedBatch(torch.randn(4, 3), None if home else torch.zeros(4, dtype=torch.int64), client, 1, 0)
            for client in ("a", "b")
        ]
        of_answer = torch.ones(4, 2) if home else None
        if joined:
            _, pending = server.forward_joined(batches, [None, None])
        else:
            _, pending = server.forward_apart(batches[0])
        handed.append(weakref.ref(pending.smashed))
        if back and joined:
            server.backward_joined(pending, [4, 4], None if of_answer is None else [of_answer, of_answer])
        elif back:
            server.backward(pending, of_answer)

    # What is freed later by Python's collector was no growth, but is what the arenas are fragmented by.
    gc.disable()
    try:
        alive = num_tensors()
        step(back=True)
        step(back=False)
        assert len(handed) >= 3 and all(reference() is None for reference in handed)
        assert num_tensors() == alive
    finally:
        gc.enable()
