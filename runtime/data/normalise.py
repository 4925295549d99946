"""From uint8 pictures to what a network takes, and back to pictures for figures and the threat judge.

Shape legend: N batch · C,H,W image.
"""

from typing import Literal

import torch
from torch import Tensor

from suture.runtime.errors import ConfigError

Normalisation = Literal["imagenet", "symmetric"]

# The statistics that torchvision's pretrained weights were trained with, for values in [0, 1].
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def check_normalisation(normalisation: str, channels: int) -> None:
    """Refuse a normalisation that does not exist or does not fit the number of channels.

    Raises:
        ConfigError: Unknown name, channels other than 1 or 3, or "imagenet" for grey images.
    """
    if channels not in (1, 3):
        raise ConfigError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")
    if normalisation not in ("imagenet", "symmetric"):
        raise ConfigError(f"unknown normalisation {normalisation!r}; known: imagenet, symmetric")
    if normalisation == "imagenet" and channels != 3:
        raise ConfigError("normalisation imagenet needs 3 channels, got 1; use symmetric for grey images")


def normalise(x_NCHW: Tensor, normalisation: Normalisation) -> Tensor:
    """Map float images in [0, 1] to the network's range: ImageNet statistics, or [-1, 1] ("symmetric")."""
    mean, std = _statistics(normalisation, x_NCHW)
    return (x_NCHW - mean) / std


def denormalise(inputs: Tensor, normalisation: Normalisation) -> Tensor:
    """Undo ``normalise``: (N, C, H, W) network inputs to float images, clamped to [0, 1]."""
    mean, std = _statistics(normalisation, inputs)
    return (inputs * std + mean).clamp(0.0, 1.0)


def _statistics(normalisation: Normalisation, like: Tensor) -> tuple[Tensor, Tensor]:
    channels = like.shape[-3]
    check_normalisation(normalisation, channels)
    if normalisation == "symmetric":
        return torch.full((), 0.5).to(like), torch.full((), 0.5).to(like)
    mean = torch.tensor(_IMAGENET_MEAN).to(like).view(3, 1, 1)
    std = torch.tensor(_IMAGENET_STD).to(like).view(3, 1, 1)
    return mean, std
