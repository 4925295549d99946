"""Does a picture show a line of text in a corner? Devices write names and dates there, as bright as they can.

A line is five glyphs or more: side markers of lead ("R", "PA") are one to three. It is looked for where the brightest,
or the darkest, values of the picture are thin strokes on another ground, in rows with nothing above and below. Text on
bright anatomy, at an angle or lower than ten pixels is not found: no warning proves nothing.
"""

import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from suture.runtime.data.library_warnings import PictureWarning

FOUND = "seem to show a line of text in a corner; a name in the pixels is in the smashed data"
_SMALLEST_SIDE = 300
"""In smaller pictures a line is hardly legible."""
_CORNER = (0.25, 0.5)
"""Shares of a picture's height and width."""
_NEAR, _CONTRAST = 24, 90
"""How far ink may be from the picture's extreme value, and how far its ground must be."""
_MOST_INK = 0.2
_HEIGHTS = (9, 80)
_GLYPHS, _WIDE = 5, 2
_EACH = 4

Bits = NDArray[np.bool_]


def warn_of_text(picture: Image.Image | NDArray[np.uint8]) -> None:
    """Says with a `PictureWarning` where a picture seems to show text."""
    sides = picture.shape if isinstance(picture, np.ndarray) else picture.size
    if min(sides) < _SMALLEST_SIDE:
        return
    if not any(map(_may_show_text, _some_rows(picture))):
        return
    grey = picture if isinstance(picture, np.ndarray) else np.asarray(picture.convert("L"))
    if shows_text(grey):
        warnings.warn(FOUND, PictureWarning, stacklevel=2)


def shows_text(grey: NDArray[np.uint8]) -> bool:
    """Whether a corner of a picture, (H, W) in 0..255, seems to hold a line of text."""
    low, high = int(grey.min()), int(grey.max())
    if high - low <= _NEAR + _CONTRAST:
        return False
    return any(
        _has_line(ink)
        for corner in _corners(grey)
        for ink, far in (
            (corner >= high - _NEAR, corner < high - _CONTRAST),
            (corner <= low + _NEAR, corner > low + _CONTRAST),
        )
        if 0 < np.count_nonzero(ink) < _MOST_INK * ink.size and 2 * np.count_nonzero(far) > far.size
    )


def _some_rows(picture: Image.Image | NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Every fourth row of each corner: a line of text is higher, and to look at all pixels of all pictures costs."""
    if isinstance(picture, np.ndarray):
        yield from (corner[::_EACH] for corner in _corners(picture))
        return
    width, height = picture.size
    high = int(_CORNER[0] * height)
    for top in (0, height - high):
        box = (0, top, width, top + high)
        rows = np.asarray(
            picture.resize((width, high // _EACH), Image.Resampling.NEAREST, box=box).convert("L")
        )
        yield from np.array_split(rows, 2, axis=1)


def _may_show_text(rows: NDArray[np.uint8]) -> bool:
    """Whether one of the rows goes into ink and out of it as often as through a line of text."""
    low, high = int(rows.min()), int(rows.max())
    if high - low <= _CONTRAST - _NEAR:
        return False
    return any(
        np.count_nonzero(ink[:, 1:] != ink[:, :-1], axis=1).max() >= 2 * _GLYPHS - 2
        for ink in (rows >= high - 2 * _NEAR, rows <= low + 2 * _NEAR)
    )


def _corners(grey: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    height, width = (int(share * side) for share, side in zip(_CORNER, grey.shape, strict=True))
    for rows in (slice(height), slice(-height, None)):
        for columns in (slice(width), slice(-width, None)):
            yield grey[rows, columns]


def _has_line(ink: Bits) -> bool:
    return any(
        _HEIGHTS[0] <= stop - start <= _HEIGHTS[1] and _is_line(ink[start:stop])
        for start, stop in _runs(np.asarray(ink.any(axis=1)))
    )


def _is_line(band: Bits) -> bool:
    """Whether enough glyphs stand in a row, no further apart than they are high; a ruler's ticks are all narrow."""
    height = len(band)
    number, num_wide, end = 0, 0, 0
    for start, stop in _runs(np.asarray(band.any(axis=0))):
        if start - end > height:
            number, num_wide = 0, 0
        if _is_glyph(band[:, start:stop]):
            number, num_wide = number + 1, num_wide + (stop - start >= 0.3 * height)
        if number >= _GLYPHS and num_wide >= _WIDE:
            return True
        end = stop
    return False


def _is_glyph(box: Bits) -> bool:
    """Whether a box holds thin strokes nearly as high as their line, and together hardly wider."""
    rows = np.flatnonzero(box.any(axis=1))
    height, width = len(box), box.shape[1]
    return bool(np.ptp(rows) + 1 >= 0.55 * height and width <= 1.2 * height and _stroke(box) <= 0.45 * height)


def _stroke(box: Bits) -> float:
    """How wide strokes are: the mean run of ink along the rows."""
    begins = np.diff(box.astype(np.int8), axis=1, prepend=0) == 1
    return float(box.sum() / max(1, begins.sum()))


def _runs(line: Bits) -> list[tuple[int, int]]:
    """Begin and end of each run."""
    edges = np.flatnonzero(np.diff(line.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
