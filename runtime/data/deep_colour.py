"""Pictures of more than 8 bits a colour, which Pillow cuts to the upper 8: a 12-bit one in 16 would be nearly black."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_BITS_PER_SAMPLE = 258


def deep_colour(image: Image.Image, path: Path) -> NDArray[Any] | None:
    """The values of a picture with more than 8 bits in each of two channels or more, (H, W, C); None for any other.

    Args:
        image: as Pillow opened it; not loaded.
        path: the file.

    Raises:
        ValueError: it is one, and what decodes it is not installed.
    """
    if image.mode not in ("RGB", "RGBA", "LA"):
        return None
    reader = _READERS.get(image.format or "")
    return None if reader is None else reader(image, path)


def _png(image: Image.Image, path: Path) -> NDArray[Any] | None:
    if not any(str(tile[3]).endswith(";16B") for tile in image.tile):  # type: ignore[attr-defined]
        return None
    from torchvision.io import ImageReadMode, decode_image, read_file

    values = decode_image(read_file(str(path)), ImageReadMode.UNCHANGED)
    return np.ascontiguousarray(values.numpy().transpose(1, 2, 0))


def _tiff(image: Image.Image, path: Path) -> NDArray[Any] | None:
    if max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))) <= 8:  # type: ignore[attr-defined]
        return None
    import tifffile

    try:
        values: NDArray[Any] = tifffile.imread(path, key=0)
    except (KeyError, ValueError) as error:
        raise ValueError(f"16-bit colour, compressed: {error.args[0]}") from error
    if values.shape[:2] != image.size[::-1] and values.shape[1:] == image.size[::-1]:
        values = values.transpose(1, 2, 0)  # one plane a colour
    return values


def _ppm(image: Image.Image, path: Path) -> NDArray[Any] | None:
    _, _, offset, arguments = image.tile[0]  # type: ignore[attr-defined]
    if not isinstance(arguments, tuple) or not isinstance(arguments[-1], int) or arguments[-1] <= 255:
        return None
    width, height = image.size
    values = np.frombuffer(path.read_bytes(), dtype=">u2", count=width * height * 3, offset=offset)
    return values.reshape(height, width, 3)


def _jpeg_2000(image: Image.Image, path: Path) -> NDArray[Any] | None:
    if _jpeg_2000_bits(path) <= 8:
        return None
    try:
        from openjpeg.utils import decode
    except ImportError as error:
        raise ValueError("16-bit colour in JPEG 2000 needs openjpeg: pip install suture[dicom]") from error
    values: NDArray[Any] = decode(path)
    return values


def _jpeg_2000_bits(path: Path) -> int:
    """Bits of the first component, from the SIZ marker of the code stream (ISO/IEC 15444-1, A.5.1)."""
    content = path.read_bytes()
    start = content.find(b"\xff\x4f\xff\x51")
    return (content[start + 42] & 0x7F) + 1 if 0 <= start < len(content) - 42 else 8


_READERS = {"PNG": _png, "TIFF": _tiff, "PPM": _ppm, "JPEG2000": _jpeg_2000}
