"""Training a decoder on pairs of smashed data and images.

Shape legend: N pairs; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from suture.threats.attacks.adra.nets import AdraDecoder


@dataclass(frozen=True, kw_only=True)
class DecoderTraining:
    """How a decoder is trained; see ``AdraConfig``."""

    loss: str = "mse"
    optimizer: str = "adam"
    lr: float = 2e-3
    epochs: int = 20
    batch: int = 32


def fit_decoder(
    decoder: AdraDecoder,
    smashed: Tensor,
    images: Tensor,
    training: DecoderTraining,
    generator: torch.Generator,
) -> Iterator[float]:
    """Trains ``decoder`` in place, one step an item: yields each step's loss before its optimizer steps.

    Args:
        decoder: on any device; its scales are fitted first.
        smashed: h_ND.
        images: x_NCHW uint8.
        training: how.
        generator: draws the order.
    """
    device = next(decoder.parameters()).device
    decoder.fit_scales(smashed[:1000].to(device), images[:1000].float().div(255).to(device))
    parameters = list(decoder.parameters())
    optimizer: torch.optim.Optimizer
    if training.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, lr=training.lr)
    else:
        optimizer = torch.optim.SGD(parameters, lr=training.lr, momentum=0.9)
    batches = [b for b in range(0, len(images), training.batch) if len(images) - b > 1]
    # The learning rate falls to zero along a cosine: the last epochs settle the fine detail.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.epochs * len(batches))
    for _ in range(training.epochs):
        decoder.train()
        order = torch.randperm(len(images), generator=generator)
        for start in batches:
            rows = order[start : start + training.batch]
            wanted = images[rows].float().div_(255).to(device)
            loss = reconstruction_loss(training.loss, decoder(smashed[rows].to(device)), wanted)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            yield float(loss.detach())
            optimizer.step()
            schedule.step()


def reconstruction_loss(name: str, rebuilt: Tensor, wanted: Tensor) -> Tensor:
    """A scalar of two batches x_NCHW in [0, 1]: "l1", "mse", or "ssim": one minus the similarity."""
    if name == "l1":
        return F.l1_loss(rebuilt, wanted)
    if name == "mse":
        return F.mse_loss(rebuilt, wanted)
    from torchmetrics.functional.image import structural_similarity_index_measure

    side = min(wanted.shape[-2:])
    window = min(11, side if side % 2 else side - 1)
    similarity = structural_similarity_index_measure(
        rebuilt, wanted, sigma=1.5 * window / 11, kernel_size=window, data_range=1.0
    )
    assert isinstance(similarity, Tensor)
    return 1 - similarity
