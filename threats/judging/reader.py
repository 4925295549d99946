"""The judge's reader: a classifier of auxiliary images that tells whether a reconstruction can be read.

A low error can still be a blur; a reader that names a digit from its reconstruction shows what leaked.

Shape legend: N images; C, H, W image; K classes (logits_NK).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suture.runtime.data.augment import augment
from suture.threats.attacks.auxiliary import Auxiliary

_STEPS, _BATCH = 600, 64


def train_reader(auxiliary: Auxiliary, steps: int = _STEPS) -> nn.Module:
    """Trains a small convolutional net on labelled auxiliary images; always the same for the same images.

    Raises:
        ValueError: the images have no labels.
    """
    if auxiliary.labels is None:
        raise ValueError("a reader needs labelled auxiliary images")
    generator = torch.Generator().manual_seed(0)
    num_classes = int(auxiliary.labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        reader = _build(auxiliary.images.shape[1], auxiliary.images.shape[2], num_classes)
    optimizer = torch.optim.Adam(reader.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    reader.train()
    for _ in range(steps):
        rows = torch.randint(len(auxiliary), (_BATCH,), generator=generator)
        images, _ = augment(auxiliary.unit(rows), None, mirror=auxiliary.mirror, generator=generator)
        loss = F.cross_entropy(reader(images), auxiliary.labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return reader.eval()


@torch.no_grad()
def read_with(reader: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images (x_NCHW in [0, 1]) whose class the reader names rightly."""
    right = [(reader(x).argmax(1) == y) for x, y in zip(images.split(256), labels.split(256), strict=True)]
    return float(torch.cat(right).float().mean())


def _build(channels: int, image_size: int, num_classes: int) -> nn.Module:
    # The reader looks at 32 pixels a side at most: a judge on a laptop has minutes, not hours.
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(32)] if image_size > 32 else []
    for into, out in ((channels, 16), (16, 32), (32, 64)):
        layers += [
            nn.Conv2d(into, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 16, num_classes)]
    return nn.Sequential(*layers)
