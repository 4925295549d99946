"""Small images that two people can have a domain of in common, and a bottom for them."""

import torch
from torch import Tensor, nn


def glyphs(count: int, seed: int) -> Tensor:
    """Images of four strokes' shapes, moved and dimmed a little, x_NCHW uint8: a domain that two people can share.

    The shapes are told from their mirror images: features of symmetric ones could be matched upside down.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 16, 16)
    kinds = torch.randint(4, (count,), generator=generator).tolist()
    corners = (torch.randint(-2, 3, (count, 2), generator=generator) + 3).tolist()
    for image, kind, (top, left) in zip(images, kinds, corners, strict=True):
        if kind in (0, 1):
            image[top : top + 9, left : left + 2] = 1
        if kind in (0, 2):
            image[top + 7 : top + 9, left : left + 8] = 1
        if kind in (1, 3):
            image[top : top + 2, left : left + 8] = 1
        if kind == 3:
            image[top : top + 9, left + 6 : left + 8] = 1
    bright = torch.rand(count, 1, 1, generator=generator) * 0.4 + 0.6
    return (255 * images * bright).round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1).clone()


def small_bottom(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3, 2, 1), nn.ReLU()
    )
