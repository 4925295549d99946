"""Whole channels of smashed data left out at random, other ones for every image.

He, Zhang, Lee: Attacking and protecting data privacy in edge-cloud collaborative inference systems, IEEE Internet
of Things Journal 2021 (dropout at the cut against inversion). Whole channels: Tompson, Goroshin, Jain, LeCun,
Bregler: Efficient object localization using convolutional networks, CVPR 2015, arXiv:1411.4280.

Shape legend: N batch; C, H, W at the cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from suture.runtime.hooks import Defence
from suture.threats.client_view import ClientView, check_bounds
from suture.threats.strength import Strength


@dataclass(frozen=True, kw_only=True)
class DropoutConfig:
    """Parameters of `DropoutDefence`.

    Attributes:
        p: share of channels left out, 0..0.95.
    """

    strength: ClassVar[Strength] = Strength(parameter="p", stronger="higher")

    p: float = 0.5

    def __post_init__(self) -> None:
        check_bounds("defence dropout: p", self.p, 0.0, 0.95)


class DropoutDefence(Defence):
    """Sets a random share of each image's channels to 0 and scales the others by 1 / (1 - p).

    Acts in evaluation too, unlike dropout against overfitting: test images cross the same wire, and whole
    channels would give them away. Drawn from torch's default generator, like the noise of `noise.py`.
    """

    acts_in_evaluation: ClassVar[bool] = True

    def __init__(self, config: DropoutConfig, view: ClientView | None = None) -> None:
        self.config = config

    def transform(self, smashed: Tensor) -> Tensor:
        """Smashed data without some channels (of h_ND with one dimension: without some features)."""
        shape = (*smashed.shape[:2], *[1] * (smashed.dim() - 2))
        kept = torch.rand(shape, device=smashed.device) >= self.config.p
        return smashed * kept / (1 - self.config.p)
