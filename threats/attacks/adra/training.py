"""Training a decoder on pairs of smashed data and images.

Shape legend: N pairs; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from suture.threats.attacks.adra.nets import AdraDecoder
from suture.threats.attacks.learning import Learning, Plateau, split_pairs


@dataclass(frozen=True, kw_only=True)
class DecoderTraining:
    """How a decoder is trained; see ``AdraConfig``."""

    loss: str = "mse"
    optimizer: str = "adam"
    lr: float = 2e-3
    epochs: int = 300
    patience: int = 8
    batch: int = 32


def fit_decoder(
    decoder: AdraDecoder,
    smashed: Tensor,
    images: Tensor,
    training: DecoderTraining,
    generator: torch.Generator,
    record: Callable[[float], None],
) -> Learning:
    """Trains ``decoder`` in place until it no longer gains on a tenth of the pairs, and keeps its best weights.

    Args:
        decoder: on any device; its scales are fitted first.
        smashed: h_ND.
        images: x_NCHW uint8.
        training: how.
        generator: draws the order, and which pairs are validated on.
        record: is told each step's loss before its optimizer steps.
    """
    device = next(decoder.parameters()).device
    rows, held_back = split_pairs(len(images), generator)
    first = rows[:1000]
    decoder.fit_scales(smashed[first].to(device), images[first].float().div(255).to(device))
    optimizer = _optimizer(decoder, training)
    plateau, steps, best = Plateau(optimizer, training.patience), 0, copy.deepcopy(decoder.state_dict())

    def loss_of(chosen: Tensor) -> Tensor:
        wanted = images[chosen].float().div_(255).to(device)
        return reconstruction_loss(training.loss, decoder(smashed[chosen].to(device)), wanted)

    for _ in range(training.epochs):
        decoder.train()
        for chosen in rows[torch.randperm(len(rows), generator=generator)].split(training.batch):
            if len(chosen) < 2:  # batch norm cannot train on one
                continue
            loss = loss_of(chosen)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            record(float(loss.detach()))
            optimizer.step()
            steps += 1
        if len(held_back) and plateau.is_best(steps, _validation(decoder, held_back, loss_of)):
            best = copy.deepcopy(decoder.state_dict())
        if len(held_back) and plateau.is_reached():
            break
    if len(held_back):
        decoder.load_state_dict(best)
    plateau.learning.budget = f"{training.epochs} passes over {len(rows)} pairs"
    return plateau.learning


def _optimizer(decoder: AdraDecoder, training: DecoderTraining) -> torch.optim.Optimizer:
    if training.optimizer == "adam":
        return torch.optim.Adam(decoder.parameters(), lr=training.lr)
    return torch.optim.SGD(decoder.parameters(), lr=training.lr, momentum=0.9)


@torch.no_grad()
def _validation(decoder: AdraDecoder, rows: Tensor, loss_of: Callable[[Tensor], Tensor]) -> float:
    """Mean loss over ``rows``, in evaluation mode."""
    decoder.eval()
    return sum(float(loss_of(part)) * len(part) for part in rows.split(64)) / len(rows)


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
