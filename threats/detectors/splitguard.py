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

import torch
from torch import Tensor

from runtime.errors import ConfigError
from runtime.hooks import Detector
from threats.client_view import ClientView, check_bounds

_STEEPNESS, _POWER = 5.0, 2.0  # the paper's sigmoid(5 S)**2


@dataclass(frozen=True, kw_only=True)
class SplitguardConfig:
    """Parameters of `SplitguardDetector`.

    Attributes:
        start: batches of a client before its first fake one, at least 2.
        p: chance of a fake batch from then on.
        window: as many of the newest regular (and of the newest fake) gradients are compared; at least 4.
        patience: the alarm looks at the mean score over so many fake batches.
        threshold: alarm above this mean score. A server whose answers do not depend on labels scores about
            0.75, an honest one that has learnt something near 0.
    """

    start: int = 20
    p: float = 0.1
    window: int = 100
    patience: int = 5
    threshold: float = 0.6

    def __post_init__(self) -> None:
        check_bounds("detector splitguard: start", self.start, 2)
        check_bounds("detector splitguard: p", self.p, 0.0, 0.5, open_low=True)
        check_bounds("detector splitguard: window", self.window, 4)
        check_bounds("detector splitguard: patience", self.patience, 1)
        check_bounds("detector splitguard: threshold", self.threshold, 0.0, 1.0)


class SplitguardDetector(Detector):
    """Compares the gradients of fake batches (wrong labels) with those of regular ones, and these with each other.

    For sets A and B of gradients let angle(A, B) be that between their means and gap(A, B) the difference of the
    means' lengths. With F the fake, R1 and R2 two halves of the regular and R all regular gradients,

        S = (angle(F, R) gap(F, R) - angle(R1, R2) gap(R1, R2)) / (gap(F, R) + gap(R1, R2)),

    and the score is 1 - sigmoid(5 S)**2: 0.75 where fake and regular batches are answered alike.

    Note:
        The paper compares gradients of the client's parameters. Here only what came home is at hand, so each
        batch's gradient is that of a 1x1 convolution which a client could have as its last layer: the sum over
        images and places of smashed data times gradient, a C x C matrix.
        Labels must be shared: where they stay at home the loss and its gradient are the client's own.

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
        self._fake: deque[Tensor] = deque(maxlen=config.window)
        self._regular: tuple[deque[Tensor], deque[Tensor]] = (
            deque(maxlen=config.window // 2),
            deque(maxlen=config.window // 2),
        )
        self._num_regular = 0
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
        """Files the batch's gradient under fake or regular, and after a fake one scores anew."""
        gradient = last_layer_gradient(smashed, grad)
        if not self._sends_fake:
            self._regular[self._num_regular % 2].append(gradient)
            self._num_regular += 1
            return
        self._fake.append(gradient)
        if min(map(len, self._regular)) < 2:
            return
        self._scores.append(1 - guard_score(list(self._fake), *map(list, self._regular)))
        mean = sum(self._scores) / len(self._scores)
        if not self._alarm and len(self._scores) == self.config.patience and mean > self.config.threshold:
            self._alarm = (
                f"splitguard: the last {self.config.patience} batches with wrong labels were answered like those "
                f"with right ones (score {mean:.2f}, bound {self.config.threshold:g}): the server does not learn "
                "from labels"
            )

    def score(self) -> float:
        """Mean score over the last ``patience`` fake batches, 0..1; 0 before the first."""
        return sum(self._scores) / len(self._scores) if self._scores else 0.0

    def alarm(self) -> str:
        """The first alarm."""
        return self._alarm


def guard_score(fake: list[Tensor], first: list[Tensor], second: list[Tensor]) -> float:
    """The paper's SG in 0..1: near 1 where fake gradients differ from regular ones more than these do."""
    f, r1, r2, r = (torch.stack(part).mean(dim=0) for part in (fake, first, second, [*first, *second]))
    gap_fake, gap_regular = abs(float(f.norm() - r.norm())), abs(float(r1.norm() - r2.norm()))
    both = gap_fake + gap_regular
    strength = (_angle(f, r) * gap_fake - _angle(r1, r2) * gap_regular) / both if both > 0 else 0.0
    return float(1 / (1 + math.exp(-_STEEPNESS * strength)) ** _POWER)


def last_layer_gradient(smashed_NC: Tensor, grad_NC: Tensor) -> Tensor:
    """Gradient of the loss in the weights of a 1x1 convolution at the client's end, flattened: (C * C,)."""
    h_NCP, g_NCP = smashed_NC.flatten(2), grad_NC.flatten(2)
    if h_NCP.dim() == 2:
        h_NCP, g_NCP = h_NCP.unsqueeze(2), g_NCP.unsqueeze(2)
    return torch.einsum("ncp,ndp->dc", h_NCP, g_NCP).flatten()


def _angle(first: Tensor, second: Tensor) -> float:
    """Radians between two vectors, 0 where one of them is 0."""
    lengths = float(first.norm() * second.norm())
    return math.acos(max(-1.0, min(1.0, float(first @ second) / lengths))) if lengths > 0 else 0.0
