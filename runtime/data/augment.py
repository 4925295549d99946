"""Light, seeded augmentation of a whole batch: what a camera or a patient's posture varies anyway.

Shape legend: N batch · C,H,W image.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

MAX_ROTATION_DEGREES = 10.0
MAX_SCALE_CHANGE = 0.05
MAX_BRIGHTNESS_CHANGE = 0.10
MAX_CONTRAST_CHANGE = 0.10


def augment(
    x_NCHW: Tensor, mask_N1HW: Tensor | None, mirror: bool, generator: Generator
) -> tuple[Tensor, Tensor | None]:
    """Rotate, scale, perhaps flip, and vary brightness and contrast of each image by its own draw.

    Images are sampled bilinearly, masks by the nearest pixel through the same grid; beyond the border the
    edge pixel is repeated in both, so that what enters from outside has a mask that fits.

    Args:
        x_NCHW: Float images in [0, 1].
        mask_N1HW: Float masks of the same height and width, or None.
        mirror: Whether half of the images are flipped left to right.
        generator: The only source of chance. The same number of draws is made for every image.

    Returns:
        Augmented images, clamped to [0, 1], and masks, with the shapes that came in.
    """
    num_images = x_NCHW.shape[0]
    draws = torch.rand((5, num_images), generator=generator)
    spread = 2.0 * draws - 1.0
    angle = spread[0] * math.radians(MAX_ROTATION_DEGREES)
    scale = 1.0 + spread[1] * MAX_SCALE_CHANGE
    flip = torch.where(draws[2] < 0.5, -1.0, 1.0) if mirror else torch.ones(num_images)

    theta = torch.zeros(num_images, 2, 3)
    theta[:, 0, 0] = torch.cos(angle) * flip / scale
    theta[:, 0, 1] = -torch.sin(angle) / scale
    theta[:, 1, 0] = torch.sin(angle) * flip / scale
    theta[:, 1, 1] = torch.cos(angle) / scale
    height, width = x_NCHW.shape[-2:]
    grid = functional.affine_grid(theta, [num_images, 1, height, width], align_corners=False)
    images = functional.grid_sample(x_NCHW, grid, "bilinear", "border", align_corners=False)
    masks = None
    if mask_N1HW is not None:
        masks = functional.grid_sample(mask_N1HW, grid, "nearest", "border", align_corners=False)

    brightness = (spread[3] * MAX_BRIGHTNESS_CHANGE).view(-1, 1, 1, 1)
    contrast = (1.0 + spread[4] * MAX_CONTRAST_CHANGE).view(-1, 1, 1, 1)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = ((images - mean) * contrast + mean) * (1.0 + brightness)
    return images.clamp(0.0, 1.0), masks
