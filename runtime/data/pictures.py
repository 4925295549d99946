"""Picture files to square uint8 tensors."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from suture.runtime.data.masks import is_lossy, mask_values, structure_of
from suture.runtime.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


def is_picture(path: Path) -> bool:
    """Whether the name is that of a picture; macOS's "._" companions are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def files_by_stem(folder: Path, wanted: Callable[[Path], bool], source: Path) -> dict[str, Path]:
    """The files at and below ``folder`` that a table may name.

    Args:
        folder: where to look.
        wanted: whether a path is one of them.
        source: what a person has named, for the message.

    Raises:
        DataError: two have one stem: a table's row could mean either.
    """
    files: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        if not wanted(file):
            continue
        if file.stem in files:
            raise DataError(
                f"{source} holds {file.name!r} twice, in different folders; remove one of the copies"
            )
        files[file.stem] = file
    return files


def read_picture(path: Path, size: int, channels: int) -> Tensor:
    """Read a file as uint8 (channels, size, size); see ``fit_square``.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with Image.open(path) as image:
            # JPEGs decode several times faster at an eighth to a half of their size.
            image.draft(None, (2 * size, 2 * size))
            return fit_square(eight_bit(image), size, channels)
    except (
        Exception
    ) as error:  # Pillow's many plug-ins raise many kinds, and a damaged file may meet any of them
        raise unreadable(path, error) from error


def read_mask(path: Path, structure: tuple[int, ...] = ()) -> NDArray[np.bool_]:
    """Where a mask has the structure, (H, W); see ``structure_of`` for what it may hold.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with Image.open(path) as image:
            return structure_of(mask_values(image), lossy=is_lossy(image), structure=structure)
    except (
        Exception
    ) as error:  # Pillow's many plug-ins raise many kinds, and a damaged file may meet any of them
        raise unreadable(path, error) from error


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height, from the file's header.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except (
        Exception
    ) as error:  # Pillow's many plug-ins raise many kinds, and a damaged file may meet any of them
        raise unreadable(path, error) from error


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's content.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    """The error of a file that cannot be decoded; the one place where a file is named."""
    # Pillow's messages repeat the path; the class says enough.
    said = "".join(str(error).splitlines()[:1])
    reason = (
        type(error).__name__
        if not said or str(path) in str(error)
        else f"{type(error).__name__}: {said:.200}"
    )
    return DataError(f"cannot read image {path}: {reason}; remove or replace it")


def eight_bit(image: Image.Image) -> Image.Image:
    """Reduce to 8 bits: deeper greys by their own range, from the darkest to the brightest pixel.

    X-rays of 10 or 12 bits are often stored in 16, so the type's range would leave them black.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(scale_to_bytes(np.asarray(image, dtype=np.float32)))
    return image


def scale_to_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stretch from the smallest value to the largest over 0..255; a flat picture becomes black.

    Raises:
        ValueError: Some values are not finite.
    """
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError("some of its pixels are not finite numbers")
    scaled: NDArray[np.uint8] = ((values - low) * (255.0 / max(high - low, 1e-12))).round().astype(np.uint8)
    return scaled


def fit_square(image: Image.Image, size: int, channels: int) -> Tensor:
    """Pad with black to a centred square, then resize with antialiasing: no pixel is cropped or stretched.

    Returns:
        uint8 (channels, size, size).
    """
    image = image.convert("RGB" if channels == 3 else "L")
    edge = max(image.size)
    if image.size != (edge, edge):
        square = Image.new(image.mode, (edge, edge), 0)
        square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
        image = square
    if edge != size:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.array(image, dtype=np.uint8).reshape(size, size, channels)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def fit_mask(binary: NDArray[np.bool_], size: int) -> Tensor:
    """Pad and resize a mask as ``fit_square`` does its image, by the nearest pixel.

    Returns:
        float32 (1, size, size) of zeros and ones.
    """
    height, width = binary.shape
    edge = max(height, width)
    square = np.zeros((edge, edge), dtype=np.uint8)
    top, left = (edge - height) // 2, (edge - width) // 2
    square[top : top + height, left : left + width] = binary
    resized = Image.fromarray(square).resize((size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(resized, dtype=np.float32))[None]
