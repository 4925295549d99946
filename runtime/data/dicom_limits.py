"""What a DICOM file would take in memory, found before it is unpacked: a small one can name more than there is."""

import zlib
from pathlib import Path
from typing import Any

from suture.runtime.data.formats import HEAD
from suture.runtime.host.unpacking import bomb, most_bytes

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_PREFIX, _GROUP_LENGTH = 132, 12
"""Bytes of preamble and mark, and of the element that says how long the meta group is behind it."""
_CHUNK = 1 << 16
_SIZ = b"\xff\x4f\xff\x51"


def check_deflated(path: Path) -> None:
    """Refuses a deflated data set, which pydicom inflates as a whole, header and all.

    Raises:
        OSError: the file cannot be read.
        ValueError: it would become too large, or its meta group does not say where it ends.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
        if _DEFLATED not in head:
            return
        length = head[_PREFIX : _PREFIX + _GROUP_LENGTH]
        if length[:6] != b"\x02\x00\x00\x00UL":
            raise ValueError("it is deflated, and its meta group has no length")
        file.seek(_PREFIX + _GROUP_LENGTH + int.from_bytes(length[8:], "little"))
        inflated, most, packed = 0, most_bytes(path), zlib.decompressobj(-zlib.MAX_WBITS)
        while not packed.eof and (chunk := packed.unconsumed_tail or file.read(_CHUNK)):
            inflated += len(packed.decompress(chunk, _CHUNK))
            if inflated > most:
                raise ValueError(bomb(path, inflated).replace(" GB,", " GB or more,"))


def check_frame(dataset: Any, path: Path) -> None:
    """Refuses a frame whose header, or whose own stream, names more pixels than its file can hold.

    Raises:
        AttributeError: an element is missing.
        ValueError: it does.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    bits = int(dataset.BitsAllocated) * int(dataset.get("SamplesPerPixel", 1) or 1)
    if reason := bomb(path, rows * columns * -(-bits // 8)):
        raise ValueError(reason)
    pixels = dataset.get("PixelData", b"")
    # The stream's own sides come first in it: ISO/IEC 15444-1, A.5.1. Its decoder looks at no header.
    place = pixels.find(_SIZ) if "JPEG 2000" in dataset.file_meta.TransferSyntaxUID.name else -1
    if 0 <= place <= len(pixels) - 24:
        right, low, left, top = (
            int.from_bytes(pixels[place + at : place + at + 4], "big") for at in (8, 12, 16, 20)
        )
        if (right - left, low - top) != (columns, rows):
            raise ValueError(
                f"its JPEG 2000 stream is of {right - left}x{low - top} pixels and its header says {columns}x{rows}"
            )
