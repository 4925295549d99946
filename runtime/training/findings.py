"""Several findings an image, each there or not: the loss and the scores.

Shape legend: N images; K findings (logits_NK, targets_NK of 0 and 1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

_MOST_SCORED, _LONGEST = 56, 34  # of what a report may hold: 64 scores, names of 40 characters


class FindingsLoss(nn.Module):
    """Mean binary cross-entropy over images and findings.

    Args:
        weights_K: what an image that has the finding counts for against one that has not; None for 1.
    """

    def __init__(self, weights_K: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weights_K", weights_K)

    def forward(self, logits_NK: Tensor, targets_NK: Tensor) -> Tensor:
        """Scalar, differentiable in the logits."""
        weights = self.weights_K.to(logits_NK) if isinstance(self.weights_K, Tensor) else None
        return binary_cross_entropy_with_logits(logits_NK, targets_NK.to(logits_NK), pos_weight=weights)


def score_names(findings: Sequence[str]) -> list[str]:
    """``auroc_NAME`` of each finding, as a name that messages and TensorBoard take."""
    plain = ["auroc_" + re.sub(r"\W+", "_", name)[:_LONGEST] for name in findings]
    return plain if len(set(plain)) == len(plain) else [f"auroc_{number}" for number in range(len(findings))]


def finding_scores(logits_NK: Tensor, targets_NK: Tensor, findings: Sequence[str]) -> dict[str, float]:
    """``auroc``, the mean over the findings that some images have and some not, and each one's; ``label_accuracy``, the
    share of right decisions at probability one half; ``label_majority``, what the commoner answer to each would reach.
    """
    from torchmetrics.functional.classification import binary_auroc

    right = (logits_NK > 0) == targets_NK.bool()
    share_K = targets_NK.double().mean(0)
    areas = {}
    for k, name in enumerate(score_names(findings)):
        if 0 < float(share_K[k]) < 1:
            ranks = torch.searchsorted(logits_NK[:, k].sort().values, logits_NK[:, k].contiguous()).double()
            areas[name] = float(binary_auroc(ranks / max(float(ranks.max()), 1.0), targets_NK[:, k].long()))
    scores = {
        "label_accuracy": float(right.double().mean()),
        "label_majority": float(torch.maximum(share_K, 1 - share_K).mean()),
    }
    if areas:
        scores["auroc"] = sum(areas.values()) / len(areas)
    return scores | (areas if len(areas) <= _MOST_SCORED else {})
