"""Scores by torchmetrics, one accumulator a client and phase, and the loss of masks; `objectives` says whose they are.

Shape legend: N batch; H, W image; K classes (logits_NK). Segmentation has one foreground class: logits_N1HW.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from suture.runtime.errors import ConfigError, DivergedError


class Scores(Protocol):
    """Collects predictions batch by batch and scores them all at once."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take one batch; nothing of the autograd graph is kept."""

    def compute(self) -> dict[str, float]:
        """Scores by name, without NaN: a score that the images seen do not define has no key."""


class ClassificationScores:
    """Accuracy, balanced accuracy and AUROC over all images seen, beside what always guessing would reach.

    Keys: ``accuracy``; ``balanced_accuracy`` (recall, mean over the classes present); ``auroc`` (each class
    present against the rest, mean; for two classes that is the AUROC of class 1), left out where only one
    class is present; ``majority_accuracy`` (share of the most frequent class); ``num_images``.

    Args:
        num_classes: K, at least 2.

    Raises:
        ConfigError: fewer than two classes.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 2:
            raise ConfigError(f"classification needs at least 2 classes, got {num_classes}; check --data")
        self.num_classes = num_classes
        self._logits_NK: list[Tensor] = []
        self._labels_N: list[Tensor] = []

    def update(self, logits_NK: Tensor, labels_N: Tensor) -> None:
        """Take one batch of logits (any device) and labels in 0..K-1.

        Raises:
            ValueError: shapes do not match, or a label is outside 0..K-1.
            DivergedError: a logit is not finite.
        """
        if (
            logits_NK.ndim != 2
            or logits_NK.shape[1] != self.num_classes
            or labels_N.shape != logits_NK.shape[:1]
        ):
            raise ValueError(
                f"expected logits (N, {self.num_classes}) and labels (N,), "
                f"got {tuple(logits_NK.shape)} and {tuple(labels_N.shape)}"
            )
        require_finite(logits_NK)
        low, high = (int(labels_N.min()), int(labels_N.max())) if len(labels_N) else (0, 0)
        if not 0 <= low <= high < self.num_classes:
            raise ValueError(f"labels must lie in 0..{self.num_classes - 1}, got {low}..{high}")
        self._logits_NK.append(logits_NK.detach().double().cpu())
        self._labels_N.append(labels_N.detach().long().cpu())

    def compute(self) -> dict[str, float]:
        """Scores over all batches so far; only ``num_images`` where there were none."""
        # torchmetrics takes most of a second to import: not before something is scored.
        from torchmetrics.functional.classification import binary_auroc

        num_images = sum(len(labels) for labels in self._labels_N)
        if num_images == 0:
            return {"num_images": 0}
        logits_NK, labels_N = torch.cat(self._logits_NK), torch.cat(self._labels_N)
        scores = class_scores(logits_NK.argmax(dim=1), labels_N, self.num_classes)
        present = labels_N.unique()
        if len(present) > 1:
            margins_NK = _one_against_rest(logits_NK)
            areas = [
                binary_auroc(_ranks(margins_NK[:, k].contiguous()), (labels_N == k).long())
                for k in present.tolist()
            ]
            scores["auroc"] = float(torch.stack(areas).mean())
        return scores


def class_scores(predicted_N: Tensor, labels_N: Tensor, num_classes: int) -> dict[str, float]:
    """What `ClassificationScores` says of predicted classes; there is at least one image."""
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_recall

    num_images = len(labels_N)
    counts_K = labels_N.bincount(minlength=num_classes)
    present = counts_K.nonzero().flatten()
    recall_K = multiclass_recall(predicted_N, labels_N, num_classes=num_classes, average="none")
    return {
        "accuracy": float(
            multiclass_accuracy(predicted_N, labels_N, num_classes=num_classes, average="micro")
        ),
        # Over the classes present: torchmetrics' macro counts an absent class as 0 once it is guessed.
        "balanced_accuracy": float(recall_K[present].mean()),
        "majority_accuracy": int(counts_K.max()) / num_images,
        "num_images": num_images,
    }


class SegmentationScores:
    """Overlap of predicted and true masks; a pixel is foreground where its logit is positive.

    Keys: ``dice``, ``jaccard``, ``pixel_accuracy`` (each of one image, then the mean over images; an empty
    mask predicted empty counts 1) and ``num_images``.
    """

    def __init__(self) -> None:
        self._dice_N: list[Tensor] = []
        self._jaccard_N: list[Tensor] = []
        self._accuracy_N: list[Tensor] = []

    def update(self, logits_N1HW: Tensor, mask_N1HW: Tensor) -> None:
        """Take one batch of logits and masks (0 or 1, any dtype).

        Raises:
            ValueError: shapes do not match.
            DivergedError: a logit is not finite.
        """
        from torchmetrics.functional.classification import (
            binary_accuracy,
            binary_f1_score,
            binary_jaccard_index,
        )

        if logits_N1HW.ndim != 4 or logits_N1HW.shape[1] != 1 or logits_N1HW.shape != mask_N1HW.shape:
            raise ValueError(
                "expected logits and masks of one shape (N, 1, H, W), "
                f"got {tuple(logits_N1HW.shape)} and {tuple(mask_N1HW.shape)}"
            )
        if not len(logits_N1HW):
            return
        require_finite(logits_N1HW)
        predicted_NP = (logits_N1HW.detach() > 0).flatten(1).long().cpu()
        true_NP = (mask_N1HW.detach() > 0.5).flatten(1).long().cpu()
        # The F1 score of pixels is the Dice coefficient of the masks.
        dice_N = binary_f1_score(predicted_NP, true_NP, multidim_average="samplewise", zero_division=1)
        accuracy_N = binary_accuracy(predicted_NP, true_NP, multidim_average="samplewise")
        pairs = zip(predicted_NP, true_NP, strict=True)
        self._jaccard_N.append(torch.stack([binary_jaccard_index(p, t, zero_division=1) for p, t in pairs]))
        # For a batch of one image torchmetrics returns a scalar.
        self._dice_N.append(dice_N.reshape(-1))
        self._accuracy_N.append(accuracy_N.reshape(-1))

    def compute(self) -> dict[str, float]:
        """Scores over all batches so far; only ``num_images`` where there were none."""
        num_images = sum(len(dice) for dice in self._dice_N)
        if num_images == 0:
            return {"num_images": 0}
        return {
            "dice": float(torch.cat(self._dice_N).double().mean()),
            "jaccard": float(torch.cat(self._jaccard_N).double().mean()),
            "pixel_accuracy": float(torch.cat(self._accuracy_N).double().mean()),
            "num_images": num_images,
        }


class DiceLoss(nn.Module):
    """One minus the soft Dice coefficient of sigmoid(logits) and mask, taken over the whole batch at once.

    Over the batch and not by image, so that an image without foreground does not dominate; ``smooth`` keeps
    a batch without any foreground finite.

    Note:
        Milletari et al. square the terms of the denominator; this sums them plainly, which is the form that
        the U-Net literature on brain MRI uses.

    References:
        Milletari, Navab, Ahmadi: V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
        Segmentation, 3DV 2016.
    """

    def __init__(self, smooth: float = 1.0) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(self, logits_N1HW: Tensor, mask_N1HW: Tensor) -> Tensor:
        """Scalar in [0, 1), differentiable in the logits.

        Raises:
            ValueError: the shapes differ (broadcasting would give a wrong loss silently).
        """
        if logits_N1HW.shape != mask_N1HW.shape:
            raise ValueError(
                f"logits {tuple(logits_N1HW.shape)} and mask {tuple(mask_N1HW.shape)} differ in shape"
            )
        probability = logits_N1HW.sigmoid()
        mask = mask_N1HW.to(probability.dtype)
        overlap = (probability * mask).sum()
        return 1 - (2 * overlap + self.smooth) / (probability.sum() + mask.sum() + self.smooth)


def require_finite(logits: Tensor) -> None:
    """
    Raises:
        DivergedError: a logit is not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise DivergedError(
            "a logit is not finite in evaluation; lower --lr and start again from a checkpoint"
        )


def _one_against_rest(logits_NK: Tensor) -> Tensor:
    """Log-odds of each class against all others: orders images as softmax does, but never saturates."""
    num_classes = logits_NK.shape[1]
    others = [torch.cat((logits_NK[:, :k], logits_NK[:, k + 1 :]), dim=1) for k in range(num_classes)]
    return logits_NK - torch.stack([rest.logsumexp(dim=1) for rest in others], dim=1)


def _ranks(values_N: Tensor) -> Tensor:
    """Order of the values in [0, 1], ties kept: torchmetrics would squash margins and make new ties."""
    ranks = torch.searchsorted(values_N.sort().values, values_N).double()
    return ranks / max(float(ranks.max()), 1.0)
