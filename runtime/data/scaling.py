"""Deep values to 8 bits, and the one error of a file whose values cannot be had."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from suture.runtime.data.text import plain_name
from suture.runtime.errors import DataError

_POINTER = b"version https://git-lfs.github.com/"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def scale_to_bytes(
    values: NDArray[np.float32], counted: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Stretch from the smallest value to the largest over 0..255; a flat picture becomes black.

    Args:
        values: of any shape.
        counted: which of them are the picture; the others set no range and are cut to it. None for all.

    Raises:
        ValueError: Some values are not finite.
    """
    inside = values if counted is None or not counted.any() else values[counted]
    low, high = float(inside.min()), float(inside.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError("some of its pixels are not finite numbers")
    if inside is not values:
        values = values.clip(low, high)
    scaled: NDArray[np.uint8] = ((values - low) * (255.0 / max(high - low, 1e-12))).round().astype(np.uint8)
    return scaled


def unreadable(path: Path, error: Exception) -> DataError:
    """The error of a file that cannot be decoded; the one place where a file is named."""
    # Pillow's messages repeat the path; the class says enough.
    lines = str(error).splitlines() or [""]
    said = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
    if isinstance(error, UnidentifiedImageError):
        reason = _unidentified(path)
    elif not said or str(path) in str(error):
        reason = type(error).__name__
    else:
        reason = f"{type(error).__name__}: {said:.200}"
    return DataError(f"cannot read image {plain_name(str(path))}: {plain_name(reason)}; remove or replace it")


def _unidentified(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
    if not start:
        return "it is empty"
    if start == _POINTER:
        return "it is a pointer of Git LFS: fetch what it stands for by git lfs pull"
    if start[:4] in _TIFF:
        return "it is a TIFF of a depth or of channels that are not read"
    return "it is none of the formats that are read, whatever its name says"
