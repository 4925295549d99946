"""Distance correlation between images and smashed data as a second loss of the client (NoPeek).

Vepakomma, Singh, Gupta, Raskar: NoPeek: Information leakage reduction to share activations in distributed deep
learning, ICDM Workshops 2020, arXiv:2008.09161. The statistic: Székely, Rizzo, Bakirov: Measuring and testing
dependence by correlation of distances, Annals of Statistics 35, 2007.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from suture.runtime.hooks import Defence
from suture.threats.client_view import ClientView, check_bounds
from suture.threats.strength import Strength

_SMALLEST = 1e-12  # below this squared correlation the root's slope is cut off, not followed to infinity


@dataclass(frozen=True, kw_only=True)
class DcorConfig:
    """Parameters of `DcorDefence`.

    Attributes:
        alpha: weight of the distance correlation beside the task's loss, at least 0.
    """

    strength: ClassVar[Strength] = Strength(parameter="alpha", stronger="higher")

    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_bounds("defence dcor: alpha", self.alpha, 0.0)


class DcorDefence(Defence):
    """Trains the bottom on task + alpha * dcor(images, smashed data). It changes no tensor on the wire.

    Does not act in evaluation: what protects there is the bottom that it has trained.
    """

    def __init__(self, config: DcorConfig, view: ClientView | None = None) -> None:
        self.config = config

    def penalty(self, inputs: Tensor, smashed: Tensor) -> Tensor:
        """alpha times the batch's distance correlation, in 0..alpha."""
        return self.config.alpha * distance_correlation(inputs, smashed)


def distance_correlation(x_ND: Tensor, z_NE: Tensor) -> Tensor:
    """The sample distance correlation of N pairs, a scalar in 0..1; further dimensions are flattened.

    1 for z = x (and any rotation, shift or scaling of it); 0 where x or z is constant, or N is 1. The gradient
    is finite everywhere: two equal rows, and a correlation of 0, have slope 0 there.

    Note:
        The distances are roots of squared distances. Several public codes leave the root out; what they then
        minimise sees linear dependence only.
        This is the biased (V-) statistic, as in the paper: independent data has an expectation above 0 that falls
        with N and grows with the dimensions (32 pairs: about 0.4 for 2 dimensions, 0.7 for 10, above 0.99 for
        thousands), so compare values of one batch size and shape only.
    """
    x_ND, z_NE = x_ND.flatten(1), z_NE.flatten(1)
    a_NN, b_NN = _centred_distances(x_ND), _centred_distances(z_NE)
    covariance = (a_NN * b_NN).mean()
    variances = (a_NN * a_NN).mean() * (b_NN * b_NN).mean()
    # Where one side is constant covariance is 0 as well, and any positive divisor will do.
    squared = covariance / torch.where(variances > 0, variances, torch.ones_like(variances)).sqrt()
    return squared.clamp(min=_SMALLEST).sqrt() * (squared > _SMALLEST)


def _centred_distances(x_ND: Tensor) -> Tensor:
    # Not by matrix products: those lose the digits of small distances, and equal rows come out apart.
    # At distance 0 cdist's gradient is defined as 0, where a plain root's would be infinite.
    distances_NN = torch.cdist(x_ND, x_ND, compute_mode="donot_use_mm_for_euclid_dist")
    scale = distances_NN.mean()
    # The correlation does not depend on scale; at mean 1 neither square nor product can leave float32's range.
    distances_NN = distances_NN / torch.where(scale > 0, scale, torch.ones_like(scale))
    rows, columns = distances_NN.mean(dim=1, keepdim=True), distances_NN.mean(dim=0, keepdim=True)
    return distances_NN - rows - columns + distances_NN.mean()
