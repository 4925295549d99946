"""Kaggle "Chest Xray Masks and Labels": chest X-rays of two hospitals with lung masks.

    PATH/[data/]Lung Segmentation/CXR_png/MCUCXR_0001_0.png       masks/MCUCXR_0001_0.png       Montgomery
    PATH/[data/]Lung Segmentation/CXR_png/CHNCXR_0001_0.png       masks/CHNCXR_0001_0_mask.png  Shenzhen

Montgomery's own folders ManualMask/leftMask and rightMask are joined, in place of masks/. Pairs are made from the
masks' side: images without a mask (and the folder test/) are left out. The site is the name's prefix. An index.csv in
PATH may name patients (columns image, patient and perhaps site).
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from suture.runtime.data.folder import unused_notes, walk
from suture.runtime.data.formats import plain_stem
from suture.runtime.data.listed import people_by_file
from suture.runtime.data.patients import copies_joined, patient_of
from suture.runtime.data.pictures import (
    file_digest,
    fit_mask,
    look_for_text,
    picture_size,
    read_mask,
    read_picture,
)
from suture.runtime.data.source import Example, Source, Task
from suture.runtime.data.tables import PATIENT, SITE, Columns
from suture.runtime.data.text import plain_name
from suture.runtime.errors import DataError

_ROOTS = ("Lung Segmentation", "data/Lung Segmentation", "MontgomerySet")
_MASKS_OWN = re.compile(r"[ ._-](mask|masks|seg|segmentation|label|labels|gt)$", re.IGNORECASE)
"""What a mask's name has behind its image's."""
_SIDES = ("leftMask", "rightMask")


class KaggleCxr(Source):
    """A segmentation source of image and mask files."""

    def __init__(
        self,
        examples: list[Example],
        pairs: list[tuple[Path, tuple[Path, ...]]],
        notes: list[str],
        structure: tuple[int, ...] = (),
    ) -> None:
        """Take the examples and, in the same order, each image with its mask or the masks that make it up."""
        self.pairs, self._structure = pairs, structure
        super().__init__("kaggle-cxr", Task.SEGMENTATION, ("background", "lung"), examples, notes=notes)

    def read(self, index: int, size: int, channels: int) -> tuple[Tensor, Tensor]:
        """Decode a pair; see ``Source.read``.

        Raises:
            DataError: A file cannot be read, or the mask is neither of the image's size nor the same at a larger one.
        """
        image, masks = self.pairs[index]
        binary = [self._mask(mask, image) for mask in masks]
        if len({one.shape for one in binary}) > 1:
            raise DataError(f"masks {masks[0]} and {masks[1]} differ in size; replace one of them")
        return read_picture(image, size, channels), fit_mask(np.any(binary, axis=0), size)

    def _mask(self, mask: Path, image: Path) -> NDArray[np.bool_]:
        width, height = picture_size(image)
        own_width, own_height = picture_size(mask)
        # A pixel more or less is what rounding makes of one size when it is brought to another.
        agrees = abs(own_width * height - own_height * width) <= max(own_width, own_height)
        if (own_width, own_height) != (width, height) and not (agrees and own_width > width):
            raise DataError(
                f"mask {mask} is {own_width}x{own_height} but its image {image.name} is "
                f"{width}x{height}; replace the mask by one of the image's size, or larger with the same sides"
            )
        return read_mask(mask, self._structure)

    def dimensions(self, index: int) -> tuple[int, int]:
        """See ``Source.dimensions``."""
        return picture_size(self.pairs[index][0])

    def content_digest(self, index: int) -> bytes:
        """See ``Source.content_digest``."""
        return file_digest(self.pairs[index][0])

    def look_closely(self, index: int) -> None:
        """Looks for text; see ``Source.look_closely``."""
        look_for_text(self.pairs[index][0])


def open_kaggle_cxr(path: Path, *, columns: Columns | None = None, structure: tuple[int, ...] = ()) -> Source:
    """Index the folder.

    Raises:
        DataError: No folders CXR_png and masks, or no pair in them.
    """
    root = _find_root(path)
    table = _find_table(path, root)
    found = walk(path, known=[table] if table else [])
    images = _by_stem(_below(root / "CXR_png", found.pictures))
    known, unknown = people_by_file(path, table, [*images.values()], columns) if table else ({}, [])
    examples, pairs, lonely = [], [], 0
    masks, halves = _masks(root, found.pictures)
    for parts in masks:
        mask = parts[0]
        stem = plain_stem(mask.name)
        stem = stem if stem in images else _MASKS_OWN.sub("", stem)
        if stem not in images:
            lonely += 1
            continue
        row = known.get(images[stem], {PATIENT: "", SITE: ""})
        examples.append(
            Example(
                key=plain_name(stem),
                patient=row[PATIENT] or plain_name(patient_of(stem)),
                label=None,
                site=row[SITE] or plain_name(stem.partition("_")[0]),
            )
        )
        pairs.append((images[stem], parts))
    if not pairs:
        raise DataError(f"{root}: no mask in masks/ has its image in CXR_png/; unpack the download again")
    notes = [*unknown]
    if lonely:
        notes.append(f"skipped {lonely} masks without an image")
    if len(images) > len(pairs):
        notes.append(f"left out {len(images) - len(pairs)} images without a mask")
    if halves:
        notes.append(f"skipped {halves} masks of one lung whose other lung has none")
    elsewhere = len(found.pictures) - len(images) - sum(map(len, masks)) - halves
    notes += unused_notes(found.unused + Counter({"picture outside CXR_png and masks": elsewhere}))
    examples, copies = copies_joined(examples, [image for image, _ in pairs])
    return KaggleCxr(examples, pairs, notes + copies, structure)


def _below(folder: Path, pictures: Sequence[Path]) -> list[Path]:
    return [file for file in pictures if folder in file.parents]


def _by_stem(files: Sequence[Path]) -> dict[str, Path]:
    """Raises: DataError where two have one stem: a mask could mean either."""
    by_stem: dict[str, Path] = {}
    for file in files:
        first = by_stem.setdefault(plain_stem(file.name), file)
        if first is not file:
            raise DataError(f"{first} and {file} have one name; remove one of them")
    return by_stem


def _masks(root: Path, pictures: Sequence[Path]) -> tuple[list[tuple[Path, ...]], int]:
    """The files that make up each mask, and how many of one lung are alone."""
    if (root / "masks").is_dir():
        return [(file,) for file in _below(root / "masks", pictures)], 0
    left, right = (_by_stem(_below(root / "ManualMask" / side, pictures)) for side in _SIDES)
    return [(left[stem], right[stem]) for stem in left if stem in right], len(left.keys() ^ right.keys())


def _has_masks(root: Path) -> bool:
    return (root / "masks").is_dir() or all((root / "ManualMask" / side).is_dir() for side in _SIDES)


def _find_root(path: Path) -> Path:
    for root in (path, *(path / name for name in _ROOTS)):
        if (root / "CXR_png").is_dir() and _has_masks(root):
            return root
    raise DataError(
        f"{path} has no folders CXR_png and masks, nor 'Lung Segmentation' or 'data/Lung Segmentation' with "
        "them; give the folder of the unpacked download"
    )


def _find_table(path: Path, root: Path) -> Path | None:
    """The index.csv in PATH or, where PATH is deeper, beside the data."""
    candidates = (path / "index.csv", root / "index.csv", root.parent / "index.csv")
    return next((table for table in candidates if table.is_file()), None)
