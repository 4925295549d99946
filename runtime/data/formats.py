"""What kind of file is it? Pictures are told by their ending, DICOM files by their content, not their name."""

import os
import unicodedata
from enum import StrEnum
from pathlib import Path

PICTURE_ENDINGS = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".png", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".webp",
        ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc",
    }
)  # fmt: skip
PILLOW_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "AVIF", "PPM", "JPEG2000")
"""What Pillow may decode, whatever a file is called: no format that runs another program, as EPS does."""
DICOM_ENDINGS = frozenset({".dcm", ".dicom"})

_BEGINNINGS = (
    b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"GIF8", b"BM", b"RIFF", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
"""Of pictures, which some export under a DICOM name."""
HEAD = 1024
"""So many bytes of a file tell what it is."""
_WINDOWS_1252 = {
    byte: sign for byte in range(0x80, 0xA0) if (sign := bytes([byte]).decode("cp1252", errors="ignore"))
}
_PREAMBLE = 128
_FIRST_ELEMENTS = frozenset(
    bytes(pair)
    for pair in ((2, 0, 0, 0), (2, 0, 1, 0), (2, 0, 2, 0), (8, 0, 0, 0), (8, 0, 1, 0), (8, 0, 5, 0), (8, 0, 8, 0),
                 (8, 0, 18, 0), (8, 0, 22, 0), (8, 0, 24, 0))
)  # fmt: skip
"""Group and element with which a DICOM file without preamble begins: of the meta group or of the identifying one."""
_WITHOUT_PIXELS = tuple(
    f"1.2.840.10008.{rest}".encode()
    for rest in (
        "1.3.10",  # DICOMDIR
        "5.1.4.38.",  # hanging protocols
        "5.1.4.39.",  # colour palettes
        "5.1.4.1.1.9.",  # waveforms
        "5.1.4.1.1.11.",  # presentation states
        "5.1.4.1.1.66",  # raw data, registrations, segmentations
        "5.1.4.1.1.67",  # real-world values
        "5.1.4.1.1.68.",  # surfaces
        "5.1.4.1.1.88.",  # structured reports, key object selections
        "5.1.4.1.1.104.",  # documents
        *(
            f"5.1.4.1.1.481.{number}" for number in (3, 4, 5, 6, 7, 8, 9)
        ),  # radiotherapy: plans, structures, records
    )
)
"""SOP classes of DICOM files that are no picture of a patient; an export has some beside its pictures."""


class Kind(StrEnum):
    """What a file is."""

    PICTURE = "picture"
    DICOM = "DICOM"
    DICOM_WITHOUT_PIXELS = "DICOM without a picture"
    OTHER = "other"


def ends_as_picture(name: str) -> bool:
    """Whether a name has one of the endings of pictures, in capitals or not."""
    return _ending(name) in PICTURE_ENDINGS


def kind_of(path: Path) -> Kind:
    """What a regular file is. One that ends as DICOM and is none counts as one: a reader will say what is wrong."""
    name = path.name
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(HEAD)
    except OSError:
        head = b""  # its reader will say what is wrong
    if is_dicom(head):
        return Kind.DICOM_WITHOUT_PIXELS if _has_no_pixels(head) else Kind.DICOM
    if ends_as_picture(name) or (_ending(name) in DICOM_ENDINGS and head.startswith(_BEGINNINGS)):
        return Kind.PICTURE
    return Kind.DICOM if _ending(name) in DICOM_ENDINGS else Kind.OTHER


def reads_as_dicom(path: Path, head: bytes) -> bool:
    """Whether a file is for the DICOM reader: by its first bytes, or by its ending where no picture's bytes are."""
    return is_dicom(head) or (_ending(path.name) in DICOM_ENDINGS and not head.startswith(_BEGINNINGS))


def is_dicom(head: bytes) -> bool:
    """Whether a file's first bytes are those of DICOM, with or without the preamble of 128 bytes."""
    if head[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
        return True
    if head[:4] not in _FIRST_ELEMENTS or len(head) < 8:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    length = int.from_bytes(head[6:8] if explicit else head[4:8], "little")
    return 0 < length <= 128 and length % 2 == 0


def plain_stem(name: str) -> str:
    """A name without a picture's or DICOM's ending, in Unicode's composed form; other dots belong to the name."""
    ending = _ending(name)
    stem = name[: -len(ending)] if ending in PICTURE_ENDINGS | DICOM_ENDINGS else name
    return composed(stem)


def composed(name: str) -> str:
    """A name in Unicode's composed form. Bytes that are no UTF-8 are read as Windows-1252, as a table's are."""
    if any("\udc80" <= sign <= "\udcff" for sign in name):
        name = windows_1252(os.fsencode(name))
    return unicodedata.normalize("NFC", name)


def windows_1252(raw: bytes) -> str:
    """Bytes as text in which each byte is one sign, those that Windows-1252 leaves open too."""
    return raw.decode("latin-1").translate(_WINDOWS_1252)


def _has_no_pixels(head: bytes) -> bool:
    """By MediaStorageSOPClassUID or, without meta group, SOPClassUID: the value is behind eight bytes in any form."""
    places = (head.find(element) for element in (b"\x02\x00\x02\x00UI", b"\x08\x00\x16\x00"))
    return any(place >= 0 and head[place + 8 :].startswith(_WITHOUT_PIXELS) for place in places)


def _ending(name: str) -> str:
    return name[name.rfind(".") :].lower() if "." in name[1:] else ""
