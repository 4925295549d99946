"""What a task means: how many outputs a net has for it, its loss, its scores, and how outputs become predictions.

One `Objective` a task; nothing else asks for a task by name to decide these.

Shape legend: N batch; H, W image; K classes or findings (p_NK).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from suture.runtime.data.source import Task
from suture.runtime.errors import ConfigError
from suture.runtime.training.findings import FindingsLoss, finding_scores
from suture.runtime.training.metrics import (
    ClassificationScores,
    DiceLoss,
    Scores,
    SegmentationScores,
    class_scores,
    require_finite,
)
from suture.runtime.training.ordinal import CornLoss, grade_probabilities, grades_of, quadratic_kappa
from suture.runtime.wire.checks import TensorSpec


class Objective:
    """One task.

    Attributes:
        metrics: the score by which rounds are compared (larger is better), and what takes its place where it is not
            defined.
        smooths: whether label smoothing means something.
    """

    metrics: ClassVar[tuple[str, ...]]
    smooths: ClassVar[bool] = False

    def num_outputs(self, num_classes: int) -> int:
        """Outputs of the net."""
        return num_classes

    def criterion(self, weights_K: Tensor | None, label_smoothing: float) -> nn.Module:
        """The loss: ``criterion(outputs, targets) -> scalar``."""
        raise NotImplementedError

    def scores(self, classes: Sequence[str]) -> Scores:
        """A fresh accumulator of outputs and targets."""
        raise NotImplementedError

    def probabilities(self, outputs: Tensor) -> Tensor:
        """p_NK by class, or p_N1HW of the mask."""
        return outputs.sigmoid()

    def decided(self, probabilities: Tensor) -> Tensor:
        """What is predicted: class numbers (N), or whether each finding, or pixel, is there."""
        return probabilities > 0.5

    def labels(self, num_classes: int, max_batch: int) -> TensorSpec:
        """What labels must look like where they are shared."""
        return TensorSpec((), torch.int64, max_batch, below=num_classes)

    def balanced(self, counts_K: Sequence[int], num_images: int) -> tuple[float, ...]:
        """weights_K for the loss by which the rarer classes count for more, from images by class."""
        # A class that a site has no images of is never looked up, and must not count among those that share the weight.
        num_present = sum(count > 0 for count in counts_K)
        return tuple(sum(counts_K) / (num_present * count) if count else 1.0 for count in counts_K)


class Classes(Objective):
    """One of K classes an image: cross-entropy, AUROC.

    Note:
        The published study put a softmax before its cross-entropy, which applies softmax itself and so flattens the
        gradient; here the criterion gets logits.
    """

    metrics = ("auroc", "balanced_accuracy")
    smooths = True

    def criterion(self, weights_K: Tensor | None, label_smoothing: float) -> nn.Module:
        return nn.CrossEntropyLoss(weight=weights_K, label_smoothing=label_smoothing)

    def scores(self, classes: Sequence[str]) -> Scores:
        return ClassificationScores(len(classes))

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(dim=1)

    def decided(self, probabilities: Tensor) -> Tensor:
        return probabilities.argmax(dim=1)


class Grades(Objective):
    """One of K ordered classes an image; see `ordinal`."""

    metrics = ("quadratic_kappa", "balanced_accuracy")

    def num_outputs(self, num_classes: int) -> int:
        return num_classes - 1

    def criterion(self, weights_K: Tensor | None, label_smoothing: float) -> nn.Module:
        return CornLoss(weights_K)

    def scores(self, classes: Sequence[str]) -> Scores:
        return _Collected(lambda outputs_NT, labels_N: self._scored(outputs_NT, labels_N, len(classes)))

    def _scored(self, outputs_NT: Tensor, labels_N: Tensor, num_grades: int) -> dict[str, float]:
        predicted_N = self.decided(self.probabilities(outputs_NT))
        kappa = quadratic_kappa(labels_N, predicted_N, num_grades)
        found = class_scores(predicted_N, labels_N, num_grades)
        return found if kappa is None else {"quadratic_kappa": kappa} | found

    def probabilities(self, outputs: Tensor) -> Tensor:
        return grade_probabilities(outputs)

    def decided(self, probabilities: Tensor) -> Tensor:
        return grades_of(probabilities)


class Findings(Objective):
    """Any of K findings an image; see `findings`."""

    metrics = ("auroc", "label_accuracy")

    def criterion(self, weights_K: Tensor | None, label_smoothing: float) -> nn.Module:
        return FindingsLoss(weights_K)

    def scores(self, classes: Sequence[str]) -> Scores:
        return _Collected(lambda outputs_NK, targets_NK: finding_scores(outputs_NK, targets_NK, classes))

    def labels(self, num_classes: int, max_batch: int) -> TensorSpec:
        return TensorSpec((num_classes,), torch.int64, max_batch, below=2)

    def balanced(self, counts_K: Sequence[int], num_images: int) -> tuple[float, ...]:
        """Of an image that has a finding against one that has not."""
        return tuple((num_images - n) / n if 0 < n < num_images else 1.0 for n in counts_K)


class Masks(Objective):
    """One structure an image: Dice loss, Jaccard index."""

    metrics = ("jaccard",)

    def num_outputs(self, num_classes: int) -> int:
        return 1

    def criterion(self, weights_K: Tensor | None, label_smoothing: float) -> nn.Module:
        if weights_K is not None:
            raise ConfigError(
                "class weights are for classification; use --class-weights none for segmentation"
            )
        return DiceLoss()

    def scores(self, classes: Sequence[str]) -> Scores:
        return SegmentationScores()


class _Collected:
    """Keeps outputs and targets, and scores them all at once with a function."""

    def __init__(self, scored: Callable[[Tensor, Tensor], dict[str, float]]) -> None:
        self._scored = scored
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, logits: Tensor, targets: Tensor) -> None:
        require_finite(logits)
        self._outputs.append(logits.detach().double().cpu())
        self._targets.append(targets.detach().long().cpu())

    def compute(self) -> dict[str, float]:
        num_images = sum(map(len, self._targets))
        if not num_images:
            return {"num_images": 0}
        found = self._scored(torch.cat(self._outputs), torch.cat(self._targets))
        return found | {"num_images": num_images}


OBJECTIVES: dict[Task, Objective] = {
    Task.CLASSIFICATION: Classes(),
    Task.ORDINAL: Grades(),
    Task.MULTI_LABEL: Findings(),
    Task.SEGMENTATION: Masks(),
}


def objective(task: str) -> Objective:
    """What ``task`` means.

    Raises:
        ConfigError: unknown task.
    """
    if task not in OBJECTIVES:
        raise ConfigError(f"unknown task {task!r}; known: {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[Task(task)]


def main_metric(task: str) -> str:
    """Name of the score by which rounds are compared, such as "auroc" or "jaccard" (larger is better)."""
    return objective(task).metrics[0]


def main_score(task: str, scores: Mapping[str, float]) -> float | None:
    """Value of the main metric in ``scores``, or of its fallback (balanced accuracy for AUROC).

    Returns:
        None where ``scores`` holds neither: nothing was evaluated.
    """
    return next((scores[name] for name in objective(task).metrics if name in scores), None)


def build_scores(task: str, classes: int | Sequence[str]) -> Scores:
    """A fresh accumulator for ``task``; ``classes`` by name, or how many."""
    named = [str(number) for number in range(classes)] if isinstance(classes, int) else classes
    return objective(task).scores(named)


def build_criterion(
    task: str, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> nn.Module:
    """The loss of ``task``.

    Args:
        task: which.
        class_weights: (K,) weight of each class, not for masks.
        label_smoothing: share of each label that is spread over all classes, classification only.

    Raises:
        ConfigError: unknown task, or weights or smoothing for one that has none.
    """
    found = objective(task)
    if label_smoothing and not found.smooths:
        raise ConfigError(f"label-smoothing is for classification; leave it out for {task}")
    return found.criterion(class_weights, label_smoothing)
