"""DICOM pixels as they are meant to be seen: pydicom's own look-up tables in the standard's order, then 8 bits.

pydicom is an extra, so it is imported where a file is read.
"""

import copy
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from suture.runtime.data.burned_text import warn_of_text
from suture.runtime.data.dicom_limits import check_deflated, check_frame
from suture.runtime.data.library_warnings import PictureWarning
from suture.runtime.data.scaling import scale_to_bytes, unreadable
from suture.runtime.errors import DataError

BURNED_IN = "say that text is burned into them; a name in the pixels is in the smashed data"
ONE_FRAME = "hold several frames; the representative or first one is used"
NO_WIDTH = "have a window without a width; the range of their values is used"
ONE_GREY = "are of one grey only after the rescale and window of their headers"
_RESCALE = ("RescaleSlope", "RescaleIntercept")
_OF_FRAMES = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
"""Where enhanced files keep a frame's rescale and window."""
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def read_dicom(path: Path, frame: int | None = None) -> NDArray[np.uint8]:
    """Read a monochrome image as it is meant to be seen, (H, W) in 0..255.

    In the order of DICOM PS3.4 N.2: modality LUT or rescale, then VOI LUT or the first window, then the presentation
    LUT. What a window or a LUT gives is not stretched again; without one the range of the values is, padding left out.
    MONOCHROME1 and the presentation shape INVERSE turn high values dark, once. Padding is black.

    Args:
        path: The file.
        frame: Which frame, from 1, where the file has several and somebody said.

    Raises:
        DataError: Damaged, compressed in a way that cannot be decoded here, not grey, or pydicom is not installed.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise DataError(f"cannot read image {path}: DICOM needs pydicom: pip install suture[dicom]")
    import pydicom

    try:
        check_deflated(path)
        return _shown(pydicom.dcmread(path, force=True), path, frame)
    except Exception as error:
        # pydicom and its decoders raise many kinds, and a damaged file may meet any of them.
        raise unreadable(path, error) from error


def dicom_size(path: Path) -> tuple[int, int]:
    """Width and height, from the header.

    Raises:
        DataError: The header cannot be read.
    """
    header = read_header(path, "Rows", "Columns")
    try:
        return int(header.Columns), int(header.Rows)
    except (AttributeError, TypeError, ValueError) as error:
        raise unreadable(path, error) from error


def read_header(path: Path, *elements: str) -> Any:
    """Some elements of a file's header as a pydicom dataset.

    Raises:
        DataError: The header cannot be read.
    """
    import pydicom

    try:
        check_deflated(path)
        return pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(elements))
    except Exception as error:  # as in `read_dicom`
        raise unreadable(path, error) from error


def text_of(header: Any, element: str) -> str:
    """An element's value as plain text, empty where the file has none."""
    return str(header.get(element, "") or "").strip()


def _shown(dataset: Any, path: Path, frame: int | None) -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_modality_lut

    kind = text_of(dataset, "PhotometricInterpretation").upper()
    if not any(name in dataset for name in _PIXELS):
        if "SOPClassUID" not in dataset and not kind:
            raise UnidentifiedImageError
        raise ValueError("it has no pixels")
    if not kind.startswith("MONOCHROME"):
        raise ValueError(f"PhotometricInterpretation is {kind or 'missing'}, only MONOCHROME1 and 2 are read")
    dataset.PhotometricInterpretation = kind
    index = _index(dataset, frame)
    stored = _stored(dataset, path, index)
    _bring_up(dataset, index)
    padding = _padding(stored, dataset)
    if any(dataset.get(name) in (None, "") for name in _RESCALE):
        for name in _RESCALE:  # as pydicom has it where one of the two is missing
            dataset.pop(name, None)
    grey = _presented(_windowed(apply_modality_lut(stored, dataset), padding, dataset), dataset)
    if np.ptp(grey) == 0 and np.ptp(stored) > 0:
        warnings.warn(ONE_GREY, PictureWarning, stacklevel=2)
    shape = text_of(dataset, "PresentationLUTShape").upper()
    if kind == "MONOCHROME1" or shape == "INVERSE":
        grey = 255 - grey
    grey[padding] = 0
    if text_of(dataset, "BurnedInAnnotation").upper() == "YES":
        warnings.warn(BURNED_IN, PictureWarning, stacklevel=2)
    else:
        warn_of_text(grey)
    return grey


def _index(dataset: Any, frame: int | None) -> int:
    """Which frame is read, from 0: the chosen one, else the file's representative one, else the first."""
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frames <= 1:
        return 0
    if frame is not None:
        if frame > frames:
            raise ValueError(f"it has {frames} frames and --frame says {frame}")
        return frame - 1
    warnings.warn(ONE_FRAME, PictureWarning, stacklevel=2)
    chosen = int(dataset.get("RepresentativeFrameNumber", 1) or 1)
    return chosen - 1 if 1 <= chosen <= frames else 0


def _stored(dataset: Any, path: Path, index: int) -> NDArray[Any]:
    """One frame's values, without what stands in the bits that are not stored, such as an old overlay."""
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" not in dataset.file_meta:  # a file without the meta group
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    check_frame(dataset, path)
    stored: NDArray[Any] = np.asarray(pixel_array(dataset, index=index))
    if stored.ndim != 2:
        raise ValueError(f"pixels have shape {stored.shape}, only grey images are read")
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise ValueError("some of its pixels are not finite numbers")
    compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
    return stored if compressed or stored.dtype.kind == "f" else _low_bits(stored, dataset)


