"""The three nets of FSHA for any smashed shape: as published, and light ones that a CPU can train.

Pasquini, Ateniese, Bernaschi: Unleashing the Tiger: Inference Attacks on Split Learning, CCS 2021,
arXiv:2012.02670, appendix A; the strides follow from the ratio of image to smashed data.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND), here always (N, D, H', W').
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suture.threats.attacks.shapes import num_halvings


@dataclass(frozen=True, kw_only=True)
class NetSizes:
    """Channels of the three nets.

    Attributes:
        coder: widest convolution of pilot and decoder.
        critic: channels of the critic.
        blocks: its residual blocks.
    """

    coder: int
    critic: int
    blocks: int

    def scaled(self, width: float) -> NetSizes:
        """All channels times ``width``, at least 4."""
        coder, critic = (max(4, round(channels * width)) for channels in (self.coder, self.critic))
        return NetSizes(coder=coder, critic=critic, blocks=self.blocks)


SIZES: dict[str, NetSizes] = {
    "published": NetSizes(coder=256, critic=256, blocks=6),
    "light": NetSizes(coder=32, critic=32, blocks=1),
}


class Pilot(nn.Module):
    """The attacker's stand-in for the client's net: x_NCHW in [-1, 1] to its own feature space h_ND.

    Linear activations, as published; strides of 2 until the size of the smashed data is reached. With
    ``nonnegative`` the last convolution is followed by a ReLU.

    Note:
        The paper's pilot is linear. A client cut behind a ReLU can never reach a feature space with negative
        values, and a critic tells the two apart by the sign alone, so the pilot must end as the client does.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        smashed_shape: tuple[int, ...],
        channels: int,
        *,
        nonnegative: bool,
    ) -> None:
        super().__init__()
        depth, height, width = _spatial(smashed_shape)
        layers: list[nn.Module] = []
        into = image_shape[0]
        halvings = num_halvings(image_shape[1], height)
        for step in range(halvings):
            # Published: 64, 128, 256 channels; the light nets stay at their width.
            out = max(channels // 2 ** max(0, 2 - step), min(channels, 32))
            layers.append(nn.Conv2d(into, out, 3, stride=2, padding=1))
            into = out
        layers.append(nn.Conv2d(into, depth, 3, padding=1))
        self.convs = nn.Sequential(*layers)
        self._size, self._nonnegative, self._shape = (height, width), nonnegative, smashed_shape

    def forward(self, x_NCHW: Tensor) -> Tensor:
        h = self.convs(x_NCHW)
        if h.shape[-2:] != self._size:
            h = F.adaptive_avg_pool2d(h, self._size)
        h = F.relu(h) if self._nonnegative else h
        return h.reshape(len(h), *self._shape)


class Decoder(nn.Module):
    """From the feature space back to images: h_ND to x_NCHW in [-1, 1]; transposed convolutions and tanh.

    Args:
        smashed_shape: without batch.
        image_shape: (C, H, W).
        channels: widest layer.
        start: mean image in [-1, 1] (C, H, W) that the last layer starts from. Without it, and a deep cut,
            training on digits collapses to the all-black image.
    """

    def __init__(
        self,
        smashed_shape: tuple[int, ...],
        image_shape: tuple[int, int, int],
        channels: int,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        depth, height, _ = _spatial(smashed_shape)
        layers: list[nn.Module] = []
        into = depth
        for step in range(num_halvings(image_shape[1], height)):
            out = max(channels // 2**step, min(channels, 32))
            layers += [nn.ConvTranspose2d(into, out, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            into = out
        if not layers:
            layers, into = [nn.Conv2d(into, channels, 3, padding=1), nn.LeakyReLU(0.2)], channels
        self.body = nn.Sequential(*layers)
        self.last = nn.Conv2d(into, image_shape[0], 3, padding=1)
        self._size, self._depth, self._height = image_shape[1:], depth, height
        if start is None:
            start = torch.zeros(image_shape)
        # A bias a pixel before the tanh: what differs from the mean image is left to the convolutions.
        self.start = nn.Parameter(torch.atanh(start.clamp(-0.97, 0.97)))

    def forward(self, h_ND: Tensor) -> Tensor:
        h = self.body(h_ND.reshape(len(h_ND), self._depth, self._height, -1))
        if h.shape[-2:] != self._size:
            h = F.interpolate(h, self._size, mode="bilinear", align_corners=False)
        return torch.tanh(self.last(h) + self.start)


class PropertyReader(nn.Module):
    """In the decoder's place: h_ND to the logits_NK of a property of the image."""

    def __init__(self, smashed_shape: tuple[int, ...], channels: int, num_classes: int) -> None:
        super().__init__()
        depth, height, width = _spatial(smashed_shape)
        self.body = nn.Sequential(
            nn.Conv2d(depth, 2 * channels, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * channels, 2 * channels, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(2 * channels * math.ceil(height / 2) * math.ceil(width / 2), num_classes),
        )
        self._spatial = (depth, height, width)

    def forward(self, h_ND: Tensor) -> Tensor:
        logits: Tensor = self.body(h_ND.reshape(len(h_ND), *self._spatial))
        return logits


class ResidualBlock(nn.Module):
    """Pre-activation, without batch norm: a gradient penalty a sample needs samples that do not mix."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.body(h)
        return out


class Critic(nn.Module):
    """h_ND to one score a sample: high for a client's smashed data, low for the pilot's (as published)."""

    def __init__(self, smashed_shape: tuple[int, ...], channels: int, blocks: int) -> None:
        super().__init__()
        depth, height, width = _spatial(smashed_shape)
        self.body = nn.Sequential(
            nn.Conv2d(depth, channels, 3, padding=1),
            *[ResidualBlock(channels) for _ in range(blocks)],
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        )
        self.score = nn.Linear(channels * math.ceil(height / 2) * math.ceil(width / 2), 1)
        self._spatial = (depth, height, width)

    def forward(self, h_ND: Tensor) -> Tensor:
        h = self.body(h_ND.reshape(len(h_ND), *self._spatial))
        scores: Tensor = self.score(h.flatten(1)).squeeze(1)
        return scores


def _spatial(smashed_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(D, H', W'); features without a picture count as one pixel."""
    if len(smashed_shape) == 3:
        return smashed_shape[0], smashed_shape[1], smashed_shape[2]
    return math.prod(smashed_shape), 1, 1
