"""What an attacker owns besides the wire: auxiliary images, disjoint from every client's by content.

Shape legend: N images; C, H, W image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from suture.runtime.data.source import Source
from suture.runtime.errors import ConfigError, DataError


@dataclass(frozen=True)
class Auxiliary:
    """The attacker's images.

    Attributes:
        images: x_NCHW uint8, at the size and channels of the net's input.
        labels: y_N int64 where the source labels images, else None.
        mirror: whether a mirrored image is a plausible image.
        origin: where they come from, for the report.
    """

    images: Tensor
    labels: Tensor | None = None
    mirror: bool = False
    origin: str = ""

    def __post_init__(self) -> None:
        """Refuses anything but uint8 images, so that scales cannot be mixed up.

        Raises:
            ConfigError: other dtype or rank, or none at all.
        """
        if self.images.dtype is not torch.uint8 or self.images.ndim != 4 or len(self.images) == 0:
            raise ConfigError(
                f"auxiliary images must be uint8 (N, C, H, W) with N above 0, got {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def unit(self, rows: Tensor | None = None) -> Tensor:
        """Images (those of ``rows``) as float32 in [0, 1]."""
        chosen = self.images if rows is None else self.images[rows]
        return chosen.float().div_(255.0)

    def check_shape(self, image_shape: tuple[int, int, int]) -> None:
        """Refuses images of another shape than the attacked net's.

        Raises:
            ConfigError: names both shapes.
        """
        if tuple(self.images.shape[1:]) != image_shape:
            raise ConfigError(
                f"auxiliary images must have shape {image_shape} as the attacked net takes them, "
                f"got {tuple(self.images.shape[1:])}; resize them"
            )


def read_auxiliary(
    source: Source,
    count: int,
    *,
    image_size: int,
    channels: int,
    seed: int,
    taken: Iterable[int] = (),
    origin: str = "",
) -> Auxiliary:
    """Reads the attacker's images from a source.

    Args:
        source: where from.
        count: how many.
        image_size: edge length in pixels.
        channels: 1 or 3.
        seed: chooses which; public.
        taken: indices of ``source.examples`` that clients were dealt: these images and all others of the same
            patients are left out. Empty where the source is not the clients'.
        origin: for the report.

    Raises:
        DataError: fewer images are left than wanted; says how many there are.
    """
    forbidden = {source.examples[index].patient for index in taken}
    free = [i for i, example in enumerate(source.examples) if example.patient not in forbidden]
    # Official test images come last: what remains of the training images is the likelier leak.
    order = np.random.default_rng([seed, 0xA0]).permutation(len(free))
    ranked = sorted((free[i] for i in order), key=lambda index: source.examples[index].official_test)
    if len(ranked) < count:
        raise DataError(
            f"aux-images is {count}, but {source.name} has {len(ranked)} images of patients that no "
            f"client has; use aux-images={len(ranked)} or fewer --train-images"
        )
    images = torch.empty((count, channels, image_size, image_size), dtype=torch.uint8)
    labels = torch.zeros(count, dtype=torch.int64)
    for row, index in enumerate(ranked[:count]):
        images[row], target = source.read(index, image_size, channels)
        labels[row] = target if source.task.has_one_class else 0
    known = labels if source.task.has_one_class else None
    return Auxiliary(images, known, source.mirror, origin or source.name)


def content_hashes(images: Tensor) -> list[bytes]:
    """SHA-256 of each image's pixels: x_NCHW uint8."""
    return [hashlib.sha256(image.contiguous().numpy().tobytes()).digest() for image in images.cpu()]


def check_disjoint(auxiliary: Tensor, private: Tensor, owner: str) -> None:
    """Refuses auxiliary images that are also ``owner``'s: such an attack would prove nothing.

    Rule 1 of judging (disjoint sets, by content) is kept here before training and in `judge` after it.

    Raises:
        DataError: with the number of images in both.
    """
    theirs = set(content_hashes(private))
    overlap = sum(digest in theirs for digest in content_hashes(auxiliary))
    if overlap:
        raise DataError(
            f"auxiliary data: {overlap} of {len(auxiliary)} images are also {owner}'s own; the attacker must "
            "not own a victim's images: use other aux data, or aux=run for images that no client was dealt"
        )
