"""What a mask says is the structure: labels of several structures, two values, grey edges, or transparency."""

import warnings

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from suture.runtime.data.library_warnings import PictureWarning

Values = NDArray[np.float64]

_LOSSY = frozenset({"JPEG", "MPO", "JPEG2000", "AVIF"})
"""Formats that change values near an edge."""
_MOST_LABELS, _SMALL = 32, 31
"""More values than that are shades; and no shade of grey that is meant to be seen is as dark as a small label."""
_AREA = 0.005
"""Share of the picture from which on a plateau between the darkest and the brightest value is an area, not an edge."""
_NOISE = 24
"""How far JPEG moves a value within an area."""


def mask_values(image: Image.Image, structure: tuple[int, ...] = ()) -> Values:
    """The values of a mask's pixels, (H, W): a palette's numbers where its first colour is black, else the brightest
    channel; transparent pixels are 0, and where all else is one colour, transparency is what the mask says.

    Args:
        image: the mask.
        structure: the labels that are the structure, where somebody said; colours are none.

    Raises:
        ValueError: some are not finite, or labels were asked for and the mask holds colours.
    """
    if image.mode == "P" and not image.has_transparency_data and _is_numbered(image):
        return np.asarray(image, dtype=np.float64)
    if (num_colours := _num_colours(image)) > 1:
        if structure:
            raise ValueError(f"it holds {num_colours} colours and no numbers, which --structure chooses from")
        warnings.warn(
            f"the mask holds {num_colours} colours; all but black are the structure",
            PictureWarning,
            stacklevel=2,
        )
    if image.has_transparency_data:
        *_, alpha = colours = np.moveaxis(np.asarray(image.convert("RGBA"), dtype=np.float64), 2, 0)
        opaque, brightest = alpha / 255.0, np.max(colours[:3], axis=0)
        if np.ptp(alpha) and not any(np.ptp(colour) for colour in colours[:3]):
            return np.asarray(alpha)
        return np.asarray(np.round(brightest * opaque))
    plain = image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16")
    values = np.asarray(image if plain else image.convert("RGB"), dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("some of its pixels are not finite numbers")
    return values if values.ndim == 2 else np.asarray(values.max(axis=2))


def is_lossy(image: Image.Image) -> bool:
    """Whether a file's format keeps no exact values."""
    return image.format in _LOSSY


def structure_of(values: Values, *, lossy: bool, structure: tuple[int, ...] = ()) -> NDArray[np.bool_]:
    """Where the structure is, (H, W).

    Two values: the larger one. Several that are labels: all above 0, which is said. Grey edges: above half of the
    maximum.

    Args:
        values: as `mask_values` gives them.
        lossy: whether the format moves values.
        structure: the labels that are the structure, where somebody said.

    Raises:
        ValueError: labels in a format that does not keep them, or labels were asked for that the mask cannot have.
    """
    found = np.unique(values)
    labels = _are_labels(values, found, lossy)
    if lossy and (structure or labels):
        raise ValueError("it holds several labels, which JPEG does not keep apart; save masks as PNG")
    if structure:
        shades = len(found) > _MOST_LABELS
        if shades:
            raise ValueError(
                f"it holds {len(found)} values, which are shades and not labels; leave --structure out"
            )
        if not set(found.tolist()) & {0.0, *map(float, structure)}:
            raise ValueError(f"it holds none of the values of --structure, only {_shown(found)}")
        chosen = np.isin(values, structure)
        if found.any() and not chosen.any():
            warnings.warn(
                f"the mask holds none of the values of --structure, only {_shown(found)}",
                PictureWarning,
                stacklevel=2,
            )
        return chosen
    if labels:
        warnings.warn(
            f"the mask holds the labels {_shown(found)}; all above 0 are the structure (--structure chooses)",
            PictureWarning,
            stacklevel=2,
        )
        return values > 0
    return np.asarray(values > found[-1] / 2.0)


def _are_labels(values: Values, found: Values, lossy: bool) -> bool:
    """Whether values between the lowest and the highest are areas of their own."""
    if len(found) < 3:
        return False
    highest = found[-1]
    if not lossy and (len(found) > _MOST_LABELS or not np.array_equal(found, np.round(found))):
        return False
    if not lossy and highest <= _SMALL:
        return True
    if min(values.shape) < 3:
        return False
    around = sliding_window_view(values, (3, 3))
    low, high = around.min(axis=(2, 3)), around.max(axis=(2, 3))
    margin = highest / 4.0 if lossy else 0.0
    flat = (high - low <= (_NOISE if lossy else 0)) & (low > margin) & (high < highest - margin)
    return bool(flat.mean() > _AREA)


def _num_colours(image: Image.Image) -> int:
    """How many colours of one brightness or several a mask has that are areas, greys and black not counted."""
    if is_lossy(image) or image.mode not in ("P", "RGB", "RGBA"):
        return 0
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        return 0
    least = _AREA * image.width * image.height
    held = image.convert("RGB").getcolors(_MOST_LABELS) or []
    return sum(
        number > least and isinstance(colour, tuple) and len(set(colour)) > 1 for number, colour in held
    )


def _is_numbered(image: Image.Image) -> bool:
    """Whether the numbers of a palette's colours are labels: the first is black, as the background is."""
    palette = image.getpalette() or [1]
    used = [number for _, number in image.getcolors(256) or []]
    return not any(palette[:3]) and all(
        any(palette[3 * n : 3 * n + 3]) for n in used if isinstance(n, int) and n
    )


def _shown(found: Values) -> str:
    shown = [f"{value:g}" for value in found[:8]]
    return ", ".join(shown) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
