"""Gradients Scrutinizer: an honest server pulls images of one class one way and those of another elsewhere.

Fu, Ma, Zhu, Wang, Du, Ji: Focusing on Pinocchio's nose: A gradients scrutinizer to thwart split-learning hijacking
attacks using intrinsic attributes, NDSS 2023.

Shape legend: N batch; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from suture.runtime.errors import ConfigError
from suture.runtime.hooks import Detector
from suture.threats.client_view import ClientView, check_bounds
from suture.threats.strength import Strength

_FLOOR = 0.02  # cosines below this are noise of small batches


@dataclass(frozen=True, kw_only=True)
class ScrutinizerConfig:
    """Parameters of `GradientScrutinizer`.

    Attributes:
        window: the score is taken over so many of the newest batches, and the first alarm can come after them.
        threshold: alarm above this score. A critic's gradients score near 1, an honest server's below 0.5.
    """

    strength: ClassVar[Strength] = Strength(parameter="threshold", stronger="lower")

    window: int = 20
    threshold: float = 0.8

    def __post_init__(self) -> None:
        check_bounds("detector gradient-scrutinizer: window", self.window, 1)
        check_bounds("detector gradient-scrutinizer: threshold", self.threshold, 0.0, 1.0)


class GradientScrutinizer(Detector):
    """Compares cosines of gradients between images of one class and between images of different classes.

    A classifier's loss pulls images of one class alike and those of different classes apart. A critic of
    features moves all images alike, whatever their class. With same and different the mean cosines of both kinds
    of pairs over the window and gap = same - different (at least 0), the score is

        1 - gap / (gap + max(different, 0) + 0.02),

    one minus the share of the gradients' likeness that depends on the class.

    Note:
        The paper's score is made of the gap, the overlap of the two sets of cosines and the error of a fitted
        curve; this one relates the gap to the common part instead, because a converging critic's gap is as
        small as an honest one's in a hard batch, and its common part is not.
        The client needs its labels, the server does not: labels may stay at home.

    Raises:
        ConfigError: the task has no classes.
    """

    def __init__(self, config: ScrutinizerConfig, view: ClientView) -> None:
        if view.task != "classification":
            raise ConfigError(
                "detector gradient-scrutinizer compares classes, but this task is segmentation; leave --detector out"
            )
        self.config = config
        self._cosines: deque[tuple[float, float]] = deque(maxlen=config.window)
        self._alarm = ""

    def observe(self, smashed: Tensor, grad: Tensor, labels: Tensor) -> None:
        """Takes the batch's two cosines; a batch that lacks one of the two kinds of pairs says nothing."""
        cosines = class_cosines(grad, labels)
        if cosines is None:
            return
        self._cosines.append(cosines)
        if (
            not self._alarm
            and len(self._cosines) == self.config.window
            and self.score() > self.config.threshold
        ):
            self._alarm = (
                f"gradient-scrutinizer: over {self.config.window} batches gradients of one class were hardly more "
                f"alike than those of different classes (score {self.score():.2f}, bound {self.config.threshold:g}): "
                "the server does not teach the task"
            )

    def score(self) -> float:
        """Over the window, 0..1; 0 before the first batch."""
        if not self._cosines:
            return 0.0
        same, different = (sum(side) / len(side) for side in zip(*self._cosines, strict=True))
        gap = max(0.0, same - different)
        return float(1 - gap / (gap + max(0.0, different) + _FLOOR))

    def alarm(self) -> str:
        """The first alarm."""
        return self._alarm


def class_cosines(grad_ND: Tensor, labels_N: Tensor) -> tuple[float, float] | None:
    """Mean cosines of pairs in one class and of pairs across classes; None where either kind is missing."""
    g_ND = torch.nn.functional.normalize(grad_ND.flatten(1), dim=1)
    cosines_NN = g_ND @ g_ND.T
    labels_N = labels_N.to(g_ND.device)
    same_NN = labels_N[:, None] == labels_N[None, :]
    different_NN = ~same_NN
    same_NN.fill_diagonal_(False)
    if not bool(same_NN.any()) or not bool(different_NN.any()):
        return None
    return float(cosines_NN[same_NN].mean()), float(cosines_NN[different_NN].mean())
