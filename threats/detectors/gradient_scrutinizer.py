"""Gradients Scrutinizer: an honest server pulls images of one class one way and those of another elsewhere.

Fu, Ma, Zhu, Wang, Du, Ji: Focusing on Pinocchio's nose: A gradients scrutinizer to thwart split-learning hijacking
attacks using intrinsic attributes, NDSS 2023.

Shape legend: N batch; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.errors import ConfigError
from runtime.hooks import Detector
from threats.client_view import ClientView, check_bounds


@dataclass(frozen=True, kw_only=True)
class ScrutinizerConfig:
    """Parameters of `GradientScrutinizer`.

    Attributes:
        window: the score is taken over so many of the newest batches, and the first alarm can come after them.
        threshold: alarm above this score.
    """

    window: int = 20
    threshold: float = 0.9

    def __post_init__(self) -> None:
        check_bounds("detector gradient-scrutinizer: window", self.window, 1)
        check_bounds("detector gradient-scrutinizer: threshold", self.threshold, 0.0, 1.0)


class GradientScrutinizer(Detector):
    """Compares cosines of gradients between images of one class and between images of different classes.

    A classifier's loss pulls images of one class alike and those of different classes apart, most clearly while
    it still has much to learn; a critic of features does not know the classes. The score is 1 minus the
    mean gap (same-class cosine minus different-class cosine), 0..1.

    Note:
        The paper's score also uses the overlap of the two sets of cosines and the error of a fitted curve; this
        one uses the gap alone. The client needs its labels, the server does not: labels may stay at home.

    Raises:
        ConfigError: the task has no classes.
    """

    def __init__(self, config: ScrutinizerConfig, view: ClientView) -> None:
        if view.task != "classification":
            raise ConfigError("detector gradient-scrutinizer compares classes, but this task is segmentation")
        self.config = config
        self._gaps: deque[float] = deque(maxlen=config.window)
        self._alarm = ""

    def observe(self, smashed: Tensor, grad: Tensor, labels: Tensor) -> None:
        """Takes the batch's gap; a batch with one class only, or without pairs in a class, says nothing."""
        gap = class_gap(grad, labels)
        if gap is None:
            return
        self._gaps.append(gap)
        if not self._alarm and len(self._gaps) == self.config.window and self.score() > self.config.threshold:
            self._alarm = (
                f"gradient-scrutinizer: over {self.config.window} batches gradients of one class were no more alike "
                f"than those of different classes (score {self.score():.2f}, bound {self.config.threshold:g}): the "
                "server does not teach the task"
            )

    def score(self) -> float:
        """1 minus the mean gap, held in 0..1; 0 before the first batch."""
        return min(1.0, max(0.0, 1 - sum(self._gaps) / len(self._gaps))) if self._gaps else 0.0

    def alarm(self) -> str:
        """The first alarm."""
        return self._alarm


def class_gap(grad_ND: Tensor, labels_N: Tensor) -> float | None:
    """Mean cosine of pairs in one class minus that of pairs across classes, -2..2; None without either kind."""
    g_ND = torch.nn.functional.normalize(grad_ND.flatten(1), dim=1)
    cosines_NN = g_ND @ g_ND.T
    same_NN = labels_N[:, None] == labels_N[None, :]
    different_NN = ~same_NN
    same_NN.fill_diagonal_(False)
    if not bool(same_NN.any()) or not bool(different_NN.any()):
        return None
    return float(cosines_NN[same_NN].mean() - cosines_NN[different_NN].mean())
