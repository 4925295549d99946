"""Error feedback: what was left out of a batch is in the next, and in nothing else.

Oracle: sums by hand.
"""

import torch

from suture.runtime.training.randomness import Randomness
from suture.runtime.wire.checks import TensorSpec
from suture.runtime.wire.compression import Packer
from suture.runtime.wire.feedback import Feedback
from suture.runtime.wire.messages import Packed

PLACES = [(1, "client0", batch) for batch in range(4)]


def _feedback(wire):
    packer = Packer(wire, Randomness(bytes(32), 0))
    return packer, Feedback(packer)


def _crossed(packer, payload, like):
    return packer.unpack(payload, TensorSpec.like(like), "client0", "smashed")


def test_nothing_is_lost_over_the_batches_of_a_turn():
    """Oracle: what crossed so far and what is left make up everything that was to cross."""
    packer, feedback = _feedback("topk:0.25:ef")
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(3, 4, 2, 2, generator=generator) for _ in PLACES]
    before = [batch.clone() for batch in batches]
    crossed = torch.zeros(3, 4, 2, 2)
    for place, batch in zip(PLACES, batches, strict=True):
        payload = feedback.pack(batch, place)
        assert isinstance(payload, Packed) and payload.values.shape == (3, 4)
        crossed += _crossed(packer, payload, batch)
    torch.testing.assert_close(crossed + feedback._left_out[0], sum(batches))
    assert all(torch.equal(*pair) for pair in zip(batches, before, strict=True)), (
        "the client's own data is not changed"
    )


def test_a_turn_and_a_part_begin_with_nothing():
    """Oracle: the plain format."""
    _, feedback = _feedback("topk:0.25:ef")
    plain, (first, second) = (
        _feedback("topk:0.25")[1],
        torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(1)),
    )
    wanted = plain.pack(second, PLACES[1])
    feedback.pack(first, PLACES[0])
    fed = feedback.pack(second, PLACES[1])
    assert not torch.equal(fed.values, wanted.values)
    assert torch.equal(feedback.pack(second, PLACES[1], part=1).values, wanted.values)
    feedback.start()
    assert torch.equal(feedback.pack(second, PLACES[1]).values, wanted.values)


def test_a_smaller_last_batch_takes_the_rows_that_it_has():
    """Oracle: by hand, the larger of two values crosses."""
    packer, feedback = _feedback("topk:0.5:ef")
    feedback.pack(torch.tensor([[3.0, 2.0], [1.0, 4.0]]), PLACES[0])
    last = torch.tensor([[0.5, 0.0]])
    assert torch.equal(_crossed(packer, feedback.pack(last, PLACES[1]), last), torch.tensor([[0.0, 2.0]]))


def test_formats_without_it_pack_as_they_did():
    """Oracle: the packer's own, with nothing kept."""
    for wire in ("fp32", "int8", "topk:0.25"):
        packer, feedback = _feedback(wire)
        batch = torch.randn(2, 8)
        for place in PLACES[:2]:
            ours, plain = feedback.pack(batch, place), packer.pack(batch, "smashed", *place)
            pairs = [(ours, plain)] if isinstance(ours, torch.Tensor) else [(ours.values, plain.values)]
            assert all(torch.equal(*pair) for pair in pairs)
        assert not feedback._left_out
