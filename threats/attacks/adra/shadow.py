"""A shadow of the client's bottom, trained in front of the server's own top on the attacker's images.

The server never touches a client: it freezes a copy of its top and trains a bottom of the same architecture
until that top reads the attacker's labelled images, and until the shadow's smashed data have the statistics
of those that crossed the wire. Fu et al., Label Inference Attacks, USENIX Security 2022 (model completion);
Gao and Zhang, PCAT, USENIX Security 2023.

Shape legend: N images; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suture.runtime.data.normalise import normalise
from suture.threats.attacks.learning import Learning, Plateau, split_pairs


@dataclass(frozen=True, kw_only=True)
class ShadowTraining:
    """How the shadow is trained; see ``AdraConfig``."""

    epochs: int = 100
    patience: int = 8
    batch: int = 32
    lr: float = 1e-3
    align: float = 10.0


def train_shadow(
    bottom: nn.Module,
    top: nn.Module,
    images: Tensor,
    labels: Tensor,
    seen: Tensor,
    training: ShadowTraining,
    generator: torch.Generator,
    record: Callable[..., None],
) -> tuple[Tensor, Learning]:
    """Trains ``bottom`` in place until it no longer gains on a tenth of the images; its best weights are kept.

    Returns:
        Its smashed data of ``images`` (h_ND), in evaluation mode, and how the training went.

    Args:
        bottom: fresh, returns ``BottomOutput``.
        top: the server's; copied and frozen, never changed.
        images: x_NCHW uint8.
        labels: y_N int64.
        seen: smashed data that crossed the wire, h_ND.
        training: how.
        generator: draws the order.
        record: is told every step's losses.
    """
    top = copy.deepcopy(top).eval()
    for parameter in top.parameters():
        parameter.requires_grad_(False)
    mean, deviation = _moments(seen)
    scale = deviation.mean().clamp_min(1e-6)
    optimizer = torch.optim.Adam(bottom.parameters(), lr=training.lr)
    rows, held_back = split_pairs(len(images), generator)
    plateau, steps, best = Plateau(optimizer, training.patience), 0, copy.deepcopy(bottom.state_dict())

    def losses(chosen: Tensor) -> tuple[Tensor, Tensor]:
        h = bottom(_normalised(images[chosen]))[0]
        here, spread = _moments(h)
        align = ((here - mean) / scale).square().mean() + ((spread - deviation) / scale).square().mean()
        return F.cross_entropy(top(h), labels[chosen]), align

    for _ in range(training.epochs):
        bottom.train()
        for chosen in rows[torch.randperm(len(rows), generator=generator)].split(training.batch):
            if len(chosen) < 2:
                continue
            task, align = losses(chosen)
            optimizer.zero_grad(set_to_none=True)
            (task + training.align * align).backward()
            optimizer.step()
            steps += 1
            record(shadow_task=float(task.detach()), shadow_align=float(align.detach()))
        if len(held_back) < 2:  # no spread of one
            continue
        bottom.eval()
        with torch.no_grad():
            task, align = losses(held_back)
        if plateau.is_best(steps, float(task + training.align * align)):
            best = copy.deepcopy(bottom.state_dict())
        if plateau.is_reached():
            break
    if len(held_back) > 1:
        bottom.load_state_dict(best)
    plateau.learning.budget = f"{training.epochs} passes of the shadow over {len(rows)} images"
    bottom.eval()
    with torch.no_grad():
        return torch.cat([bottom(_normalised(part))[0] for part in images.split(64)]), plateau.learning


def _normalised(images: Tensor) -> Tensor:
    """As every classifier here takes its images: ImageNet's mean and deviation."""
    return normalise(images.float().div(255), "imagenet")


def _moments(h_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over the batch at every place: where a channel is active matters too."""
    return h_ND.mean(0), h_ND.std(0)
