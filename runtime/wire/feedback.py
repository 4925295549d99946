"""Error feedback at the cut: what a format left out of one batch is added to the next (``--wire topk:R:ef``).

Seide, Fu, Droppo, Li, Yu: 1-bit stochastic gradient descent and its application to data-parallel distributed training
of speech DNNs, Interspeech 2014; Stich, Cordonnier, Jaggi: Sparsified SGD with memory, NeurIPS 2018,
arXiv:1809.07599. Both are about gradients of the same weights.

Note:
    Here two batches are of different images: row by row, one patient's remains go into the next one's data. Hence off
    by default; docs/architecture.md says more.

Shape legend: N batch; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from torch import Tensor

from suture.runtime.training.randomness import part_place
from suture.runtime.wire.checks import TensorSpec
from suture.runtime.wire.compression import Packer, Payload


class Feedback:
    """What one client's training batches left out so far in a turn; nothing where the format says nothing of it."""

    def __init__(self, packer: Packer) -> None:
        self._packer = packer
        self._left_out: dict[int, Tensor] = {}

    def start(self) -> None:
        """A turn begins: nothing of another one, or of another client's, goes into it."""
        self._left_out.clear()

    def pack(self, smashed: Tensor, place: tuple[int, str, int], part: int = 0) -> Payload:
        """A training batch's smashed data (h_ND, without a graph), or a part's, as it crosses."""
        what, where = "smashed", part_place(place, part)
        if not self._packer.feeds_back:
            return self._packer.pack(smashed, what, *where)
        before = self._left_out.get(part)
        if before is not None:
            rows = min(len(smashed), len(before))  # a turn's last batch is smaller
            smashed = smashed.clone()
            smashed[:rows] += before[:rows]
        payload = self._packer.pack(smashed, what, *where)
        crossed: Tensor = self._packer.unpack(payload, TensorSpec.like(smashed), "this client", what)
        self._left_out[part] = smashed - crossed
        return payload
