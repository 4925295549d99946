"""Smashed data rounded to a few levels, with a straight-through gradient.

Bengio, Léonard, Courville: Estimating or propagating gradients through stochastic neurons for conditional
computation, 2013, arXiv:1308.3432 (the estimator). As a defence of what crosses the cut: Pham, Vu, Nguyen, Nguyen,
Kang, Nguyen: Binarizing split learning for data privacy enhancement and computation reduction, IEEE TIFS 2023,
arXiv:2206.04864.

Shape legend: N batch; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from suture.runtime.hooks import Defence
from suture.threats.client_view import ClientView, check_bounds
from suture.threats.strength import Strength


@dataclass(frozen=True, kw_only=True)
class QuantiseConfig:
    """Parameters of `QuantiseDefence`.

    Attributes:
        bits: 2**bits levels, 1..16.
    """

    strength: ClassVar[Strength] = Strength(parameter="bits", stronger="lower")

    bits: int = 2

    def __post_init__(self) -> None:
        check_bounds("defence quantise: bits", self.bits, 1, 16)


class QuantiseDefence(Defence):
    """Rounds each batch to 2**bits evenly spaced levels between its smallest and largest value.

    Acts in evaluation too: test images cross the same wire.
    """

    acts_in_evaluation: ClassVar[bool] = True

    def __init__(self, config: QuantiseConfig, view: ClientView | None = None) -> None:
        self.config = config

    def transform(self, smashed: Tensor) -> Tensor:
        """The rounded values; the gradient passes as if nothing had been rounded."""
        h_ND = smashed.detach()
        low, high = h_ND.min(), h_ND.max()
        step = (high - low) / float(2**self.config.bits - 1)
        if float(step) == 0.0:
            return smashed
        rounded: Tensor = low + ((h_ND - low) / step).round() * step
        return smashed + (rounded - h_ND)
