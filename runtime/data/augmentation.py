"""The presets of ``--augment``: how training images are varied, by torchvision's own operations.

Every draw comes from the generator that a batch is given, as many for each image: a resumed run repeats them.

Shape legend: N batch · C,H,W image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode  # type: ignore[import-untyped, unused-ignore]
from torchvision.transforms.v2 import functional as tv

from suture.runtime.data.augment import augment

Augmentation = Callable[[Tensor, Tensor | None, bool, Generator], tuple[Tensor, Tensor | None]]
"""(x_NCHW in [0, 1], mask_N1HW or None, whether left and right may change places, generator) to the same."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How far an image may be moved and its colours changed; every range is symmetric.

    Attributes:
        rotation: degrees.
        translation: share of the width and of the height.
        scale: share by which it grows or shrinks.
        upside_down: whether half of the images are flipped top to bottom.
        brightness, contrast, saturation: share; saturation of RGB images only.
        hue: of the colour circle's turn, RGB images only.
        gamma: share.
    """

    rotation: float
    translation: float
    scale: float
    upside_down: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gamma: float = 0.0

    def __call__(
        self, x_NCHW: Tensor, mask_N1HW: Tensor | None, mirror: bool, generator: Generator
    ) -> tuple[Tensor, Tensor | None]:
        draws = torch.rand((len(x_NCHW), 11), generator=generator)
        images, masks = [], []
        for number, drawn in enumerate(draws.tolist()):
            images.append(self._coloured(self._moved(x_NCHW[number], drawn, mirror, smooth=True), drawn))
            if mask_N1HW is not None:
                masks.append(self._moved(mask_N1HW[number], drawn, mirror, smooth=False))
        return torch.stack(images), torch.stack(masks) if masks else mask_N1HW

    def _moved(self, image: Tensor, drawn: list[float], mirror: bool, *, smooth: bool) -> Tensor:
        angle, across, down, scale = (2 * draw - 1 for draw in drawn[:4])
        height, width = image.shape[-2:]
        moved: Tensor = tv.affine(
            image,
            angle=angle * self.rotation,
            translate=[across * self.translation * width, down * self.translation * height],
            scale=1 + scale * self.scale,
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR if smooth else InterpolationMode.NEAREST,
        )
        if mirror and drawn[4] < 0.5:
            moved = tv.horizontal_flip(moved)
        return tv.vertical_flip(moved) if self.upside_down and drawn[5] < 0.5 else moved

    def _coloured(self, image: Tensor, drawn: list[float]) -> Tensor:
        spread = [2 * draw - 1 for draw in drawn[6:]]
        if self.brightness:
            image = tv.adjust_brightness(image, 1 + spread[0] * self.brightness)
        if self.contrast:
            image = tv.adjust_contrast(image, 1 + spread[1] * self.contrast)
        if self.gamma:
            image = tv.adjust_gamma(image, math.exp(spread[4] * self.gamma))
        if image.shape[0] == 3 and self.saturation:
            image = tv.adjust_saturation(image, 1 + spread[2] * self.saturation)
        if image.shape[0] == 3 and self.hue:
            image = tv.adjust_hue(image, spread[3] * self.hue)
        return image


def _none(
    x_NCHW: Tensor, mask_N1HW: Tensor | None, mirror: bool, generator: Generator
) -> tuple[Tensor, Tensor | None]:
    return x_NCHW, mask_N1HW


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": _none,
    "light": augment,
    # A photograph of the retina has no upright: the eye, the camera's angle and the flash vary.
    "fundus": Preset(
        rotation=180,
        translation=0.05,
        scale=0.1,
        upside_down=True,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
        hue=0.02,
    ),
    # A chest stands upright and its heart lies on the left; posture, exposure and the film's curve vary.
    "xray": Preset(rotation=7, translation=0.05, scale=0.1, brightness=0.15, contrast=0.2, gamma=0.2),
}
"""By name; ``light`` turns by 10 degrees, scales by 5 % and varies brightness and contrast by 10 %, see `augment`."""
