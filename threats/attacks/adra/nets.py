"""ADRA's decoders, whose shape follows from the smashed data's at any cut.

SLDML, "Split Learning for Distributed Collaborative Training of Deep Learning Models in Health Informatics"
(2021); the study's decoder at cut 7 of ResNet-34 is: convolution to 32 channels, four transposed convolutions
of 32 channels and stride 2, one of 3 channels and stride 2, with batch norm and ReLU between them.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suture.threats.attacks.shapes import num_halvings

STUDY_CHANNELS = 32


class AdraDecoder(nn.Module):
    """h_ND to x_NCHW in [0, 1]: the study's decoder, with as many steps as the cut needs.

    Args:
        smashed_shape: without the batch; features without a picture count as one pixel.
        image_shape: (C, H, W).
        width: factor on the study's 32 channels; an attacker that fights a defence takes a wider net.
        blocks: residual blocks before the first transposed convolution; the study has none.

    Note:
        The study's last layer is linear, in ImageNet-normalised units. Here a sigmoid keeps images in [0, 1],
        around a learnt mean image, and the input is standardised per channel by what the training pairs
        showed.
    """

    def __init__(
        self,
        smashed_shape: tuple[int, ...],
        image_shape: tuple[int, int, int],
        width: float = 1.0,
        blocks: int = 0,
    ) -> None:
        super().__init__()
        depth, height = (
            (smashed_shape[0], smashed_shape[1]) if len(smashed_shape) == 3 else (math.prod(smashed_shape), 1)
        )
        channels = max(4, round(STUDY_CHANNELS * width))
        steps = num_halvings(image_shape[1], height)
        layers: list[nn.Module] = [_normed(nn.Conv2d(depth, channels, 3, padding=1, bias=False))]
        layers += [_Residual(channels) for _ in range(blocks)]
        for _ in range(steps - 1):
            layers.append(_normed(nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)))
        self.body = nn.Sequential(*layers)
        last = nn.ConvTranspose2d(channels, image_shape[0], 4, stride=2, padding=1)
        self.last = last if steps else nn.Conv2d(channels, image_shape[0], 3, padding=1)
        self.start = nn.Parameter(torch.zeros(image_shape))
        self.register_buffer("shift", torch.zeros(depth, 1, 1))
        self.register_buffer("spread", torch.ones(depth, 1, 1))
        self._size, self._depth, self._height = image_shape[1:], depth, height

    def fit_scales(self, smashed: Tensor, images: Tensor) -> None:
        """Sets the input's scales and the mean image that the output starts from (x_NCHW in [0, 1])."""
        h = self._pictures(smashed)
        self.shift = h.mean((0, 2, 3)).reshape(-1, 1, 1)
        spread = h.std((0, 2, 3)).reshape(-1, 1, 1)
        self.spread = spread.clamp_min(0.05 * float(spread.mean()) + 1e-6)
        with torch.no_grad():
            self.start.copy_(torch.logit(images.mean(0).clamp(0.02, 0.98)))

    def forward(self, h_ND: Tensor) -> Tensor:
        h = self.last(self.body((self._pictures(h_ND) - self.shift) / self.spread))
        if h.shape[-2:] != self._size:
            h = F.interpolate(h, self._size, mode="bilinear", align_corners=False)
        return torch.sigmoid(h + self.start)

    def _pictures(self, h_ND: Tensor) -> Tensor:
        return h_ND.reshape(len(h_ND), self._depth, self._height, -1)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _normed(nn.Conv2d(channels, channels, 3, padding=1, bias=False)),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.body(h)
        return out


def _normed(convolution: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU())
