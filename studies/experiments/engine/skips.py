"""The study's U-Net: a net into whose skip connections no gradient flows back.

The study sent the skips across the cut and cut their gradients off, so that the client's encoder learnt through
the server alone. This is no option of training: a worker of the experiment registers the net for its own process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

import suture.models.registry as nets
from suture.models.entry import ModelEntry
from suture.models.split import BottomOutput, CutPoint, SplitModel


class CutOffSkips(nn.Module):
    """A bottom whose skips carry values and no gradient; parameters and their names are the bottom's own.

    Args:
        bottom: of a net with skips.
    """

    def __init__(self, bottom: nn.Module) -> None:
        super().__init__()
        for name, child in bottom.named_children():
            self.add_module(name, child)
        self._bottom = [bottom]  # in a list: it shares the children, which must not be registered twice

    def forward(self, x: Tensor) -> BottomOutput:
        smashed, skips = self._bottom[0](x)
        return BottomOutput(smashed, tuple(skip.detach() for skip in skips))


def cut_off(entry: ModelEntry) -> ModelEntry:
    """The same net with its skips' gradients cut off where it is cut."""

    def cut(net: nn.Module, point: CutPoint, labels: str) -> SplitModel:
        split = entry.cut_net(net, point, labels)
        return replace(split, bottom=CutOffSkips(split.bottom))

    return replace(entry, cut_net=cut)


@contextmanager
def registered(name: str) -> Iterator[None]:
    """Within, ``--model name`` is the net without skip gradients, in this process only."""
    kept = nets.MODELS[name]
    nets.MODELS[name] = cut_off(kept)
    try:
        yield
    finally:
        nets.MODELS[name] = kept
