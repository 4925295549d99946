"""A network in two or three parts: bottom (client), top (server) and, in the U-shape, head (client again).

The parts are plain modules that do not know they are split. Their parameter names are those of the whole
net, so the union of the parts' state dicts is the whole net's state dict.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND); K classes (logits_NK).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn


class BottomOutput(NamedTuple):
    """What a bottom computes: ``smashed`` (h_ND) crosses the wire, ``skips`` never leave the client."""

    smashed: Tensor
    skips: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class CutPoint:
    """A place where a net can be cut: after the block ``name``.

    Attributes:
        index: the study's number of the cut; None for a block inside a layer.
        name: the block's name, such as "layer2" or "layer2.0".
        aliases: further names of the same place: the blocks inside ``name`` that end with it.
    """

    index: int | None
    name: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitModel:
    """The parts of one network.

    Calling convention: ``bottom(x_NCHW) -> BottomOutput``, ``top(h_ND) -> Tensor`` (logits_NK when there is
    no head), ``head(top_output, skips) -> logits``.

    Attributes:
        bottom: the client's first part.
        top: the server's part.
        head: the client's last part where labels stay at home (U-shape), else None.
    """

    bottom: nn.Module
    top: nn.Module
    head: nn.Module | None = None

    def joined(self, at_part: Callable[[str], None] = lambda part: None) -> JoinedModel:
        """The unsplit net over the same parameters; ``at_part`` is called before each part's forward."""
        return JoinedModel(self, at_part)

    def parts(self) -> dict[str, nn.Module]:
        """The parts by name, in the order of the forward pass."""
        named = {"bottom": self.bottom, "top": self.top}
        return named if self.head is None else named | {"head": self.head}


class JoinedModel(nn.Module):
    """Runs the parts one after the other in one process: the oracle of every split run.

    Args:
        split: the parts, shared and not copied.
        at_part: called with "bottom", "top" or "head" before that part's forward; the oracle re-seeds the
            generators there exactly as a split run does at the cut.
    """

    def __init__(self, split: SplitModel, at_part: Callable[[str], None] = lambda part: None) -> None:
        super().__init__()
        self.bottom, self.top, self.head = split.bottom, split.top, split.head
        self._at_part = at_part

    def forward(self, x_NCHW: Tensor) -> Tensor:
        self._at_part("bottom")
        smashed, skips = self.bottom(x_NCHW)
        self._at_part("top")
        out: Tensor = self.top(smashed)
        if self.head is not None:
            self._at_part("head")
            out = self.head(out, skips)
        return out


def resolve_cut(model: str, cut: int | str, points: Sequence[CutPoint]) -> CutPoint:
    """Finds the cut point that a number or a block's name means.

    Args:
        model: the net's name, for messages.
        cut: the study's number (also as text, "3") or a block's name ("layer2", "layer2.0").
        points: all cut points of the net, in the order of the forward pass.

    Raises:
        ValueError: no such cut; the message names the range or the known blocks.
    """
    if isinstance(cut, str) and cut.removeprefix("-").isdecimal():
        cut = int(cut)
    for point in points:
        if cut in (point.index, point.name, *point.aliases):
            return point
    if isinstance(cut, int):
        indices = [point.index for point in points if point.index is not None]
        bounds = f"{min(indices)}..{max(indices)}"
        raise ValueError(f"cut must lie in {bounds} for {model}, got {cut}; see 'suture cuts {model}'")
    known = ", ".join(point.name for point in points)
    raise ValueError(f"cut must name a block of {model}, got {cut!r}; known: {known}")
