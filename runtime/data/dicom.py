"""A folder of monochrome CR or DX DICOM files and a CSV with the columns image and level.

The CSV may also have patient and site. Without a patient the file's own PatientID counts, whose header is read for it.
Where all files have the same one, as after a careless anonymisation, or a file has none, the rule for names holds: the
stem without a final _left or _right.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from suture.runtime.data.patients import copies_joined, patient_of
from suture.runtime.data.pictures import file_digest, files_by_stem, fit_square, scale_to_bytes, unreadable
from suture.runtime.data.source import Example, Source, Task
from suture.runtime.data.tables import Columns, grade_classes, parse_grade, read_columns
from suture.runtime.errors import ConfigError, DataError


class DicomFiles(Source):
    """A classification source of DICOM files."""

    def __init__(
        self, classes: tuple[str, ...], examples: list[Example], files: list[Path], notes: list[str]
    ) -> None:
        """Take the examples and, in the same order, their files."""
        self.files = files
        super().__init__("dicom", Task.CLASSIFICATION, classes, examples, notes=notes)

    def read(self, index: int, size: int, channels: int) -> tuple[Tensor, Tensor]:
        """Decode one file; see ``Source.read``."""
        image = Image.fromarray(read_dicom(self.files[index]))
        return fit_square(image, size, channels), torch.tensor(self.examples[index].label, dtype=torch.int64)

    def dimensions(self, index: int) -> tuple[int, int]:
        """See ``Source.dimensions``."""
        import pydicom

        path = self.files[index]
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
            return int(header.Columns), int(header.Rows)
        except Exception as error:  # as in `read_dicom`
            raise unreadable(path, error) from error

    def content_digest(self, index: int) -> bytes:
        """See ``Source.content_digest``."""
        return file_digest(self.files[index])


def open_dicom(path: Path, *, grades: str, columns: Columns | None = None) -> Source:
    """Index the folder.

    Args:
        path: A folder with one CSV and the files, at any depth.
        grades: "binary" (level > 0) or "all".

    Raises:
        ConfigError: pydicom is not installed.
        DataError: No CSV or several, a column missing, a file name twice, or no file for any row.
    """
    try:
        import pydicom  # noqa: F401  (an extra: only who reads DICOM needs it)
    except ImportError as error:
        raise ConfigError("data source dicom needs pydicom: pip install suture[dicom]") from error
    table = _find_table(path)
    rows = read_columns(table, ("image", "level"), ("patient", "site"), columns)
    files = files_by_stem(path, _is_dicom, path)
    found = [(stem, row) for row in rows if (stem := row["image"].removesuffix(".dcm")) in files]
    if not found:
        raise DataError(
            f"{path}: none of the {len(rows)} images of {table.name} is there as IMAGE.dcm; the column image "
            "must hold the files' names"
        )
    classes, labels = grade_classes([parse_grade(row["level"], table) for _, row in found], grades, ())
    named = [row["patient"] for _, row in found]
    ids, notes = (named, []) if all(named) else _patient_ids([files[stem] for stem, _ in found])
    examples = [
        Example(
            key=stem,
            patient=row["patient"] or own or patient_of(stem),
            label=label,
            site=row["site"],
            official_test=stem.endswith("_test"),
        )
        for (stem, row), label, own in zip(found, labels, ids, strict=True)
    ]
    missing = len(rows) - len(found)
    if missing:
        notes.append(f"skipped {missing} of {len(rows)} rows without an image file")
    chosen = [files[stem] for stem, _ in found]
    examples, copies = copies_joined(examples, chosen)
    return DicomFiles(classes, examples, chosen, notes + copies)


def _patient_ids(files: list[Path]) -> tuple[list[str], list[str]]:
    """Each file's PatientID, empty where it has none or cannot be read, and what a person should be told."""
    import pydicom

    ids = []
    for file in files:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"])
            ids.append(str(header.get("PatientID", "") or "").strip())
        except Exception:  # as many kinds as in `read_dicom`, where the file is named
            ids.append("")
    if len(files) > 1 and len(set(ids)) == 1 and ids[0]:
        note = f"all {len(files)} files have the same PatientID, which says nothing; patients are told by file names"
        return [""] * len(files), [note]
    return ids, []


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() == ".dcm" and path.is_file()


def read_dicom(path: Path) -> NDArray[np.uint8]:
    """Read a monochrome image as it is meant to be seen, (H, W) in 0..255.

    Rescale slope and intercept, then the first window (or the whole range where there is none), then
    MONOCHROME1, in which high values are dark, is turned round.

    Raises:
        DataError: Damaged, compressed in a way that cannot be decoded here, or not a single grey image.
    """
    import pydicom
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    try:
        dataset = pydicom.dcmread(path)
        kind = str(dataset.get("PhotometricInterpretation", ""))
        if not kind.startswith("MONOCHROME"):
            raise ValueError(
                f"PhotometricInterpretation is {kind or 'missing'}, only MONOCHROME1 and 2 are read"
            )
        stored = dataset.pixel_array
        if stored.ndim != 2:
            raise ValueError(f"pixels have shape {stored.shape}, only single images are read")
        shown = apply_voi_lut(apply_modality_lut(stored, dataset), dataset)
        grey = scale_to_bytes(np.asarray(shown, dtype=np.float32))
    except Exception as error:
        # pydicom and its decoders raise many kinds, and a damaged file may meet any of them.
        raise unreadable(path, error) from error
    return 255 - grey if kind == "MONOCHROME1" else grey


def _find_table(path: Path) -> Path:
    if not path.is_dir():
        raise DataError(f"dicom: {path} is not a folder; give the folder of the .dcm files and their CSV")
    tables = sorted(path.glob("*.csv"))
    if len(tables) != 1:
        raise DataError(
            f"{path} must hold one CSV with the columns image and level, found {len(tables)}; "
            "move the others away"
        )
    return tables[0]
