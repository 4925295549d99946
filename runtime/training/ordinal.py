"""Ordered classes, such as grades of a disease: the loss, and a score for which a near miss is better than a far one.

Shi, Cao, Raschka: Deep Neural Networks for Rank-Consistent Ordinal Regression Based On Conditional Probabilities,
arXiv:2111.08851 (CORN). Cohen: Weighted kappa, Psychological Bulletin 1968.

Of K grades a net has K - 1 outputs. Output k is the logit of "the grade is above k, given that it is above k - 1", so
that the probabilities of lying above each grade fall from grade to grade whatever the weights are.

Shape legend: N batch; K grades, T = K - 1 thresholds between them (logits_NT).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


class CornLoss(nn.Module):
    """Binary cross-entropy at each threshold, over the images that lie above the threshold before it; their mean.

    Args:
        weights_K: what an image of each grade counts for; None for 1.
    """

    def __init__(self, weights_K: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weights_K", weights_K)

    def forward(self, logits_NT: Tensor, labels_N: Tensor) -> Tensor:
        """Scalar, differentiable in the logits."""
        thresholds_T = torch.arange(logits_NT.shape[1], device=logits_NT.device)
        above_NT = (labels_N[:, None] > thresholds_T).to(logits_NT)
        counts_NT = (labels_N[:, None] >= thresholds_T).to(logits_NT)
        if isinstance(self.weights_K, Tensor):
            counts_NT = counts_NT * self.weights_K.to(logits_NT)[labels_N][:, None]
        losses_NT = binary_cross_entropy_with_logits(logits_NT, above_NT, reduction="none")
        # Where only a grade of weight 0 is in the batch there is nothing to learn, and no 0 / 0.
        return (losses_NT * counts_NT).sum() / counts_NT.sum().clamp(min=torch.finfo(logits_NT.dtype).tiny)


def grade_probabilities(logits_NT: Tensor) -> Tensor:
    """p_NK of each grade; they sum to 1."""
    above_NT = logsigmoid(logits_NT).cumsum(1).exp()
    ones_N1 = torch.ones_like(above_NT[:, :1])
    return torch.cat((ones_N1, above_NT), 1) - torch.cat((above_NT, torch.zeros_like(ones_N1)), 1)


def grades_of(p_NK: Tensor) -> Tensor:
    """The grade in the middle of each distribution: as many thresholds as are passed with more than one half."""
    return ((1 - p_NK.double().cumsum(1)[:, :-1]) > 0.5).sum(1)


def quadratic_kappa(true_N: Tensor, predicted_N: Tensor, num_grades: int) -> float | None:
    """Agreement beyond chance, weighted by the squared distance of the grades: 1 is perfect, 0 chance.

    Returns:
        None where all are of one grade and predicted so: then chance cannot disagree either.
    """
    counts = torch.bincount(true_N * num_grades + predicted_N, minlength=num_grades**2).double()
    observed = counts.view(num_grades, num_grades)
    expected = observed.sum(1)[:, None] * observed.sum(0) / observed.sum()
    grades = torch.arange(num_grades, dtype=torch.float64)
    distance = (grades[:, None] - grades) ** 2
    by_chance = float((distance * expected).sum())
    return 1 - float((distance * observed).sum()) / by_chance if by_chance else None