def _bring_up(dataset: Any, index: int) -> None:
    """Brings what an enhanced file says of one frame to the top; what it says of all frames gives way to that."""
    shared, own = (
        dataset.get("SharedFunctionalGroupsSequence"),
        dataset.get("PerFrameFunctionalGroupsSequence"),
    )
    groups = [group for group in (shared and shared[0], own and len(own) > index and own[index]) if group]
    for group in groups:
        for macro in _OF_FRAMES:
            for item in group.get(macro) or ():
                dataset.update({element.tag: element for element in item})


def _low_bits(stored: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """The stored bits up to HighBit; the sign is that of the highest."""
    spare = int(dataset.BitsAllocated) - int(dataset.BitsStored)
    low = int(dataset.HighBit) + 1 - int(dataset.BitsStored)
    if spare <= 0 or low < 0 or low > spare:
        return stored
    shifted = np.left_shift(stored, spare - low)
    low_bits: NDArray[Any] = np.right_shift(shifted, spare)
    return low_bits


def _padding(stored: NDArray[Any], dataset: Any) -> NDArray[np.bool_]:
    """Which pixels are no image: PixelPaddingValue, up to PixelPaddingRangeLimit where there is one."""
    value = dataset.get("PixelPaddingValue")
    if value is None or stored.dtype.kind == "f":
        return np.zeros(stored.shape, dtype=bool)
    limit = dataset.get("PixelPaddingRangeLimit", value)
    # Some devices write the value with the other sign: both are brought to the pixels' own type.
    ends = [
        int(np.array(int(end)).astype(stored.dtype)) for end in (value, value if limit is None else limit)
    ]
    padding: NDArray[np.bool_] = (stored >= min(ends)) & (stored <= max(ends))
    return padding


def _windowed(values: NDArray[Any], padding: NDArray[np.bool_], dataset: Any) -> NDArray[np.uint8]:
    """Through the VOI LUT or window where there is one, whose full range is 0..255; else by the values' own range."""
    from pydicom.pixels.processing import apply_windowing

    if _has(dataset, "VOILUTSequence"):
        return _looked_up(values, dataset)
    window = _window(dataset)
    if window is None:
        return scale_to_bytes(np.asarray(values, dtype=np.float32), ~padding)
    with np.errstate(over="ignore"):
        return _bytes(apply_windowing(values, window))


def _window(dataset: Any) -> Any:
    """The first window and its function alone, of one bit, so that what comes out is from 0 to 1; or None."""
    from pydicom.dataset import Dataset
    from pydicom.multival import MultiValue

    window = Dataset()
    for name in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
        value = dataset.get(name)
        if value not in (None, ""):
            setattr(window, name, value[0] if isinstance(value, MultiValue) else value)
    if "WindowCenter" not in window or "WindowWidth" not in window:
        return None
    linear = window.get("VOILUTFunction", "LINEAR").upper() == "LINEAR"
    if window.WindowWidth < 1 if linear else window.WindowWidth <= 0:
        warnings.warn(NO_WIDTH, PictureWarning, stacklevel=2)
        return None
    window.PhotometricInterpretation, window.BitsStored, window.PixelRepresentation = "MONOCHROME2", 1, 0
    return window


def _looked_up(values: NDArray[Any], dataset: Any) -> NDArray[np.uint8]:
    """Through the first VOI LUT; pydicom's index has as many bits as its output, which is too few for 8 of them."""
    from pydicom.pixels.processing import apply_voi

    entries, first, depth = dataset.VOILUTSequence[0].LUTDescriptor
    wide = copy.deepcopy(dataset.VOILUTSequence[0])
    wide.LUTDescriptor = [entries, first, 16]
    shown = copy.copy(dataset)
    shown.VOILUTSequence = [wide]
    inside = np.clip(np.rint(values), first, first + (entries or 2**16) - 1).astype(np.int64)
    return _bytes(apply_voi(inside, shown) / (2**depth - 1))


def _presented(grey: NDArray[np.uint8], dataset: Any) -> NDArray[np.uint8]:
    """Through the presentation LUT where the file has a table; its shape is looked at with the polarity."""
    if not _has(dataset, "PresentationLUTSequence"):
        return grey
    from pydicom.pixels.processing import apply_presentation_lut

    # pydicom stretches the input over the table: two pixels more, black and white, leave it as it is.
    anchored = np.append(grey.ravel(), [0, 255])
    depth = int(dataset.PresentationLUTSequence[0].LUTDescriptor[2])
    shown = apply_presentation_lut(anchored, dataset)[:-2].reshape(grey.shape)
    return _bytes(shown / (2**depth - 1))


def _has(dataset: Any, sequence: str) -> bool:
    return bool(dataset.get(sequence))


def _bytes(shares: NDArray[Any]) -> NDArray[np.uint8]:
    """From 0..1 to 0..255, by 256 steps of one width: all stored bits become the upper eight, in either polarity."""
    grey: NDArray[np.uint8] = np.clip(shares * 256.0, 0.0, 255.0).astype(np.uint8)
    return grey
