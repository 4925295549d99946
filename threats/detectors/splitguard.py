"""SplitGuard: now and then a batch with wrong labels, to which an honest server must answer otherwise.

Erdogan, Küpçü, Cicek: SplitGuard: Detecting and mitigating training-hijacking attacks in split learning, WPES 2022,
arXiv:2108.09052. Known to fail against a server that keeps an honest shadow of the task and answers suspicious
batches from it (SplitSpy: Fu et al., 2023).

Shape legend: N batch; C channels at the cut; P places (pixels) at the cut; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from suture.runtime.errors import ConfigError
from suture.runtime.hooks import Detector
from suture.threats.client_view import ClientView, check_bounds
from suture.threats.strength import Strength

_STEEPNESS, _POWER = 5.0, 2.0  # the paper's sigmoid(5 S)**2


@dataclass(frozen=True, kw_only=True)
class SplitguardConfig:
    """Parameters of `SplitguardDetector`.

    Attributes:
        start: batches of a client before its first fake one, at least 4.
        p: chance of a fake batch from then on.
        window: a fake gradient is compared with so many of the newest regular ones, at least 3.
        patience: the alarm looks at the mean score over so many fake batches.
        threshold: alarm above this mean score. A server whose answers do not depend on labels scores about 0.8, an
            honest one that has begun to learn about 0.3.
    """

    strength: ClassVar[Strength] = Strength(parameter="threshold", stronger="lower")

    start: int = 60
    p: float = 0.1
    window: int = 11
    patience: int = 10
    threshold: float = 0.7

    def __post_init__(self) -> None:
        check_bounds("detector splitguard: start", self.start, 4)
        check_bounds("detector splitguard: p", self.p, 0.0, 0.5, open_low=True)
        check_bounds("detector splitguard: window", self.window, 3)
        check_bounds("detector splitguard: patience", self.patience, 1)
        check_bounds("detector splitguard: threshold", self.threshold, 0.0, 1.0)


class SplitguardDetector(Detector):
    """Compares the gradient of a fake batch (wrong labels) with those of regular ones, and these with each other.

    For a gradient f and a set R of others let angle be that between f and the mean of R, and gap how much longer f
    is than those of R on average, relative to that average. With the newest regular gradients for R,

        S = (angle(f, R) gap(f, R) - mean of angle(r, R) |gap(r, R)|) / (|gap(f, R)| + mean of |gap(r, R)|),

    each r compared with the others of R, and the score is 1 - sigmoid(5 S)**2.

    Note:
        The paper compares means over all fake and over all regular gradients so far. In the hundreds of batches of
        a small run there are a handful of fake ones: their mean is longer than that of many regular ones by its
        noise alone, and gradients of early and late training are mixed. Hence single gradients and their newest
        neighbours, and a gap that counts only where the fake gradient is longer.
        The paper compares gradients of the client's parameters. Here only what came home is at hand, so each
        batch's gradient is that of a 1x1 convolution which a client could have as its last layer: the sum over
        images and places of smashed data times gradient, a C x C matrix.
        An honest server that has not learnt anything yet cannot be told from a hostile one. A late start and ten fake
        batches bridge that time: with the paper's start of 20, three of eight honest runs on a slow task gave alarm
        with patience 5 and one of nine with 10.

    Raises:
        ConfigError: labels stay at home, or the task has no classes.
    """

    def __init__(self, config: SplitguardConfig, view: ClientView) -> None:
        if not view.labels_shared or view.task != "classification":
            raise ConfigError(
                "detector splitguard sends wrong labels to the server, but here labels stay at home; "
                "use --labels shared (classification), or --detector gradient-scrutinizer"
            )
        self.config = config
        self._num_classes = view.num_classes
        self._sends_fake = False
        self._regular: deque[Tensor] = deque(maxlen=config.window)
        self._scores: deque[float] = deque(maxlen=config.patience)
        self._alarm = ""

    def fake_labels(self, labels: Tensor, num_before: int, generator: torch.Generator) -> Tensor | None:
        """Every label moved to another class, in a random share ``p`` of the batches after ``start``."""
        drawn = float(torch.rand((), generator=generator))
        self._sends_fake = num_before >= self.config.start and drawn < self.config.p
        if not self._sends_fake:
            return None
        shift = torch.randint(1, self._num_classes, labels.shape, generator=generator)
        return (labels + shift) % self._num_classes

    def observe(self, smashed: Tensor, grad: Tensor, labels: Tensor) -> None:
        """Keeps a regular batch's gradient; scores a fake one's."""
        gradient = last_layer_gradient(smashed, grad)
        if not self._sends_fake:
            self._regular.append(gradient)
            return
        if len(self._regular) < 3:
            return  # after a resume there may be nothing yet to compare with
        self._scores.append(1 - guard_score(gradient, list(self._regular)))
        if (
            not self._alarm
            and len(self._scores) == self.config.patience
            and self.score() > self.config.threshold
        ):
            self._alarm = (
                f"splitguard: the last {self.config.patience} batches with wrong labels were answered like those "
                f"with right ones (score {self.score():.2f}, bound {self.config.threshold:g}): the server does not "
                "learn from labels"
            )

    def score(self) -> float:
        """Mean score over the last ``patience`` fake batches, 0..1; 0 before the first."""
        return sum(self._scores) / len(self._scores) if self._scores else 0.0

    def alarm(self) -> str:
        """The first alarm."""
        return self._alarm


def guard_score(fake: Tensor, regular: list[Tensor]) -> float:
    """The paper's SG in 0..1: near 1 where the fake gradient differs from regular ones more than these do."""
    angle, gap = _difference(fake, regular)
    among = [_difference(r, regular[:k] + regular[k + 1 :]) for k, r in enumerate(regular)]
    usual = sum(abs(g) for _, g in among) / len(among)
    both = abs(gap) + usual
    strength = (angle * gap - sum(a * abs(g) for a, g in among) / len(among)) / both if both > 0 else 0.0
    return float(1 / (1 + math.exp(-_STEEPNESS * strength)) ** _POWER)


def _difference(gradient: Tensor, others: list[Tensor]) -> tuple[float, float]:
    """Angle in radians to the mean of ``others``, and how much longer than they are on average, as a share."""
    stacked = torch.stack(others)
    mean, length = stacked.mean(dim=0), float(stacked.norm(dim=1).mean())
    lengths = float(gradient.norm() * mean.norm())
    if lengths == 0 or length == 0:
        return 0.0, 0.0
    return math.acos(max(-1.0, min(1.0, float(gradient @ mean) / lengths))), float(
        gradient.norm()
    ) / length - 1


def last_layer_gradient(smashed_NC: Tensor, grad_NC: Tensor) -> Tensor:
    """Gradient of the loss in the weights of a 1x1 convolution at the client's end, flattened: (C * C,)."""
    h_NCP, g_NCP = smashed_NC.flatten(2), grad_NC.flatten(2)
    if h_NCP.dim() == 2:
        h_NCP, g_NCP = h_NCP.unsqueeze(2), g_NCP.unsqueeze(2)
    return torch.einsum("ncp,ndp->dc", h_NCP, g_NCP).flatten()
