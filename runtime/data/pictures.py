"""Picture files to square uint8 tensors."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from suture.runtime.data.burned_text import warn_of_text
from suture.runtime.data.deep_colour import deep_colour
from suture.runtime.data.dicom_pixels import dicom_size, read_dicom
from suture.runtime.data.formats import HEAD, PILLOW_FORMATS, reads_as_dicom
from suture.runtime.data.library_warnings import PictureWarning
from suture.runtime.data.masks import is_lossy, mask_values, structure_of
from suture.runtime.data.scaling import scale_to_bytes, unreadable
from suture.runtime.errors import DataError

ONE_FRAME = "hold several pages or frames; the first one is used"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by EXIF's orientation."""
_ON_ITS_SIDE = 5
_WHITE_IS_ZERO, _SIGNED = 0, 2
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_MAY_BE_SEVERAL = frozenset({"TIFF", "GIF", "WEBP", "AVIF", "PNG"})
"""Formats of pages or of frames; further pictures in a JPEG are previews of the first."""


def read_picture(path: Path, size: int, channels: int, frame: int | None = None) -> Tensor:
    """Read a picture or DICOM file as uint8 (channels, size, size); see ``upright`` and ``fit_square``.

    Args:
        path: the file.
        size: pixels a side.
        channels: 1 or 3.
        frame: which one of a DICOM file with several, from 1, where somebody said.

    Raises:
        DataError: The file cannot be read.
    """
    with opened(path, frame) as image:
        if isinstance(image, np.ndarray):
            return fit_square(Image.fromarray(image), size, channels)
        # JPEGs decode several times faster at an eighth to a half of their size.
        image.draft(None, (2 * size, 2 * size))
        return fit_square(upright(image, path), size, channels)


@contextmanager
def opened(path: Path, frame: int | None = None) -> Iterator[Image.Image | NDArray[np.uint8]]:
    """A file as Pillow opens it, or the pixels of a DICOM file; what goes wrong inside is told with the file's name.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            if reads_as_dicom(path, file.read(HEAD)):
                yield read_dicom(path, frame)
                return
            file.seek(0)
            with Image.open(file, formats=_formats()) as image:
                yield image
    except DataError:
        raise
    except (
        Exception
    ) as error:  # Pillow's many plug-ins raise many kinds, and a damaged file may meet any of them
        raise unreadable(path, error) from error


def upright(image: Image.Image, path: Path) -> Image.Image:
    """The picture as a viewer shows it: 8 bits, turned as EXIF says, black where it is transparent.

    Args:
        image: as Pillow opened it.
        path: its file.
    """
    if image.format in _MAY_BE_SEVERAL and getattr(image, "n_frames", 1) > 1:
        warnings.warn(ONE_FRAME, PictureWarning, stacklevel=2)
    deep = deep_colour(image, path)
    if deep is not None:
        made, turn = _of_deep_colour(deep), _orientation(image)
    else:
        image.load()
        made, turn = eight_bit(image), _orientation(image)  # TIFFs have been turned by now
    made = on_black(made)
    return made.transpose(_TURNS[turn]) if turn in _TURNS else made


def on_black(image: Image.Image) -> Image.Image:
    """What shows through is black, as the padding is."""
    if not image.has_transparency_data:
        return image
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, (0, 0, 0, 255)), seen).convert("RGB")


def look_for_text(path: Path) -> None:
    """Says with a `PictureWarning` where a picture, at its whole size, seems to show text; `read_dicom` does by itself.

    Raises:
        DataError: The file cannot be read.
    """
    with opened(path) as image:
        if isinstance(image, Image.Image):
            warn_of_text(upright(image, path))


def read_mask(path: Path, structure: tuple[int, ...] = ()) -> NDArray[np.bool_]:
    """Where a mask has the structure, (H, W); see ``structure_of`` for what it may hold.

    Raises:
        DataError: The file cannot be read.
    """
    with opened(path) as image:
        if isinstance(image, np.ndarray):
            return structure_of(image.astype(np.float64), lossy=False, structure=structure)
        found = structure_of(mask_values(image, structure), lossy=is_lossy(image), structure=structure)
        turn = _orientation(image)  # a TIFF has been turned by now
        return np.asarray(Image.fromarray(found).transpose(_TURNS[turn])) if turn in _TURNS else found


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height as it is shown, from the file's header.

    Raises:
        DataError: The file cannot be read.
    """
    with path.open("rb") as file:
        if reads_as_dicom(path, file.read(HEAD)):
            return dicom_size(path)
    with opened(path) as image:
        assert isinstance(image, Image.Image), "DICOM has been told above"
        width, height = image.size
        # Pillow knows a TIFF's size as it is shown.
        on_its_side = image.format != "TIFF" and _orientation_of_header(image, path) >= _ON_ITS_SIDE
        return (height, width) if on_its_side else (width, height)


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's content.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise unreadable(path, error) from error


def eight_bit(image: Image.Image) -> Image.Image:
    """Reduce to 8 bits: deeper greys by their own range, from the darkest to the brightest pixel.

    X-rays of 10 or 12 bits are often stored in 16, so the type's range would leave them black.
    """
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values, seen = np.asarray(image), None
        if tags.get(_SAMPLE_FORMAT, (1,))[0] == 1 and tags.get(_BITS_PER_SAMPLE, (0,))[0] == 32:
            values = values.view(np.uint32)  # Pillow's own are signed
        if isinstance(clear := image.info.get("transparency"), int):
            seen = values != clear
        grey = scale_to_bytes(values.astype(np.float32), seen)
        # Pillow turns the polarity of a TIFF of up to 8 bits, and of no deeper one.
        grey = 255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey
        return Image.fromarray(grey if seen is None else np.where(seen, grey, np.uint8(0)))
    if image.mode == "L" and tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED:
        return Image.fromarray(scale_to_bytes(np.asarray(image).view(np.int8).astype(np.float32)))
    return image


def _of_deep_colour(values: NDArray[Any]) -> Image.Image:
    """By one range for all colours, as a deep grey is; the last of two or four channels is the opacity."""
    if values.shape[2] in (1, 3):
        return Image.fromarray(scale_to_bytes(values.astype(np.float32)).squeeze())
    colours, opacity = values[..., :-1].astype(np.float32), values[..., -1:]
    seen = np.broadcast_to(opacity > 0, colours.shape)
    share = (opacity / np.iinfo(values.dtype).max * 255).round().astype(np.uint8)
    made = np.concatenate([scale_to_bytes(colours, seen), share], axis=2)
    return Image.fromarray(made, "LA" if made.shape[2] == 2 else "RGBA")


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) else 1


def _orientation_of_header(image: Image.Image, path: Path) -> int:
    """The orientation; a PNG is decoded for it only where its EXIF stands behind its pixels."""
    if image.format == "PNG" and "exif" not in image.info:
        content = path.read_bytes()
        if b"eXIf" not in content and b"Orientation" not in content and b"Raw profile" not in content:
            return 1
    return _orientation(image)


@cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow was built with."""
    Image.init()
    return tuple(name for name in PILLOW_FORMATS if name in Image.OPEN)


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
