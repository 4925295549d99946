"""Noise on smashed data: Gaussian, or Laplace on clipped values.

Titcombe, Hall, Papadopoulos, Romanini: Practical defences against model inversion attacks for split neural
networks, ICLR Workshop on Distributed and Private Machine Learning 2021, arXiv:2104.05743.

Shape legend: N batch; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from suture.runtime.errors import ConfigError
from suture.runtime.hooks import Defence
from suture.threats.client_view import ClientView, check_bounds
from suture.threats.strength import Strength


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Parameters of `NoiseDefence`.

    Attributes:
        kind: "gaussian", or "laplace", which needs ``clip``.
        scale: standard deviation of the noise; in units of ``clip`` where that is set, else of the batch's own
            standard deviation. At least 0.
        clip: every value is first cut to -clip..clip; 0 for no clipping.
    """

    # Both kinds have the deviation ``scale``, and a clip is the unit of that: neither takes anything from it.
    strength: ClassVar[Strength] = Strength(
        parameter="scale", stronger="higher", neutral=frozenset({"kind", "clip"})
    )

    kind: Literal["gaussian", "laplace"] = "gaussian"
    scale: float = 1.0
    clip: float = 0.0

    def __post_init__(self) -> None:
        check_bounds("defence noise: scale", self.scale, 0.0)
        check_bounds("defence noise: clip", self.clip, 0.0)
        if self.kind == "laplace" and self.clip == 0:
            raise ConfigError("defence noise: kind=laplace needs clip above 0, got 0; write clip=1")


class NoiseDefence(Defence):
    """Sends smashed data plus noise, fresh for every batch. Acts in evaluation too: test images cross the same wire.

    The noise comes from torch's default generator, which the client puts at a place of its own before each
    bottom's forward; so a repeated or resumed run sends the same.

    Note:
        Measured against the batch's own deviation (or the clip), because a net that is trained under noise of
        a fixed size grows its activations until the noise is small beside them. The deviation is not
        differentiated.
        No differential privacy is claimed: that would need a bound on a whole image's smashed data and an account over
        all rounds.
    """

    acts_in_evaluation: ClassVar[bool] = True

    def __init__(self, config: NoiseConfig, view: ClientView | None = None) -> None:
        self.config = config

    def transform(self, smashed: Tensor) -> Tensor:
        """Clipped, with noise added; where it was clipped no gradient comes back."""
        if self.config.clip > 0:
            smashed = smashed.clamp(-self.config.clip, self.config.clip)
            deviation: Tensor | float = self.config.clip
        else:
            deviation = smashed.detach().std(correction=0)
        return smashed + self.config.scale * deviation * self._drawn(smashed)

    def _drawn(self, like: Tensor) -> Tensor:
        """Noise of standard deviation 1."""
        if self.config.kind == "gaussian":
            return torch.randn_like(like, requires_grad=False)
        # The difference of two exponential variables is Laplace distributed; its variance is 2.
        first, second = torch.empty_like(like).exponential_(), torch.empty_like(like).exponential_()
        return (first - second) / math.sqrt(2)
