"""What the registry knows of a net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from suture.models.split import CutPoint, SplitModel

Task = Literal["classification", "segmentation"]
Labels = Literal["shared", "home"]
Normalisation = Literal["imagenet", "symmetric"]


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One net of the registry. A new net is a new entry; nothing else asks for a net by name."""

    name: str
    """As given to ``--model``."""
    description: str
    """One line for people."""
    paper: str
    """Authors, venue, year, arXiv number."""
    task: Task
    """What its output is for: one logit a class, or one a pixel."""
    labels: tuple[Labels, ...]
    """Where labels may be, the default first."""
    normalisation: Normalisation
    """How the data source scales pixels: ImageNet's mean and deviation, or to -1..1."""
    in_channels: int
    """Channels of an image."""
    num_outputs: int
    """Outputs that a table assumes where no task is known."""
    width: int | None
    """Default width, None where it cannot be chosen."""
    min_image_size: int
    """Fewest pixels a side."""
    image_size_multiple: int
    """Pixels a side must be a multiple of this."""
    stride: int
    """Image pixels a side to one pixel of the smallest feature map."""
    build_net: Callable[[int, int | None], nn.Module]
    """(num_outputs, width) to the uncut net."""
    points: Callable[[nn.Module], list[CutPoint]]
    """The uncut net's cut points, in the order of the forward pass."""
    cut_net: Callable[[nn.Module, CutPoint, str], SplitModel]
    """(uncut net, cut point, labels) to the parts, which share the net's modules."""
    initialise: Callable[[nn.Module, int], None]
    """(part, num_outputs): draws the part's fresh weights from torch's default generator and nothing else."""
    check_image: Callable[[int, int | None], None] | None = None
    """(pixels, batch size): where no rule is known, tries whether the net trains on such images, by shape."""
