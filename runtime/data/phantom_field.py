"""What the phantoms are drawn with: coordinates, soft shapes, smooth noise and a generator per picture."""

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

Field = NDArray[np.float32]


def phantom_rng(seed: int, index: int) -> Generator:
    """A picture's own generator: the same picture whatever was drawn before it."""
    return np.random.default_rng([seed, index, 0])


def coordinates(size: int) -> tuple[Field, Field]:
    """x and y of the pixels' centres, (size, size) each, over [-1, 1]; y points down."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    x, y = np.meshgrid(axis, axis)
    return x, y


def soft_blob(x: Field, y: Field, centre: ArrayLike, spread: float) -> Field:
    """A Gaussian hill of height 1 around ``centre``."""
    at = np.asarray(centre, dtype=np.float32)
    blob: Field = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2.0 * spread * spread)).astype(np.float32)
    return blob


def smooth_noise(rng: Generator, size: int, cells: int) -> Field:
    """Noise of unit spread that varies over about ``cells`` patches across the picture, (size, size)."""
    coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def to_image_tensor(picture: Field, channels: int) -> Tensor:
    """(size, size) grey or (size, size, 3) RGB in [0, 1] to uint8 (channels, size, size)."""
    if picture.ndim == 3 and channels == 1:
        picture = picture @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], channels, axis=2)
    scaled = np.ascontiguousarray(
        (picture * 255.0 + 0.5).clip(0.0, 255.0).astype(np.uint8).transpose(2, 0, 1)
    )
    return torch.from_numpy(scaled)
