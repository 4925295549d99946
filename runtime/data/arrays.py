"""Sources that are arrays in memory: MedMNIST's npz and MNIST's IDX files."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from suture.runtime.data.patients import copy_notes, joined
from suture.runtime.data.pictures import fit_square
from suture.runtime.data.source import Example, Source, Task


class ArraySource(Source):
    """A source of uint8 images, (n, H, W) or (n, H, W, 3), with labels (n), or (n, findings) of 0 and 1."""

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        parts: Sequence[tuple[str, NDArray[np.uint8], NDArray[np.int64]]],
        *,
        mirror: bool,
        notes: Sequence[str] = (),
    ) -> None:
        """Take (split, images, labels) of each part; the part named "test" is the official test set.

        Nothing tells which images belong to one person, so each is its own patient, but for exact copies.
        """
        self._images = [image for _, images, _ in parts for image in images]
        several = any(labels.ndim == 2 for _, _, labels in parts)
        examples = [
            Example(
                key=key,
                patient=key,
                label=None if several else int(label),
                official_test=split == "test",
                findings=tuple(np.flatnonzero(label).tolist()) if several else (),
            )
            for split, _, labels in parts
            for key, label in ((f"{split}{number:06d}", label) for number, label in enumerate(labels))
        ]
        by_content: dict[bytes, list[int]] = defaultdict(list)
        for row in range(len(examples)):
            by_content[self.content_digest(row)].append(row)
        groups = [rows for rows in by_content.values() if len(rows) > 1]
        examples = joined(examples, groups)
        notes = [*notes, *copy_notes(examples, groups)]
        task = Task.MULTI_LABEL if several else Task.CLASSIFICATION
        super().__init__(name, task, classes, examples, mirror=mirror, notes=notes)

    def read(self, index: int, size: int, channels: int) -> tuple[Tensor, Tensor]:
        """Resize one image; see ``Source.read``."""
        image = fit_square(Image.fromarray(self._images[index]), size, channels)
        return image, self.target(index)

    def dimensions(self, index: int) -> tuple[int, int]:
        """See ``Source.dimensions``."""
        height, width = self._images[index].shape[:2]
        return width, height

    def content_digest(self, index: int) -> bytes:
        """See ``Source.content_digest``."""
        image = self._images[index]
        return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
