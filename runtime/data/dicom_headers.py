"""What DICOM headers say of whose picture it is, for tables and for folders of classes."""

from collections.abc import Sequence
from pathlib import Path

from suture.runtime.data.dicom_pixels import read_header, text_of
from suture.runtime.errors import DataError


def patient_ids(files: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Each file's PatientID, empty where it has none or cannot be read, and what a person should be told."""
    ids = [text_of_file(file, "PatientID") for file in files]
    if len(files) > 1 and len(set(ids)) == 1 and ids[0]:
        note = f"all {len(files)} files have the same PatientID, which says nothing; patients are told by file names"
        return [""] * len(files), [note]
    return ids, []


def text_of_file(file: Path, element: str) -> str:
    """One element of a file's header, empty where it has none or cannot be read: its reader will say so."""
    try:
        return text_of(read_header(file, element), element)
    except DataError:
        return ""
